"""`afdcd datasets`."""

from __future__ import annotations

import argparse


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the command of this file."""
    command = commands.add_parser("datasets", help="list the benchmarks, describe one, or check its files")
    command.add_argument("name", nargs="?", help="benchmark to describe")
    command.add_argument("--data-dir", help="folder with its files: looks at every split, and at its first pair")
    command.set_defaults(run=_datasets)


def _datasets(args: argparse.Namespace) -> None:
    from ..data.benchmarks import BENCHMARKS, get_benchmark

    if args.name is None:
        if args.data_dir is not None:
            raise ValueError("--data-dir needs the benchmark's name: afdcd datasets NAME --data-dir FOLDER.")
        for row in BENCHMARKS.values():
            sizes = ", ".join(f"{split} {size}" for split, size in row.split_sizes.items())
            print(f"{row.name:<16}{row.num_labels:>4} classes   {sizes}")
    elif args.data_dir is None:
        print(_described(get_benchmark(args.name)))
    else:
        _check(args.name, args.data_dir)


def _described(row) -> str:
    sizes = ", ".join(f"{split} {size}" for split, size in row.split_sizes.items())
    facts = {"files": row.layout, "images": sizes, "licence": row.licence, "from": row.homepage, "cite": row.citation}
    lines = [f"{name:<9}{text}" for name, text in facts.items() if text]
    classes = [f"  {index:>3}  {name}" for index, name in enumerate(row.classes)]
    return "\n".join([row.name, *lines, f"classes  {row.num_labels}, {row.ignore_index} = ignored", *classes])


def _check(name: str, data_dir: str) -> None:
    from ..data.loading import check_layout

    checks = check_layout(name, data_dir)
    for check in checks:
        print(
            f"{check.split:<10} {check.found} of {check.expected} images"
            + (f": {check.problem}" if check.problem else "")
        )
    if all(check.problem for check in checks):
        raise ValueError(f"no split of {name} can be used in {data_dir}.")
