"""`afdcd evaluate`, `predict`, `profile` and `datasets`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .command import (
    PRECISIONS,
    add,
    add_command,
    add_device,
    add_inference_options,
    add_json,
    add_size,
    check_device,
    flag,
    given,
    hide_loading_bars,
    inference_settings,
    number,
    whole,
)

# beyond this share of the cores, others' programs are in the figures
_BUSY = 0.5
_OF_DATA = ("data_dir", "list_file", "max_samples", "image_column", "label_column", "label_map", "labels_as")
_OF_BENCHMARK = (
    "name", "num_labels", "ignore_index", "split_sizes", "layout", "licence", "homepage", "citation", "classes",
)  # fmt: skip


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file."""
    command = add_command(
        commands, "evaluate", "score a saved model on a labelled dataset", "--model MODEL --dataset NAME [options]",
        run=_evaluate, example="--model runs/mine --dataset camvid --data_dir data/camvid --output results.json",
    )  # fmt: skip
    add(command, "--model", required=True, help="folder, Hub id or .onnx file")
    data = command.add_argument_group("images and labels")
    add(data, "--dataset", required=True, help="benchmark (`afdcd datasets`), or folder or Hub id")
    add(data, "--data_dir", help="folder of the benchmark's files")
    add(data, "--split", default="val", help="of the dataset")
    add(data, "--list_file", help="list of images (and labels) to score instead of the whole split")
    add(data, "--max_samples", type=whole(), help="score only the first so many images")
    add(data, "--image_column", help="of a dataset that is not a benchmark (default image)")
    add(data, "--label_column", help="its labels (default label)")
    add(data, "--label_map", metavar="JSON", help="value in its labels -> class id, e.g. '{\"0\": 255}'")
    add(data, "--labels_as", metavar="BENCHMARK", help="its labels hold the values of this benchmark's files")
    add(command, "--batch_size", type=whole(1, 10**6), default=1, help="images in a forward pass")
    add(command, "--num_workers", type=whole(0, 1024), default=0, help="processes that decode images")
    flag(command, "--absent_as_zero", "a class absent from truth and prediction counts as 0")
    ratio = "also score boundaries: Boundary IoU in bands of this share of the image diagonal (Cityscapes: 0.005)"
    add(command, "--boundary_ratio", type=number(at_most=1), help=ratio)
    add_inference_options(command)
    add(command, "--output", metavar="FILE", help="results.json to write; the confusion matrix goes beside it")
    add_json(command, "print the scores as JSON instead of a table")
    add(command, "--save_predictions", metavar="DIR", help="label maps as PNG; for Cityscapes with a zip")
    flag(command, "--overwrite", "replace files of an earlier evaluation")

    command = add_command(
        commands, "predict", "segment images", "IMAGE_OR_DIR [...] --model MODEL --output_dir DIR [options]",
        run=_predict, example="street.jpg --model runs/mine --output_dir out", old={"--output": "--output_dir"},
    )  # fmt: skip
    command.add_argument("inputs", nargs="+", metavar="IMAGE_OR_DIR", help="images, or folders of them")
    add(command, "--model", required=True, help="folder, Hub id or .onnx file")
    add(command, "--output_dir", required=True, help="folder for class ids, colours and overlays")
    add(command, "--dataset", help="benchmark whose colours to use; by default the one with the model's classes")
    add_inference_options(command)
    flag(command, "--as_labels", "write a data set of pseudo-labels to train on")
    add(command, "--confidence", type=float, help="with --as_labels: ignore pixels of lower probability (default 0.9)")
    flag(command, "--overwrite", "replace files of an earlier run")

    text = (
        "count parameters and multiply-accumulates (MACs) of a model, and measure time and memory of its forward pass; "
        "on this machine. Reading and resizing images and stretching the logits are not in"
    )
    command = add_command(
        commands, "profile", text, "MODEL [options]", run=_profile,
        example="runs/mine --size 512 1024 --output cost.json",
    )  # fmt: skip
    command.add_argument("model", help="folder or Hub id")
    sizes = "of the input; may be repeated (default: 512 512, 512 1024 and 1024 2048)"
    add_size(command, "--size", sizes, action="append")
    add(command, "--batch_size", type=whole(1, 10**6), default=1, help="images in a pass")
    add_device(command)
    add(command, "--precision", default="fp32", choices=PRECISIONS, help="of the passes")
    flag(command, "--channels_last", "lay maps out with the channels last")
    flag(command, "--compile", "with torch.compile")
    add(command, "--warmup", type=whole(0), default=10, help="passes before those that count")
    add(command, "--repeats", type=whole(1), default=40, help="passes that count")
    limit = "limit for a size; at least 3 passes count"
    add(command, "--max_seconds", type=number(at_most=1e6), default=30.0, help=limit)
    flag(command, "--no_memory", "leave peak memory out, which takes one more pass")
    add_json(command, "print JSON instead of the table")
    add(command, "--output", type=Path, metavar="FILE", help="also write the rows to this JSON file")
    flag(command, "--overwrite", "replace that file if it is there")

    command = add_command(
        commands, "datasets", "list the benchmarks, describe one, or check its files", "[NAME] [options]",
        run=_datasets, example="camvid --data_dir data/camvid",
    )  # fmt: skip
    command.add_argument("name", nargs="?", help="benchmark to describe")
    add(command, "--data_dir", help="folder with its files: looks at every split, and at its first pair")
    add_json(command, "print JSON")


