"""`afdcd evaluate` and `afdcd predict`."""

from __future__ import annotations

import argparse

from .options import add_inference_options, hide_loading_bars, inference_settings


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file."""
    command = commands.add_parser("evaluate", help="score a saved model on a labelled dataset")
    command.add_argument("--model", required=True, help="folder, Hub id or .onnx file")
    _add_dataset_options(command)
    command.add_argument("--batch-size", type=int, default=1)
    command.add_argument("--num-workers", type=int, default=0, help="processes that decode images")
    command.add_argument("--absent-as-zero", action="store_true", help="a class absent from truth and prediction is 0")
    command.add_argument(
        "--boundary-ratio",
        type=float,
        help="also score boundaries: Boundary IoU in bands of this share of the image diagonal (Cityscapes: 0.005)",
    )
    add_inference_options(command)
    command.add_argument("--output", help="results.json to write; the confusion matrix goes beside it")
    command.add_argument("--save-predictions", metavar="DIR", help="label maps as PNG; for Cityscapes with a zip")
    command.add_argument("--overwrite", action="store_true", help="replace files of an earlier evaluation")
    command.set_defaults(run=_evaluate)

    command = commands.add_parser("predict", help="segment images")
    command.add_argument("inputs", nargs="+", metavar="IMAGE_OR_DIR")
    command.add_argument("--model", required=True, help="folder, Hub id or .onnx file")
    command.add_argument("--output", required=True, help="folder for class ids, colours and overlays")
    command.add_argument(
        "--dataset", help="benchmark whose colours to use; by default the one with the model's classes"
    )
    command.add_argument("--as-labels", action="store_true", help="write a data set of pseudo-labels to train on")
    command.add_argument(
        "--confidence", type=float, help="with --as-labels: ignore pixels of lower probability (default 0.9)"
    )
    add_inference_options(command)
    command.add_argument("--overwrite", action="store_true", help="replace files of an earlier run")
    command.set_defaults(run=_predict)


def _add_dataset_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dataset", required=True, help="benchmark (`afdcd datasets`), or folder or Hub id")
    command.add_argument("--data-dir", help="folder of the benchmark's files")
    command.add_argument("--split", default="val")
    command.add_argument("--list-file", help="list of images (and labels) to score instead of the whole split")
    command.add_argument("--max-samples", type=int, help="score only the first so many images")
    command.add_argument("--image-column", help="of a dataset that is no benchmark (default image)")
    command.add_argument("--label-column", help="likewise (default label)")
    command.add_argument("--label-map", metavar="JSON", help="value in its labels -> class id, e.g. '{\"0\": 255}'")
    command.add_argument(
        "--labels-as", metavar="BENCHMARK", help="its labels hold the values of this benchmark's files"
    )


def _evaluate(args: argparse.Namespace) -> None:
    from ..evaluation.command import evaluate_saved
    from ..recipes import parse_json_object

    hide_loading_bars()
    options = ("data_dir", "max_samples", "list_file", "image_column", "label_column", "labels_as")
    choice = {name: getattr(args, name) for name in options if getattr(args, name) is not None}
    if args.label_map is not None:
        choice["label_map"] = parse_json_object("label_map", args.label_map)
    evaluate_saved(
        args.model,
        {"name": args.dataset, "split": args.split, **choice},
        settings=inference_settings(args),
        device=args.device,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        absent_as_zero=args.absent_as_zero,
        boundary_ratio=args.boundary_ratio,
        output=args.output,
        save_predictions=args.save_predictions,
        overwrite=args.overwrite,
    )


def _predict(args: argparse.Namespace) -> None:
    hide_loading_bars()
    options = {"settings": inference_settings(args), "device": args.device}
    if args.as_labels:
        _write_labels(args, options)
        return
    from ..inference.predictions import predict_images

    if args.confidence is not None:
        raise ValueError("--confidence is for --as-labels: add it, or leave it out.")
    done = predict_images(
        args.model, args.inputs, args.output, dataset=args.dataset, overwrite=args.overwrite, **options
    )
    print(f"{len(done)} images segmented in {args.output}")


def _write_labels(args: argparse.Namespace, options: dict) -> None:
    from ..inference.pseudo_labels import write_pseudo_labels

    if args.overwrite or args.dataset:
        raise ValueError("--as-labels writes a new folder, without colours: leave out --overwrite and --dataset.")
    options |= {} if args.confidence is None else {"confidence": args.confidence}
    number, labelled = write_pseudo_labels(args.model, args.inputs, args.output, **options)
    print(f"{number} images with {labelled:.1%} of their pixels labelled in {args.output}; train on them with")
    print(f"  --dataset {args.output} --class_names <the list in {args.output}/classes.json>")
