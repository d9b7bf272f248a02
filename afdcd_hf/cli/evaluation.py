"""`afdcd evaluate`, `predict`, `profile` and `datasets`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from .command import (
    PRECISIONS,
    add_command,
    check_output,
    data_choice,
    given_options,
    hide_loading_bars,
    inference_settings,
    integer,
    positive_number,
    reject,
)

_BUSY_SHARE = 0.5  # above this load per core, other programs distort the timings
_CLASS_KEYS = ("name", "pixels", "share", "images", "balanced_weight")
_BENCHMARK_KEYS = "name num_labels ignore_index split_sizes layout licence homepage citation classes".split()


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file."""
    new = partial(add_command, commands)
    command = new(
        "evaluate", "score a saved model on a labelled dataset", "--model MODEL --dataset NAME [options]", _evaluate,
        "--model runs/mine --dataset camvid --data_dir data/camvid --output results.json",
    )  # fmt: skip
    command.add("--model", required=True, help="folder, Hub id or exported graph (.onnx, .xml, .pte)")
    command.add("--batch_size", type=integer(1, 10**6), default=1, help="images per forward pass")
    command.add("--num_workers", type=integer(0, 1024), default=0, help="processes that decode images")
    command.flag("--absent_as_zero", "count a class absent from ground truth and prediction as IoU 0")
    ratio = "also compute Boundary IoU; width of the boundary as a share of the image diagonal (Cityscapes: 0.005)"
    command.add("--boundary_ratio", type=positive_number(at_most=1), help=ratio)
    command.add("--output", metavar="FILE", help="results.json to write; the confusion matrix is saved next to it")
    command.flag("--json", "print the scores as JSON instead of a table", dest="as_json")
    command.add("--save_predictions", metavar="DIR", help="save label maps as PNG; for Cityscapes also a zip")
    command.flag("--overwrite", "overwrite the files of an earlier evaluation")
    command.group("images and labels")
    command.add("--dataset", required=True, help="benchmark (see `afdcd datasets`), folder or Hub id")
    command.add("--data_dir", help="folder of the benchmark's files")
    command.add("--split", default="val", help="split to evaluate on")
    command.add_data()
    command.flag("--streaming", "stream the dataset without downloading it or holding it in memory")
    command.add_inference()

    command = new(
        "predict", "segment images", "IMAGE_OR_DIR [...] --model MODEL --output_dir DIR [options]", _predict,
        "street.jpg --model runs/mine --output_dir out", old={"--output": "--output_dir"},
    )  # fmt: skip
    command.add_argument("inputs", nargs="+", metavar="IMAGE_OR_DIR", help="images, or folders of them")
    command.add("--model", required=True, help="folder, Hub id or exported graph (.onnx, .xml, .pte)")
    command.add("--output_dir", required=True, help="folder for label maps, colour maps and overlays")
    command.add("--dataset", help="benchmark whose colours to use (default: the one with the model's classes)")
    command.flag("--as_labels", "write a dataset of pseudo-labels to train on")
    command.add("--confidence", type=float, help="with --as_labels: ignore pixels below this probability (default 0.9)")
    command.flag("--overwrite", "overwrite the files of an earlier run")
    command.add_inference()

    text = (
        "count a model's parameters and multiply-accumulates (MACs), and measure time and memory of its forward pass; "
        "on this machine, without reading and resizing images"
    )
    command = new("profile", text, "MODEL [options]", _profile, "runs/mine --size 512 1024 --output cost.json")
    command.add_argument("model", help="folder or Hub id")
    sizes = "input size; may be repeated (default: 512 512, 512 1024 and 1024 2048)"
    command.add_size("--size", sizes, action="append")
    command.add("--batch_size", type=integer(1, 10**6), default=1, help="images per forward pass")
    command.add_device()
    command.add("--precision", default="fp32", choices=PRECISIONS, help="precision of the forward passes")
    command.flag("--channels_last", "use the channels-last memory format")
    command.flag("--compile", "use torch.compile")
    command.add("--warmup", type=integer(0), default=10, help="warm-up passes, not timed")
    command.add("--repeats", type=integer(1), default=40, help="timed passes")
    limit = "time limit per size; at least 3 passes are timed"
    command.add("--max_seconds", type=positive_number(at_most=1e6), default=30.0, help=limit)
    command.flag("--no_memory", "skip peak memory, which takes one extra pass")
    command.flag("--json", "print JSON instead of the table", dest="as_json")
    command.add("--output", type=Path, metavar="FILE", help="also write the rows to this JSON file")
    command.flag("--overwrite", "overwrite an existing --output file")

    text = "list the benchmarks, describe one, check its files, or count the labels of any dataset"
    example = "camvid --data_dir data/camvid --stats --output camvid.png"
    command = new("datasets", text, "[NAME] [options]", _datasets, example)
    command.add_argument("name", nargs="?", help="benchmark to describe; with --stats also a folder or Hub id")
    command.add("--data_dir", help="folder of its files: checks every split and its first image and label")
    command.flag("--json", "print JSON", dest="as_json")
    drawn = "convert the polygons of NAME (COCO .json, or folder of YOLO or LabelMe) to a dataset in this new folder"
    command.add("--import_to", metavar="DIR", help=drawn)
    command.group("label statistics of one split")
    command.flag("--stats", "count pixels and images per class, image sizes and ignored pixels")
    command.add("--split", help="split to count (default train)")
    command.add_data()
    command.add("--class_names", nargs="+", metavar="NAME", help="class names in order, if it is not a benchmark")
    command.add("--output", type=Path, metavar="FILE", help="also draw some images with their labels overlaid")
    command.flag("--overwrite", "overwrite an existing --output file")


