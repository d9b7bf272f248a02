"""`afdcd chart`: images of finished runs and evaluations; `afdcd demo`: a web page for saved models."""

from __future__ import annotations

import argparse
import shlex
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..structured_files import read_json
from .command import (
    Command,
    add_command,
    check_output,
    data_choice,
    given_options,
    hide_loading_bars,
    integer,
    parse_titles,
    reject,
)

_RESULTS = "results.json"


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file."""
    new = partial(add_command, commands)
    text = "draw curves, per-class IoU, a confusion matrix or predictions"
    command = new("chart", text, "KIND ... [options]", None, "curves runs/mine")
    kinds = command.add_subparsers(dest="kind", required=True, metavar="KIND", prog="afdcd chart", parser_class=Command)
    command.set_defaults(kinds=kinds)

    kind = _kind(kinds, "curves", _curves, "loss terms and mean IoU of one or more runs over the steps", "RUN")
    kind.add_argument("runs", nargs="+", metavar="[TITLE=]RUN", help="folder of a run")

    kind = _kind(kinds, "classes", _classes, "IoU of every class, two or more results side by side", "RESULTS")
    kind.add_argument("results", nargs="+", metavar="[TITLE=]RESULTS", help="results.json, or a folder that holds one")
    kind.add("--order", choices=("classes", "gain"), default="classes", help="order of the classes")
    kind.flag("--allow_other_protocol", "draw results of different protocols, with a note above the chart")

    kind = _kind(kinds, "confusion", _confusion, "heat map of a confusion matrix", "CSV")
    kind.add_argument("matrix", metavar="CSV", help="the file that `afdcd evaluate --output` writes")
    kind.add("--normalize", choices=("truth", "prediction"), default="truth", help="axis that adds up to 100 %%")

    kind = _kind(kinds, "predictions", _predictions, "image, truth and predictions of models", "MODEL --dataset NAME")
    kind.add_argument("models", nargs="+", metavar="[TITLE=]MODEL", help="folder or Hub id")
    kind.add("--dataset", required=True, help="benchmark (see `afdcd datasets`), folder or Hub id")
    kind.add("--split", default="val", help="split of the dataset")
    kind.add("--data_dir", help="folder of the benchmark's files")
    kind.add_data()
    kind.add("--indices", type=integer(0), nargs="+", default=[0, 25, 50, 75], help="indices of the images")
    kind.flag("--errors", "show below each prediction the wrong pixels in their predicted colour")

    text = "compare predictions of saved models side by side on a web page; or write the page as a Space"
    command = new("demo", text, "[TITLE=]MODEL [...] [options]", _demo, "teacher=runs/teacher runs/mine")
    command.add_argument("models", nargs="+", metavar="[TITLE=]MODEL", help="folder or Hub id")
    command.add("--example", nargs="+", default=[], metavar="IMG", help="images to offer on the page")
    command.add("--longest_side", type=integer(32, 65536), default=1024, metavar="PX", help="shrink larger images")
    command.group("local server")
    command.add("--port", type=integer(1, 65535), help="port (default: the first free one from 7860)")
    command.flag("--share", "also create a public link through Gradio's servers")
    command.add_device()
    command.group("Space")
    command.add("--write_space", type=Path, metavar="DIR", help="write the folder of a Space instead of serving")
    command.add("--title", help="title of the Space on the Hub")
    command.flag("--overwrite", "allow a folder that is not empty")


def _kind(kinds: argparse._SubParsersAction, name: str, draw: Callable[..., Path], text: str, usage: str) -> Command:
    kind = add_command(kinds, name, text, f"{usage} ... [options]", partial(_draw, draw))
    kind.add("--output", type=Path, default=Path(f"{name}.png"), help="image to write")
    kind.flag("--overwrite", "overwrite an existing image")
    return kind


def _draw(draw: Callable[..., Path], output: Path, overwrite: bool, **options: Any) -> None:
    check_output(output, overwrite)
    print(draw(output, **options))


def _curves(output: Path, runs: list[str]) -> Path:
    from ..charts import data_title, load_history, plot_training_curves

    by_title = parse_titles(runs)
    histories = {title: load_history(run) for title, run in by_title.items()}
    known = [_read(run, "protocol")["protocol"] for run in by_title.values() if (Path(run) / _RESULTS).is_file()]
    data = dict.fromkeys(filter(None, map(data_title, known)))
    return plot_training_curves(histories, output, title=" and ".join(data))


def _classes(output: Path, results: list[str], order: str, allow_other_protocol: bool) -> Path:
    from ..charts import data_title, plot_class_iou
    from ..charts.results import protocol_differences

    found = {title: _read(path, "per_category_iou") for title, path in parse_titles(results).items()}
    title = data_title(next(iter(found.values())).get("protocol"))
    if differences := "; ".join(protocol_differences(found)):
        if not allow_other_protocol:
            what = f"{', '.join(found)} were measured with different protocols: {differences}"
            raise ValueError(f"{what}. Evaluate them with the same options, or add --allow_other_protocol.")
        title = textwrap.fill(f"Different protocols: {differences}", 80, max_lines=4)
    by_class = {name: result["per_category_iou"] for name, result in found.items()}
    return plot_class_iou(by_class, output, title=title, order=order)


def _confusion(output: Path, matrix: str, normalize: str) -> Path:
    from ..charts import plot_confusion_matrix
    from ..charts.results import model_and_data
    from ..metrics.confusion_csv import read_confusion_csv

    results = Path(matrix.removesuffix("_confusion.csv") + ".json")
    title = model_and_data(_read(results, "protocol")["protocol"]) if results.is_file() else None
    return plot_confusion_matrix(*read_confusion_csv(matrix), output, title=title, normalize=normalize)


def _predictions(output: Path, models: list[str], dataset: str, split: str, **options: Any) -> Path:
    from ..charts import data_title
    from ..charts.results import protocol_differences
    from ..evaluation.results import dataset_context
    from ..inference.predictions import draw_predictions

    hide_loading_bars()
    by_title = parse_titles(models)
    results = {title: _read(run, "mean_iou") for title, run in by_title.items() if (Path(run) / _RESULTS).is_file()}
    choice = data_choice(dataset, split, options)
    here = data_title(dataset_context(**choice))
    scored = {title: result for title, result in results.items() if data_title(result.get("protocol")) == here}
    if protocol_differences(scored):  # side by side, the scores would look comparable
        scored = {}
    notes = {title: f"mIoU {100 * result['mean_iou']:.1f} %" for title, result in scored.items()}
    return draw_predictions(by_title, output, dataset=choice.pop("name"), notes=notes, **choice, **options)


def _read(path: str | Path, key: str) -> dict[str, Any]:
    """Read a results.json, or the one in a folder; ValueError if it lacks the key."""
    path = Path(path)
    path = path / _RESULTS if path.is_dir() else path
    results: dict[str, Any] = read_json(path, "results.json of `afdcd evaluate`")
    if key not in results:
        raise ValueError(f"{path} has no {key!r} key: it is not a results.json of `afdcd evaluate`.")
    return results


def _demo(models: list[str], example: list[str], longest_side: int, write_space: Path | None, **options: Any) -> None:
    unused = ("port", "share", "device") if write_space else ("title", "overwrite")
    why = f"cannot be used {'with' if write_space else 'without'} --write_space."
    reject({name: options[name] for name in unused}, why)
    options = given_options(options)
    hide_loading_bars()
    if write_space:
        from ..demo.space import write_space as write

        folder = write(parse_titles(models), write_space, example, longest_side=longest_side, **options)
        place = shlex.quote(str(folder))
        print(f"{folder} holds a Space. Run it locally:  cd {place} && python app.py")
        print("Publish it:  hf repos create YOU/NAME --type space --space-sdk gradio")
        print(f"             hf upload YOU/NAME {place} . --repo-type space")
        return
    try:
        from ..demo.app import launch_demo
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError(str(error)) from error
    launch_demo(parse_titles(models), example, longest_side=longest_side, **options)
