"""`afdcd evaluate`, `predict`, `profile` and `datasets`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from .command import (
    PRECISIONS,
    add_command,
    check_device,
    check_output,
    data_choice,
    given,
    hide_loading_bars,
    inference_settings,
    number,
    refuse,
    whole,
)

_BUSY = 0.5  # beyond this share of the cores, others' programs are in the figures
_OF_CLASS = ("name", "pixels", "share", "images", "balanced_weight")
_OF_BENCHMARK = "name num_labels ignore_index split_sizes layout licence homepage citation classes".split()


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file."""
    new = partial(add_command, commands)
    command = new(
        "evaluate", "score a saved model on a labelled dataset", "--model MODEL --dataset NAME [options]", _evaluate,
        "--model runs/mine --dataset camvid --data_dir data/camvid --output results.json",
    )  # fmt: skip
    command.add("--model", required=True, help="folder, Hub id or exported graph (.onnx, .xml, .pte)")
    command.add("--batch_size", type=whole(1, 10**6), default=1, help="images in a forward pass")
    command.add("--num_workers", type=whole(0, 1024), default=0, help="processes that decode images")
    command.flag("--absent_as_zero", "a class absent from truth and prediction counts as 0")
    ratio = "also score boundaries: Boundary IoU in bands of this share of the image diagonal (Cityscapes: 0.005)"
    command.add("--boundary_ratio", type=number(at_most=1), help=ratio)
    command.add("--output", metavar="FILE", help="results.json to write; the confusion matrix goes beside it")
    command.flag("--json", "print the scores as JSON instead of a table", dest="as_json")
    command.add("--save_predictions", metavar="DIR", help="label maps as PNG; for Cityscapes with a zip")
    command.flag("--overwrite", "replace files of an earlier evaluation")
    command.group("images and labels")
    command.add("--dataset", required=True, help="benchmark (`afdcd datasets`), or folder or Hub id")
    command.add("--data_dir", help="folder of the benchmark's files")
    command.add("--split", default="val", help="of the dataset")
    command.add_data()
    command.flag("--streaming", "read it as a stream that is never held or downloaded")
    command.add_inference()

    command = new(
        "predict", "segment images", "IMAGE_OR_DIR [...] --model MODEL --output_dir DIR [options]", _predict,
        "street.jpg --model runs/mine --output_dir out", old={"--output": "--output_dir"},
    )  # fmt: skip
    command.add_argument("inputs", nargs="+", metavar="IMAGE_OR_DIR", help="images, or folders of them")
    command.add("--model", required=True, help="folder, Hub id or exported graph (.onnx, .xml, .pte)")
    command.add("--output_dir", required=True, help="folder for class ids, colours and overlays")
    command.add("--dataset", help="benchmark whose colours to use; by default the one with the model's classes")
    command.flag("--as_labels", "write a data set of pseudo-labels to train on")
    command.add("--confidence", type=float, help="with --as_labels: ignore pixels of lower probability (default 0.9)")
    command.flag("--overwrite", "replace files of an earlier run")
    command.add_inference()

    text = (
        "count parameters and multiply-accumulates (MACs) of a model, and measure time and memory of its forward pass; "
        "on this machine, without reading and resizing images"
    )
    command = new("profile", text, "MODEL [options]", _profile, "runs/mine --size 512 1024 --output cost.json")
    command.add_argument("model", help="folder or Hub id")
    sizes = "of the input; may be repeated (default: 512 512, 512 1024 and 1024 2048)"
    command.add_size("--size", sizes, action="append")
    command.add("--batch_size", type=whole(1, 10**6), default=1, help="images in a pass")
    command.add_device()
    command.add("--precision", default="fp32", choices=PRECISIONS, help="of the passes")
    command.flag("--channels_last", "lay maps out with the channels last")
    command.flag("--compile", "with torch.compile")
    command.add("--warmup", type=whole(0), default=10, help="passes before those that count")
    command.add("--repeats", type=whole(1), default=40, help="passes that count")
    limit = "limit for a size; at least 3 passes count"
    command.add("--max_seconds", type=number(at_most=1e6), default=30.0, help=limit)
    command.flag("--no_memory", "leave peak memory out, which takes one more pass")
    command.flag("--json", "print JSON instead of the table", dest="as_json")
    command.add("--output", type=Path, metavar="FILE", help="also write the rows to this JSON file")
    command.flag("--overwrite", "replace that file if it is there")

    text = "list the benchmarks, describe one, check its files, or count what the labels of any dataset hold"
    example = "camvid --data_dir data/camvid --stats --output camvid.png"
    command = new("datasets", text, "[NAME] [options]", _datasets, example)
    command.add_argument("name", nargs="?", help="benchmark to describe; with --stats also a folder or Hub id")
    command.add("--data_dir", help="folder with its files: looks at every split, and at its first pair")
    command.flag("--json", "print JSON", dest="as_json")
    drawn = "draw the polygons of NAME (COCO .json, or folder of YOLO or LabelMe) as a data set in this new folder"
    command.add("--import_to", metavar="DIR", help=drawn)
    command.group("labels of one split")
    command.flag("--stats", "count pixels and images of each class, sizes and ignored pixels")
    command.add("--split", help="to count (default train)")
    command.add_data()
    command.add("--class_names", nargs="+", metavar="NAME", help="of a dataset that is not a benchmark, in order")
    command.add("--output", type=Path, metavar="FILE", help="also draw some samples with their labels over them")
    command.flag("--overwrite", "replace that file if it is there")


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
        refuse({"confidence": confidence}, "is for --as_labels: add it, or leave it out.")
        done = predict_images(model, inputs, output_dir, dataset=dataset, overwrite=overwrite, **options)
        print(f"{len(done)} images segmented in {output_dir}")
        return
    refuse({"overwrite": overwrite, "dataset": dataset}, "is not for --as_labels, which writes a new folder.")
    options |= {} if confidence is None else {"confidence": confidence}
    count, labelled = write_pseudo_labels(model, inputs, output_dir, **options)
    print(f"{count} images with {labelled:.1%} of their pixels labelled in {output_dir}; train on them with")
    print(f"  --dataset {output_dir} --class_names <the list in {output_dir}/classes.json>")