def _evaluate(model: str, dataset: str, split: str, as_json: bool, **options: Any) -> None:
    settings = inference_settings(options)
    from ..evaluation.results import evaluate_saved
    from ..structured_files import json_values

    hide_loading_bars()
    choice = data_choice(dataset, split, options) | ({"streaming": True} if options.pop("streaming") else {})
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        scores = evaluate_saved(model, choice, settings=settings, **options)
    if as_json and os.environ.get("RANK", "0") == "0":
        shown = {name: value for name, value in scores.items() if name != "confusion_matrix"}
        print(json.dumps(json_values(shown), indent=2))


def _predict(
    model: str, inputs: list[str], output_dir: str, dataset: str | None, as_labels: bool, confidence: float | None,
    overwrite: bool, **options: Any,
) -> None:  # fmt: skip
    hide_loading_bars()
    options["settings"] = inference_settings(options)
    from ..inference.predictions import predict_images, write_pseudo_labels

    if not as_labels:
        reject({"confidence": confidence}, "can only be used with --as_labels.")
        done = predict_images(model, inputs, output_dir, dataset=dataset, overwrite=overwrite, **options)
        print(f"{len(done)} images segmented; results in {output_dir}")
        return
    reject({"overwrite": overwrite, "dataset": dataset}, "cannot be used with --as_labels, which writes a new folder.")
    options |= {} if confidence is None else {"confidence": confidence}
    count, labelled = write_pseudo_labels(model, inputs, output_dir, **options)
    print(f"{count} images with {labelled:.1%} of their pixels labelled in {output_dir}; train on them")
    print(f"  with {_training_options(output_dir, ['train'])}")


def _training_options(folder: str, splits: list[str]) -> str:
    """Return the options that train on a dataset which was just written, with its `classes.json`."""
    from ..evaluation.results import command_line
    from ..structured_files import read_json

    train = "train" if "train" in splits else splits[0]
    options: dict[str, Any] = {
        "dataset": folder,
        "train_split": None if train == "train" else train,
        "eval_split": None if "val" in splits else train,
        "class_names": read_json(Path(folder, "classes.json").expanduser(), "names", list),
    }
    return command_line([], options)


def _profile(
    model: str, size: list[list[int]] | None, device: str | None, no_memory: bool, as_json: bool, output: Path | None,
    overwrite: bool, **settings: Any,
) -> None:  # fmt: skip
    check_output(output, overwrite)
    from ..cost.profiling import HEADER, SIZES, ProfileRow, ProfileSettings, profile_model
    from ..structured_files import write_json

    hide_loading_bars()
    sizes = [(height, width) for height, width in size] if size else SIZES
    rows: list[ProfileRow] = []

    def content() -> dict[str, Any]:
        return {"model": model, "rows": [asdict(row) for row in rows]}

    def show(row: ProfileRow) -> None:
        if not as_json:
            print(row.format() if rows else f"{row.describe()}\n{HEADER}\n{row.format()}", flush=True)
        rows.append(row)
        if output:  # after each row, so that none is lost if a larger input runs out of memory
            write_json(output, content())

    profile_model(model, sizes, settings=ProfileSettings(**settings, memory=not no_memory), device=device, show=show)
    if as_json:
        print(json.dumps(content(), indent=2))
        return
    print("GMACs: billion multiply-accumulates per image (1 MAC = 2 FLOPs).")
    loads, cores = [row.load_average for row in rows if row.load_average is not None], os.cpu_count() or 1
    if loads and loads[0] > _BUSY_SHARE * cores:  # the first one only: later ones include our own load
        print(f"note: this machine was busy (load average {loads[0]:.1f} on {cores} cores): times are too long.")
    if output:
        print(f"written: {output}")


