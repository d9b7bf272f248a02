"""The `afdcd` command. Heavy imports wait until a command needs them, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import cards, charts, checkpoints, compare, cost, data, demo, evaluation, export, hub, training
from .messages import quieten
from .process_group import leave_process_group


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a mistake of the user's gives one line on standard error and exit status 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args, rest = _parser().parse_known_args(argv)
    quieten()
    try:
        if rest and not args.takes_recipe_options:
            raise ValueError(f"unknown arguments {' '.join(rest)}; --help lists the known ones.")
        args.run(args, rest) if args.takes_recipe_options else args.run(args)
        leave_process_group()
        return 0
    except KeyboardInterrupt as interruption:  # TrainingInterrupted among them: a signal that was answered by saving
        hint = f"; {args.goes_on}" if args.goes_on else ""
        print(f"\nafdcd {args.command}: {str(interruption) or 'interrupted'}{hint}", file=sys.stderr)
        return getattr(interruption, "exit_status", 130)
    except BrokenPipeError:  # `afdcd datasets voc | head`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain on leaving
        return 141
    except (ValueError, OSError) as error:  # OSError: files missing, present, unreadable, or a disk that is full
        if os.environ.get("AFDCD_TRACEBACK"):
            raise
        print(f"afdcd {args.command}: {error}", file=sys.stderr)
        print("(set AFDCD_TRACEBACK=1 to see where this comes from)", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="afdcd", description="Small, accurate semantic segmenters by distillation.")
    parser.set_defaults(takes_recipe_options=False, goes_on="")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (training, compare, evaluation, data, charts, demo, checkpoints, hub, cards, export, cost):
        group.add_commands(commands)
    return parser