def _evaluate(model: str, dataset: str, split: str, as_json: bool, **options: Any) -> None:
    settings = inference_settings(options)
    from ..evaluation.command import evaluate_saved
    from ..recipes import parse_json_object

    hide_loading_bars()
    choice = {"name": dataset, "split": split, **given({name: options.pop(name) for name in _OF_DATA})}
    if "label_map" in choice:
        choice["label_map"] = parse_json_object("label_map", choice["label_map"])
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        scores = evaluate_saved(model, choice, settings=settings, **options)
    if as_json and os.environ.get("RANK", "0") == "0":
        shown = {name: value for name, value in scores.items() if name != "confusion_matrix"}
        plain = json.loads(json.dumps(shown, default=str), parse_constant=lambda _: None)  # NaN is not JSON
        print(json.dumps(plain, indent=2))


def _predict(
    model: str,
    inputs: list[str],
    output_dir: str,
    dataset: str | None,
    as_labels: bool,
    confidence: float | None,
    overwrite: bool,
    **options: Any,
) -> None:
    hide_loading_bars()
    options["settings"] = inference_settings(options)
    if not as_labels:
        from ..inference.predictions import predict_images

        if confidence is not None:
            raise ValueError("--confidence is for --as_labels: add it, or leave it out.")
        done = predict_images(model, inputs, output_dir, dataset=dataset, overwrite=overwrite, **options)
        print(f"{len(done)} images segmented in {output_dir}")
        return
    from ..inference.predictions import write_pseudo_labels

    if overwrite or dataset:
        raise ValueError("--as_labels writes a new folder, without colours: leave out --overwrite and --dataset.")
    options |= {} if confidence is None else {"confidence": confidence}
    count, labelled = write_pseudo_labels(model, inputs, output_dir, **options)
    print(f"{count} images with {labelled:.1%} of their pixels labelled in {output_dir}; train on them with")
    print(f"  --dataset {output_dir} --class_names <the list in {output_dir}/classes.json>")


def _profile(
    model: str,
    size: list[list[int]] | None,
    device: str | None,
    no_memory: bool,
    as_json: bool,
    output: Path | None,
    overwrite: bool,
    **settings: Any,
) -> None:
    if overwrite and not output:
        raise ValueError("--overwrite is for --output, which is missing.")
    if output and output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists; give another --output, or --overwrite.")
    from ..cost import ProfileSettings, profile_rows, write_profile
    from ..cost.latency import HEADER, SIZES

    hide_loading_bars()
    check_device(device)
    sizes = [(height, width) for height, width in size] if size else SIZES
    rows: list[Any] = []
    for row in profile_rows(model, sizes, settings=ProfileSettings(**settings, memory=not no_memory), device=device):
        if not as_json:
            print(row.format() if rows else f"{row.describe()}\n{HEADER}\n{row.format()}", flush=True)
        rows.append(row)
        if output:  # after each row, so that none is lost if a larger input does not fit
            write_profile(output, model, rows)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    print("GMACs: thousand million multiply-accumulates of one image (1 MAC = 2 FLOPs).")
    loads, cores = [row.load_average for row in rows if row.load_average is not None], os.cpu_count() or 1
    if loads and loads[0] > _BUSY * cores:  # the later ones are of our own making
        print(f"note: this machine was busy ({loads[0]:.1f} programs on {cores} cores): times are too long.")
    if output:
        print(f"written: {output}")


def _datasets(name: str | None, data_dir: str | None, as_json: bool) -> None:
    from ..data.benchmarks import BENCHMARKS, get_benchmark

    if name is not None and data_dir is not None:
        _check_files(name, data_dir, as_json)
        return
    if data_dir is not None:
        raise ValueError("--data_dir needs the benchmark's name: afdcd datasets NAME --data_dir FOLDER.")
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
        print(row.name)
        print("\n".join(f"{key:<9}{text}" for key, text in {**shown, "cite": row.citation}.items() if text))
        print(f"classes  {row.num_labels}, {row.ignore_index} = ignored")
        print("\n".join(f"  {index:>3}  {one}" for index, one in enumerate(row.classes)))


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
