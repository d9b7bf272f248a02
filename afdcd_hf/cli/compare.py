"""`afdcd compare`."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

from .command import add, add_command, flag, hide_loading_bars, whole


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the command of this file."""
    text = (
        "train several methods on the same budget and seeds, and put scores and cost in a table; further options "
        "(--data_dir D, --teacher T, --total_batch_size 8 ...) replace keys of the plan for all runs. A second call "
        "with the same --output_dir continues where the first was stopped"
    )
    command = add_command(
        commands, "compare", text, "--config PLAN [options]", example="afdcd compare --config scenes --seeds 0 1",
        old={"--output": "--output_dir"},
    )  # fmt: skip
    add(command, "--config", metavar="PLAN", help="a plan of the package (--list) or a YAML file")
    add(command, "--output_dir", help="folder for runs, table and charts (default runs/compare_PLAN)")
    add(command, "--seeds", type=whole(0, 2**32 - 1), nargs="+", help="instead of the plan's")
    add(command, "--methods", nargs="+", help="only these of the plan's")
    add(command, "--merge", metavar="DIR", nargs="+", help="train nothing: one report of several machines' runs")
    flag(command, "--list", "list the plans of the package")
    flag(command, "--json", "print a row for each run as JSON instead of the table")
    flag(command, "--dry_run", "check the plan and its data, and list the runs")
    command.set_defaults(run=_compare, takes_recipe_options=True, on_interruption="a second call continues")


def _compare(args: argparse.Namespace, rest: list[str]) -> None:
    from ..recipes import list_comparisons

    if args.list:
        print("\n".join(list_comparisons()))
        return
    if args.config is None:
        raise ValueError(f"--config PLAN is missing: a YAML file, or one of {', '.join(list_comparisons())}.")
    _run(args, _overrides(rest))


def _run(args: argparse.Namespace, overrides: dict[str, Any]) -> None:
    from ..compare.comparison import check_plan, find_data, merge_comparisons, run_comparison
    from ..compare.plan import load_plan
    from ..compare.table import TABLE_NAME

    hide_loading_bars()
    plan = load_plan(args.config, overrides).narrowed(args.methods, args.seeds)
    output = Path(args.output_dir or f"runs/compare_{Path(args.config).stem}{'_merged' if args.merge else ''}")
    if args.dry_run:
        check_plan(plan, output)
        find_data(plan)
        print(plan.described())
        return
    outcome = None
    if args.merge:
        merge_comparisons(plan, args.merge, output)
    else:
        outcome = run_comparison(plan, output, lambda line: print(line, file=sys.stderr, flush=True))
    if args.json:
        with (output / "results.csv").open(encoding="utf-8", newline="") as file:
            print(json.dumps(list(csv.DictReader(file)), indent=2))
    else:
        print((output / TABLE_NAME).read_text(encoding="utf-8"), end="")
        print(f"\nTable, results.csv, charts{'' if args.merge else ' and all runs'} are in {output}.")
    if outcome is not None and outcome.failed:
        failed = "\n".join(f"{place}:\n{lines}" for place, lines in outcome.failed.items())
        raise ValueError(f"{len(outcome.failed)} of the runs failed; a second call tries them again.\n{failed}")


def _overrides(words: list[str]) -> dict[str, Any]:
    """`--data_dir D --crop_size 192 256` as recipe keys; several values are a list."""
    from ..training.arguments import read_value, words_by_option

    return {key: read_value(key, given) for key, given in words_by_option(words).items()}
