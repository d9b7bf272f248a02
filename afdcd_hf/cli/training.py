"""`afdcd train`, `distill`, `quickstart` and `recipes`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .options import hide_loading_bars

if TYPE_CHECKING:
    from ..training.runs import FinishedRun

_TRAINING_HELP = (
    "Every argument can stand in the recipe or on the command line, which wins: --max_steps 100, "
    "--af_dcd.feature_weight 1e-5. --config RECIPE --help lists them all."
)


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file."""
    for name, run, text in (
        ("train", _train, "train a network on the labels alone (teachers, baselines)"),
        ("distill", _distill, "train a student with a teacher's help"),
    ):
        command = commands.add_parser(name, help=text, description=f"{text}. {_TRAINING_HELP}", add_help=False)
        command.add_argument("--config", metavar="RECIPE", help="name of a recipe (`afdcd recipes`) or a YAML file")
        goes_on = "--resume_from_checkpoint last goes on from the last checkpoint"
        command.set_defaults(run=run, takes_recipe_options=True, goes_on=goes_on)

    command = commands.add_parser("quickstart", help="teacher, student alone and distilled student on generated scenes")
    command.add_argument("--output", default="runs/quickstart", help="folder to write (default %(default)s)")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=_quickstart)

    command = commands.add_parser("recipes", help="list the recipes, or print one")
    command.add_argument("name", nargs="?")
    command.set_defaults(run=_recipes)


def _train(args: argparse.Namespace, rest: list[str]) -> None:
    from ..training.runs import train

    hide_loading_bars()
    _announce(train(args.config, rest))


def _distill(args: argparse.Namespace, rest: list[str]) -> None:
    from ..training.runs import distill

    hide_loading_bars()
    _announce(distill(args.config, rest))


def _announce(run: FinishedRun) -> None:
    """Score and folder; the card's facts are there on the main process only."""
    if run.card is not None:
        measured, dataset = run.card.measured, run.card.dataset
        where = f"{dataset.name} {dataset.split} ({measured.num_images} images)"
        print(f"mIoU {100 * measured.mean_iou:.2f} % on {where}, from the saved weights")
        print(f"saved in {run.folder}")


def _quickstart(args: argparse.Namespace) -> None:
    from ..training.quickstart import quickstart

    hide_loading_bars()
    quickstart(args.output, args.seed)


def _recipes(args: argparse.Namespace) -> None:
    from ..recipes import list_recipes, recipe_path

    print(recipe_path(args.name).read_text() if args.name else "\n".join(list_recipes()))
