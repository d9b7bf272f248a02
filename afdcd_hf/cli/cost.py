"""`afdcd profile`."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .command import (
    PRECISIONS,
    add,
    add_command,
    add_device,
    add_size,
    check_device,
    flag,
    hide_loading_bars,
    number,
    whole,
)

# beyond this share of the cores, others' programs are in the figures
_BUSY = 0.5


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the command of this file."""
    text = (
        "count parameters and multiply-accumulates (MACs) of a model, and measure time and memory of its forward pass; "
        "on this machine. Reading and resizing images and stretching the logits are not in"
    )
    command = add_command(
        commands,
        "profile",
        text,
        "MODEL [options]",
        example="afdcd profile runs/mine --size 512 1024 --output cost.json",
    )
    command.add_argument("model", help="folder or Hub id")
    add_size(
        command, "--size", "of the input; may be repeated (default: 512 512, 512 1024 and 1024 2048)", action="append"
    )
    add(command, "--batch_size", type=whole(1, 10**6), default=1, help="images in a pass")
    add_device(command)
    add(command, "--precision", default="fp32", choices=PRECISIONS, help="of the passes")
    flag(command, "--channels_last", "lay maps out with the channels last")
    flag(command, "--compile", "with torch.compile")
    add(command, "--warmup", type=whole(0), default=10, help="passes before those that count")
    add(command, "--repeats", type=whole(1), default=40, help="passes that count")
    add(
        command,
        "--max_seconds",
        type=number(at_most=1e6),
        default=30.0,
        help="limit for a size; at least 3 passes count",
    )
    flag(command, "--no_memory", "leave peak memory out, which takes one more pass")
    flag(command, "--json", "print JSON instead of the table")
    add(command, "--output", type=Path, metavar="FILE", help="also write the rows to this JSON file")
    flag(command, "--overwrite", "replace that file if it is there")
    command.set_defaults(run=_profile)


def _profile(args: argparse.Namespace) -> None:
    if args.overwrite and not args.output:
        raise ValueError("--overwrite is for --output, which is missing.")
    if args.output and args.output.exists() and not args.overwrite:
        raise FileExistsError(f"{args.output} exists; give another --output, or --overwrite.")
    from ..cost import ProfileSettings, profile_rows, write_profile
    from ..cost.latency import HEADER, SIZES

    hide_loading_bars()
    check_device(args.device)
    names = ("batch_size", "precision", "channels_last", "compile", "warmup", "repeats", "max_seconds")
    settings = ProfileSettings(**{name: getattr(args, name) for name in names}, memory=not args.no_memory)
    sizes = [tuple(size) for size in args.size] if args.size else SIZES
    rows: list[Any] = []
    for row in profile_rows(args.model, sizes, settings=settings, device=args.device):
        if not args.json:
            print(row.format() if rows else f"{row.describe()}\n{HEADER}\n{row.format()}", flush=True)
        rows.append(row)
        if args.output:  # after each row, so that none is lost if a larger input does not fit
            write_profile(args.output, args.model, rows)
    print(json.dumps([asdict(row) for row in rows], indent=2) if args.json else _closing(rows))
    if args.output and not args.json:
        print(f"written: {args.output}")


def _closing(rows: list) -> str:
    notes = ["GMACs: thousand million multiply-accumulates of one image (1 MAC = 2 FLOPs)."]
    loads = [row.load_average for row in rows if row.load_average is not None]
    if loads and loads[0] > _BUSY * (os.cpu_count() or 1):  # the later ones are of our own making
        notes.append(
            f"note: this machine was busy ({loads[0]:.1f} programs on {os.cpu_count()} cores): times are too long."
        )
    return "\n".join(notes)