def _datasets(
    name: str | None, data_dir: str | None, as_json: bool, stats: bool, import_to: str | None, **options: Any
) -> None:
    from ..data.benchmarks import BENCHMARKS, get_benchmark

    if import_to:
        if name is None or stats or as_json or given_options(options):
            raise ValueError("--import_to takes a file or folder of polygons, optionally --data_dir, and nothing else.")
        from ..data.polygons import import_annotations

        _, counts = import_annotations(name, import_to, data_dir, progress=sys.stderr.isatty())
        print(f"{', '.join(f'{part} {count}' for part, count in counts.items())} images in {import_to}; train on them")
        print(f"  with {_training_options(import_to, list(counts))}")
        return
    if name is None and (stats or data_dir is not None):
        raise ValueError("--stats and --data_dir need a dataset name: afdcd datasets NAME ...")
    if name is not None and stats:
        _count(name, as_json, data_dir=data_dir, **options)
        return
    if name is not None and name not in BENCHMARKS and Path(name).expanduser().exists():
        raise ValueError(f"{name} is not a benchmark, so only its labels can be counted: add --stats.")
    reject(options, "can only be used with --stats.")
    if name is not None and data_dir is not None:
        _check_files(name, data_dir, as_json)
        return
    rows = list(BENCHMARKS.values()) if name is None else [get_benchmark(name)]
    sizes = [", ".join(f"{split} {size}" for split, size in row.split_sizes.items()) for row in rows]
    if as_json:
        facts = [{key: getattr(row, key) for key in _BENCHMARK_KEYS} for row in rows]
        print(json.dumps(facts if name is None else facts[0], indent=2, ensure_ascii=False))
    elif name is None:
        for row, images in zip(rows, sizes, strict=True):
            print(f"{row.name:<16}{row.num_labels:>4} classes   {images}")
    else:
        row = rows[0]
        shown = {"files": row.layout, "images": sizes[0], "licence": row.licence, "from": row.homepage}
        shown |= {"cite": row.citation, "classes": f"{row.num_labels}, {row.ignore_index} = ignored"}
        lines = [row.name, *(f"{key:<9}{text}" for key, text in shown.items() if text)]
        print("\n".join([*lines, *(f"  {index:>3}  {label}" for index, label in enumerate(row.classes))]))


def _check_files(name: str, data_dir: str, as_json: bool) -> None:
    from ..data.loading import check_layout

    checks = check_layout(name, data_dir)
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=2, ensure_ascii=False))
    else:
        for check in checks:
            problem = f": {check.problem}" if check.problem else ""
            print(f"{check.split:<10} {check.found} of {check.expected} images{problem}")
    if all(check.problem for check in checks):
        raise ValueError(f"no split of {name} can be used in {data_dir}.")


def _count(
    name: str, as_json: bool, split: str | None, class_names: list[str] | None, output: Path | None, overwrite: bool,
    **options: Any,
) -> None:  # fmt: skip
    check_output(output, overwrite)
    from ..data.benchmarks import BENCHMARKS
    from ..data.loading import class_names as names_of, load_split
    from ..data.statistics import count_labels

    known = name in BENCHMARKS or class_names or options["labels_as"]
    names = names_of(name, class_names, options["labels_as"]) if known else None
    choice = data_choice(name, split or "train", options)
    rows = load_split(**choice)
    counted = count_labels(rows, len(names) if names else None, progress=sys.stderr.isatty() and not as_json)
    names = names or [f"class {index}" for index in range(len(counted.pixels))]
    if output and names:
        _draw_samples(rows, names, BENCHMARKS.get(choice.get("labels_as") or name), output)
    of_classes = (counted.pixels, counted.shares, counted.images, counted.balanced_weights)
    columns = zip(names, *(column.tolist() for column in of_classes), strict=True)
    if as_json:
        sizes = [{"height": h, "width": w, "images": count} for (h, w), count in sorted(counted.sizes.items())]
        facts = {
            "dataset": name,
            "split": choice["split"],
            "images": sum(counted.sizes.values()),
            "images_without_label": counted.unlabelled,
            "sizes": sizes,
            "ignored_pixels": counted.ignored,
            "ignored_share": counted.ignored_share,
            "classes": [dict(zip(_CLASS_KEYS, row, strict=True)) for row in columns],
        }
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    print(f"{'class':<28}{'pixels':>16}{'share %':>10}{'images':>9}{'balanced weight':>17}")
    for index, (label, pixels, share, images, weight) in enumerate(columns):
        print(f"{index:>3} {label:<24}{pixels:>16,}{100 * share:>10.3f}{images:>9,}{weight:>17.4f}")
    print(f"{'ignored, of all pixels':<28}{counted.ignored:>16,}{100 * counted.ignored_share:>10.3f}")
    by_area = sorted(counted.sizes, key=lambda size: size[0] * size[1])
    span = " to ".join(f"{height}x{width}" for height, width in dict.fromkeys(by_area[:1] + by_area[-1:]))
    without = f", and {counted.unlabelled:,} without a label" if counted.unlabelled else ""
    print(f"{sum(counted.sizes.values()):,} labelled images of {span} pixels (height x width){without}")
    if output and names:
        print(f"written: {output}")


def _draw_samples(rows: Any, names: list[str], benchmark: Any, output: Path, count: int = 4) -> None:
    """Draw a few labelled images, evenly spread over the rows."""
    from ..charts import plot_samples
    from ..charts.label_maps import distinct_palette
    from ..data.loading import evenly_spaced

    spread = evenly_spaced(len(rows), count)
    labelled = [row for row in (rows[index] for index in spread) if row["label"] is not None]
    if not labelled:
        raise ValueError(f"Nothing to draw: none of the {len(spread)} images checked has a label. Leave out --output.")
    plot_samples(labelled, benchmark.palette if benchmark else distinct_palette(len(names)), names, output)
