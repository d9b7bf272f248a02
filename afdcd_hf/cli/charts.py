"""`afdcd chart`: pictures of finished runs and evaluations."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..structured_files import read_json
from .command import Command, add, add_command, flag, hide_loading_bars, titled, whole


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the command of this file."""
    text = "draw curves, per-class IoU, a confusion matrix or predictions"
    command = add_command(commands, "chart", text, "KIND ... [options]", example="afdcd chart curves runs/mine")
    kinds = command.add_subparsers(dest="kind", required=True, metavar="KIND", prog="afdcd chart", parser_class=Command)
    command.set_defaults(kinds=kinds)

    kind = _kind(kinds, "curves", _curves, "loss terms and mean IoU of one or more runs against the step", "RUN")
    kind.add_argument("runs", nargs="+", metavar="[TITLE=]RUN", help="folder of a run")

    kind = _kind(kinds, "classes", _classes, "IoU of every class, two or more results side by side", "RESULTS")
    kind.add_argument("results", nargs="+", metavar="[TITLE=]RESULTS", help="results.json, or a folder that holds one")
    add(kind, "--order", choices=("classes", "gain"), default="classes", help="of the classes")

    kind = _kind(kinds, "confusion", _confusion, "heat map of a confusion matrix", "CSV")
    kind.add_argument("matrix", metavar="CSV", help="the file that `afdcd evaluate --output` writes")
    add(kind, "--normalize", choices=("truth", "prediction"), default="truth", help="what adds up to 100 %%")

    kind = _kind(kinds, "predictions", _predictions, "image, truth and what saved models see", "MODEL --dataset NAME")
    kind.add_argument("models", nargs="+", metavar="[TITLE=]MODEL", help="folder or Hub id")
    add(kind, "--dataset", required=True, help="benchmark (`afdcd datasets`), or folder or Hub id")
    add(kind, "--split", default="val", help="of it")
    add(kind, "--data_dir", help="folder of the benchmark's files")
    add(kind, "--indices", type=whole(0), nargs="+", default=[0, 25, 50, 75], help="which images")


def _kind(
    kinds: argparse._SubParsersAction, name: str, draw: Callable[[argparse.Namespace], Path], text: str, usage: str
) -> Command:
    kind = add_command(kinds, name, text, f"{usage} ... [options]")
    add(kind, "--output", type=Path, default=Path(f"{name}.png"), help="picture to write")
    flag(kind, "--overwrite", "replace an existing picture")
    kind.set_defaults(run=lambda args: _draw(args, draw))
    return kind


def _draw(args: argparse.Namespace, draw: Callable[[argparse.Namespace], Path]) -> None:
    if args.output.exists() and not args.overwrite:
        raise FileExistsError(f"{args.output} exists; give another --output, or --overwrite.")
    print(draw(args))


def _curves(args: argparse.Namespace) -> Path:
    from ..charts import load_history, plot_training_curves

    return plot_training_curves({title: load_history(run) for title, run in titled(args.runs).items()}, args.output)


def _classes(args: argparse.Namespace) -> Path:
    from ..charts import plot_class_iou

    results = {title: _results(path, "per_category_iou") for title, path in titled(args.results).items()}
    return plot_class_iou(results, args.output, order=args.order)


def _confusion(args: argparse.Namespace) -> Path:
    from ..charts import plot_confusion_matrix
    from ..metrics.confusion_csv import read_confusion_csv

    return plot_confusion_matrix(*read_confusion_csv(args.matrix), args.output, normalize=args.normalize)


def _predictions(args: argparse.Namespace) -> Path:
    from ..inference.side_by_side import draw_predictions

    hide_loading_bars()
    models = titled(args.models)
    scored = {title: Path(folder) / "results.json" for title, folder in models.items()}
    notes = {
        title: f"mIoU {100 * _results(path, 'mean_iou'):.1f} %" for title, path in scored.items() if path.is_file()
    }
    return draw_predictions(
        models,
        args.output,
        dataset=args.dataset,
        split=args.split,
        data_dir=args.data_dir,
        indices=args.indices,
        notes=notes,
    )


def _results(path: str | Path, key: str) -> Any:
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    results: dict[str, Any] = read_json(path, "results.json of `afdcd evaluate`")
    if key not in results:
        raise ValueError(f"{path} has no {key}: it is not a results.json of `afdcd evaluate`.")
    return results[key]
