"""The `afdcd` command. Heavy imports wait until a command needs them, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

_TRAINING_HELP = (
    "Every argument can stand in the recipe or on the command line, which wins: --max_steps 100, "
    "--af_dcd.feature_weight 1e-5. --config RECIPE --help lists them all."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a mistake of the user's gives one line on standard error and exit status 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args, rest = _parser().parse_known_args(argv)
    _quieten()
    try:
        return args.run(args, rest)
    except KeyboardInterrupt:
        goes_on = "; --resume_from_checkpoint last goes on from the last checkpoint"
        hint = goes_on if args.command in ("train", "distill") else ""
        print(f"\nafdcd {args.command}: interrupted{hint}", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:  # OSError: files missing, present, unreadable, or a disk that is full
        if os.environ.get("AFDCD_TRACEBACK"):
            raise
        print(f"afdcd {args.command}: {error}", file=sys.stderr)
        print("(set AFDCD_TRACEBACK=1 to see where this comes from)", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="afdcd", description="Small, accurate semantic segmenters by distillation.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for name, run, text in (
        ("train", _train, "train a network on the labels alone (teachers, baselines)"),
        ("distill", _distill, "train a student with a teacher's help"),
    ):
        command = commands.add_parser(name, help=text, description=f"{text}. {_TRAINING_HELP}", add_help=False)
        command.add_argument("--config", metavar="RECIPE", help="name of a recipe (`afdcd recipes`) or a YAML file")
        command.set_defaults(run=run)

    command = commands.add_parser("evaluate", help="score a saved model on a labelled dataset")
    command.add_argument("--model", required=True, help="folder or Hub id")
    command.add_argument("--dataset", required=True, help="benchmark name, or folder or Hub id of a dataset")
    command.add_argument("--data-dir", help="folder of the benchmark's files")
    command.add_argument("--split", default="val")
    command.add_argument("--batch-size", type=int, default=1)
    command.add_argument("--num-workers", type=int, default=0, help="processes that decode images")
    command.add_argument("--max-samples", type=int, help="score only the first so many images")
    command.add_argument("--absent-as-zero", action="store_true", help="a class absent from truth and prediction is 0")
    command.add_argument("--device", help="e.g. cuda or cpu; by default a GPU where there is one")
    command.add_argument("--output", help="where to write results.json")
    command.set_defaults(run=_evaluate)

    command = commands.add_parser("quickstart", help="teacher, student alone and distilled student on generated scenes")
    command.add_argument("--output", default="runs/quickstart", help="folder to write (default %(default)s)")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=_quickstart)

    command = commands.add_parser("recipes", help="list the recipes, or print one")
    command.add_argument("name", nargs="?")
    command.set_defaults(run=_recipes)
    return parser


def _train(args: argparse.Namespace, rest: list[str]) -> int:
    from .runs import train

    _hide_loading_bars()
    print(f"saved in {train(args.config, rest).folder}")
    return 0


def _distill(args: argparse.Namespace, rest: list[str]) -> int:
    from .runs import distill

    _hide_loading_bars()
    print(f"saved in {distill(args.config, rest).folder}")
    return 0


def _evaluate(args: argparse.Namespace, rest: list[str]) -> int:
    _refuse(rest)
    from .scoring import score

    _hide_loading_bars()
    score(args)
    return 0


def _quickstart(args: argparse.Namespace, rest: list[str]) -> int:
    _refuse(rest)
    from .quickstart import quickstart

    _hide_loading_bars()
    quickstart(args.output, args.seed)
    return 0


def _recipes(args: argparse.Namespace, rest: list[str]) -> int:
    _refuse(rest)
    from .recipes import list_recipes, recipe_path

    print(recipe_path(args.name).read_text() if args.name else "\n".join(list_recipes()))
    return 0


def _refuse(rest: list[str]) -> None:
    if rest:
        raise ValueError(f"unknown arguments {' '.join(rest)}; --help lists the known ones.")


def _quieten() -> None:
    """Our own messages from the main process only; one progress bar at a time."""
    main_process = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("afdcd_hf").setLevel(logging.INFO if main_process else logging.ERROR)


def _hide_loading_bars() -> None:
    """No bars for reading and writing weights, which takes no time; training and evaluation keep theirs."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    enable_progress_bars()  # downloads from the Hub keep theirs


if __name__ == "__main__":
    sys.exit(main())