def _profile(
    model: str, size: list[list[int]] | None, device: str | None, no_memory: bool, as_json: bool, output: Path | None,
    overwrite: bool, **settings: Any,
) -> None:  # fmt: skip
    check_output(output, overwrite)
    from ..cost.profiling import HEADER, SIZES, ProfileRow, ProfileSettings, profile_model
    from ..structured_files import write_json

    hide_loading_bars()
    check_device(device)
    sizes = [(height, width) for height, width in size] if size else SIZES
    rows: list[ProfileRow] = []

    def content() -> dict[str, Any]:
        return {"model": model, "rows": [asdict(row) for row in rows]}

    def show(row: ProfileRow) -> None:
        if not as_json:
            print(row.format() if rows else f"{row.describe()}\n{HEADER}\n{row.format()}", flush=True)
        rows.append(row)
        if output:  # after each row, so that none is lost if a larger input does not fit
            write_json(output, content())

    profile_model(model, sizes, settings=ProfileSettings(**settings, memory=not no_memory), device=device, show=show)
    if as_json:
        print(json.dumps(content(), indent=2))
        return
    print("GMACs: thousand million multiply-accumulates of one image (1 MAC = 2 FLOPs).")
    loads, cores = [row.load_average for row in rows if row.load_average is not None], os.cpu_count() or 1
    if loads and loads[0] > _BUSY * cores:  # the later ones are of our own making
        print(f"note: this machine was busy ({loads[0]:.1f} programs on {cores} cores): times are too long.")
    if output:
        print(f"written: {output}")


def _datasets(
    name: str | None, data_dir: str | None, as_json: bool, stats: bool, import_to: str | None, **options: Any
) -> None:
    from ..data.benchmarks import BENCHMARKS, get_benchmark

    if import_to:
        if name is None or stats or as_json or given(options):
            raise ValueError("--import_to takes a file or folder of polygons, perhaps --data_dir, and nothing else.")
        from ..data.polygons import import_annotations

        classes, counts = import_annotations(name, import_to, data_dir, progress=sys.stderr.isatty())
        print(f"{', '.join(f'{part} {count}' for part, count in counts.items())} images in {import_to}; train on them")
        print(f"  with --dataset {import_to} --class_names {shlex.join(classes)}")
        return
    if name is None and (stats or data_dir is not None):
        raise ValueError("--stats and --data_dir need the dataset's name: afdcd datasets NAME ...")
    if name is not None and stats:
        _count(name, as_json, data_dir=data_dir, **options)
        return
    refuse(options, "is for --stats, which is missing.")
    if name is not None and data_dir is not None:
        _check_files(name, data_dir, as_json)
        return
    rows = list(BENCHMARKS.values()) if name is None else [get_benchmark(name)]
    sizes = [", ".join(f"{split} {size}" for split, size in row.split_sizes.items()) for row in rows]
    if as_json:
        facts = [{key: getattr(row, key) for key in _OF_BENCHMARK} for row in rows]
        print(json.dumps(facts if name is None else facts[0], indent=2, ensure_ascii=False))
    elif name is None:
        for row, images in zip(rows, sizes, strict=True):
            print(f"{row.name:<16}{row.num_labels:>4} classes   {images}")
    else:
        row = rows[0]
        shown = {"files": row.layout, "images": sizes[0], "licence": row.licence, "from": row.homepage}
        shown |= {"cite": row.citation, "classes": f"{row.num_labels}, {row.ignore_index} = ignored"}
        lines = [row.name, *(f"{key:<9}{text}" for key, text in shown.items() if text)]
        print("\n".join([*lines, *(f"  {index:>3}  {one}" for index, one in enumerate(row.classes))]))


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
            "classes": [dict(zip(_OF_CLASS, row, strict=True)) for row in columns],
        }
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    print(f"{'class':<28}{'pixels':>16}{'share %':>10}{'images':>9}{'balanced weight':>17}")
    for index, (one, pixels, share, images, weight) in enumerate(columns):
        print(f"{index:>3} {one:<24}{pixels:>16,}{100 * share:>10.3f}{images:>9,}{weight:>17.4f}")
    print(f"{'ignored, of all pixels':<28}{counted.ignored:>16,}{100 * counted.ignored_share:>10.3f}")
    by_area = sorted(counted.sizes, key=lambda size: size[0] * size[1])
    span = " to ".join(f"{height}x{width}" for height, width in dict.fromkeys(by_area[:1] + by_area[-1:]))
    without = f", and {counted.unlabelled:,} without a label" if counted.unlabelled else ""
    print(f"{sum(counted.sizes.values()):,} labelled images of {span} pixels (height x width){without}")
    if output and names:
        print(f"written: {output}")


def _draw_samples(rows: Any, names: list[str], benchmark: Any, output: Path, count: int = 4) -> None:
    """A few labelled images, evenly spread."""
    from ..charts import plot_samples
    from ..charts.label_maps import distinct_palette

    spread = range(0, len(rows), max(1, len(rows) // count))[:count]
    labelled = [row for row in (rows[index] for index in spread) if row["label"] is not None]
    if not labelled:
        raise ValueError("There is nothing to draw: the images looked at have no label. Leave out --output.")
    plot_samples(labelled, benchmark.palette if benchmark else distinct_palette(len(names)), names, output)
