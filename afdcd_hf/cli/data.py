"""`afdcd datasets`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from .command import add, add_command, flag

_SHOWN = ("name", "num_labels", "ignore_index", "split_sizes", "layout", "licence", "homepage", "citation", "classes")


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the command of this file."""
    command = add_command(
        commands, "datasets", "list the benchmarks, describe one, or check its files", "[NAME] [options]",
        example="afdcd datasets camvid --data_dir data/camvid",
    )  # fmt: skip
    command.add_argument("name", nargs="?", help="benchmark to describe")
    add(command, "--data_dir", help="folder with its files: looks at every split, and at its first pair")
    flag(command, "--json", "print JSON")
    command.set_defaults(run=_datasets)


def _datasets(args: argparse.Namespace) -> None:
    from ..data.benchmarks import BENCHMARKS, get_benchmark

    if args.name is None:
        if args.data_dir is not None:
            raise ValueError("--data_dir needs the benchmark's name: afdcd datasets NAME --data_dir FOLDER.")
        rows = list(BENCHMARKS.values())
        print(_json([_facts(row) for row in rows]) if args.json else "\n".join(map(_line, rows)))
    elif args.data_dir is None:
        row = get_benchmark(args.name)
        print(_json(_facts(row)) if args.json else _described(row))
    else:
        _check(args.name, args.data_dir, as_json=args.json)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _facts(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _SHOWN}


def _sizes(row: Any) -> str:
    return ", ".join(f"{split} {size}" for split, size in row.split_sizes.items())


def _line(row: Any) -> str:
    return f"{row.name:<16}{row.num_labels:>4} classes   {_sizes(row)}"


def _described(row: Any) -> str:
    facts = {"files": row.layout, "images": _sizes(row), "licence": row.licence, "from": row.homepage}
    lines = [f"{name:<9}{text}" for name, text in {**facts, "cite": row.citation}.items() if text]
    classes = [f"  {index:>3}  {name}" for index, name in enumerate(row.classes)]
    return "\n".join([row.name, *lines, f"classes  {row.num_labels}, {row.ignore_index} = ignored", *classes])


def _check(name: str, data_dir: str, *, as_json: bool) -> None:
    from ..data.loading import check_layout

    checks = check_layout(name, data_dir)
    if as_json:
        print(_json([asdict(check) for check in checks]))
    for check in checks if not as_json else ():
        problem = f": {check.problem}" if check.problem else ""
        print(f"{check.split:<10} {check.found} of {check.expected} images{problem}")
    if all(check.problem for check in checks):
        raise ValueError(f"no split of {name} can be used in {data_dir}.")
