"""`afdcd train`, `distill`, `quickstart` and `recipes`."""

from __future__ import annotations

import argparse

from .options import hide_loading_bars

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
        command.set_defaults(run=run, takes_recipe_options=True)

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
    print(f"saved in {train(args.config, rest).folder}")


def _distill(args: argparse.Namespace, rest: list[str]) -> None:
    from ..training.runs import distill

    hide_loading_bars()
    print(f"saved in {distill(args.config, rest).folder}")


def _quickstart(args: argparse.Namespace) -> None:
    from ..training.quickstart import quickstart

    hide_loading_bars()
    quickstart(args.output, args.seed)


def _recipes(args: argparse.Namespace) -> None:
    from ..recipes import list_recipes, recipe_path

    print(recipe_path(args.name).read_text() if args.name else "\n".join(list_recipes()))
