"""`afdcd evaluate` and `afdcd predict`."""

from __future__ import annotations

import argparse

from .options import add_inference_options, hide_loading_bars, inference_settings


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file."""
    command = commands.add_parser("evaluate", help="score a saved model on a labelled dataset")
    command.add_argument("--model", required=True, help="folder or Hub id")
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

    command = commands.add_parser("predict", help="segment pictures")
    command.add_argument("inputs", nargs="+", metavar="IMAGE_OR_DIR")
    command.add_argument("--model", required=True, help="folder or Hub id")
    command.add_argument("--output", required=True, help="folder for class ids, colours and overlays")
    command.add_argument(
        "--dataset", help="benchmark whose colours to use; by default the one with the model's classes"
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
    from ..evaluation.command import score

    hide_loading_bars()
    score(args, inference_settings(args))


def _predict(args: argparse.Namespace) -> None:
    from ..inference.predictions import predict_images

    hide_loading_bars()
    done = predict_images(
        args.model,
        args.inputs,
        args.output,
        dataset=args.dataset,
        settings=inference_settings(args),
        device=args.device,
        overwrite=args.overwrite,
    )
    print(f"{len(done)} pictures segmented in {args.output}")
