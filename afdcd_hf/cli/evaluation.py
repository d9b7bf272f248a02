"""`afdcd evaluate` and `afdcd predict`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import nullcontext, redirect_stdout

from .command import (
    Command,
    add,
    add_command,
    add_inference_options,
    flag,
    hide_loading_bars,
    inference_settings,
    number,
    whole,
)  # fmt: skip


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file."""
    command = add_command(
        commands, "evaluate", "score a saved model on a labelled dataset", "--model MODEL --dataset NAME [options]",
        example="afdcd evaluate --model runs/mine --dataset camvid --data_dir data/camvid --output results.json",
    )  # fmt: skip
    add(command, "--model", required=True, help="folder, Hub id or .onnx file")
    _add_dataset_options(command)
    add(command, "--batch_size", type=whole(1, 10**6), default=1, help="images in a forward pass")
    add(command, "--num_workers", type=whole(0, 1024), default=0, help="processes that decode images")
    flag(command, "--absent_as_zero", "a class absent from truth and prediction counts as 0")
    ratio = "also score boundaries: Boundary IoU in bands of this share of the image diagonal (Cityscapes: 0.005)"
    add(command, "--boundary_ratio", type=number(at_most=1), help=ratio)
    add_inference_options(command)
    add(command, "--output", metavar="FILE", help="results.json to write; the confusion matrix goes beside it")
    flag(command, "--json", "print the scores as JSON instead of a table")
    add(command, "--save_predictions", metavar="DIR", help="label maps as PNG; for Cityscapes with a zip")
    flag(command, "--overwrite", "replace files of an earlier evaluation")
    command.set_defaults(run=_evaluate)

    command = add_command(
        commands, "predict", "segment images", "IMAGE_OR_DIR [...] --model MODEL --output_dir DIR [options]",
        example="afdcd predict street.jpg --model runs/mine --output_dir out", old={"--output": "--output_dir"},
    )  # fmt: skip
    command.add_argument("inputs", nargs="+", metavar="IMAGE_OR_DIR", help="images, or folders of them")
    add(command, "--model", required=True, help="folder, Hub id or .onnx file")
    add(command, "--output_dir", required=True, help="folder for class ids, colours and overlays")
    add(command, "--dataset", help="benchmark whose colours to use; by default the one with the model's classes")
    add_inference_options(command)
    flag(command, "--as_labels", "write a data set of pseudo-labels to train on")
    confidence = "with --as_labels: ignore pixels of lower probability (default 0.9)"
    add(command, "--confidence", type=float, help=confidence)
    flag(command, "--overwrite", "replace files of an earlier run")
    command.set_defaults(run=_predict)


def _add_dataset_options(command: Command) -> None:
    group = command.add_argument_group("images and labels")
    add(group, "--dataset", required=True, help="benchmark (`afdcd datasets`), or folder or Hub id")
    add(group, "--data_dir", help="folder of the benchmark's files")
    add(group, "--split", default="val", help="of the dataset")
    add(group, "--list_file", help="list of images (and labels) to score instead of the whole split")
    add(group, "--max_samples", type=whole(), help="score only the first so many images")
    add(group, "--image_column", help="of a dataset that is not a benchmark (default image)")
    add(group, "--label_column", help="its labels (default label)")
    add(group, "--label_map", metavar="JSON", help="value in its labels -> class id, e.g. '{\"0\": 255}'")
    add(group, "--labels_as", metavar="BENCHMARK", help="its labels hold the values of this benchmark's files")


def _evaluate(args: argparse.Namespace) -> None:
    settings = inference_settings(args)
    from ..evaluation.command import evaluate_saved
    from ..recipes import parse_json_object

    hide_loading_bars()
    options = ("data_dir", "max_samples", "list_file", "image_column", "label_column", "labels_as")
    choice = {name: getattr(args, name) for name in options if getattr(args, name) is not None}
    if args.label_map is not None:
        choice["label_map"] = parse_json_object("label_map", args.label_map)
    names = ("device", "batch_size", "num_workers", "absent_as_zero", "boundary_ratio", "output", "save_predictions")
    given = {name: getattr(args, name) for name in (*names, "overwrite")}
    with redirect_stdout(sys.stderr) if args.json else nullcontext():
        scores = evaluate_saved(
            args.model, {"name": args.dataset, "split": args.split, **choice}, settings=settings, **given
        )
    if args.json and os.environ.get("RANK", "0") == "0":
        shown = {name: value for name, value in scores.items() if name != "confusion_matrix"}
        plain = json.loads(json.dumps(shown, default=str), parse_constant=lambda _: None)  # NaN is not JSON
        print(json.dumps(plain, indent=2))


def _predict(args: argparse.Namespace) -> None:
    hide_loading_bars()
    options = {"settings": inference_settings(args), "device": args.device}
    if args.as_labels:
        _write_labels(args, options)
        return
    from ..inference.predictions import predict_images

    if args.confidence is not None:
        raise ValueError("--confidence is for --as_labels: add it, or leave it out.")
    done = predict_images(
        args.model, args.inputs, args.output_dir, dataset=args.dataset, overwrite=args.overwrite, **options
    )
    print(f"{len(done)} images segmented in {args.output_dir}")


def _write_labels(args: argparse.Namespace, options: dict) -> None:
    from ..inference.pseudo_labels import write_pseudo_labels

    if args.overwrite or args.dataset:
        raise ValueError("--as_labels writes a new folder, without colours: leave out --overwrite and --dataset.")
    options |= {} if args.confidence is None else {"confidence": args.confidence}
    number, labelled = write_pseudo_labels(args.model, args.inputs, args.output_dir, **options)
    print(f"{number} images with {labelled:.1%} of their pixels labelled in {args.output_dir}; train on them with")
    print(f"  --dataset {args.output_dir} --class_names <the list in {args.output_dir}/classes.json>")
