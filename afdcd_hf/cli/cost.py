"""`afdcd profile`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .options import hide_loading_bars

# beyond this share of the cores, others' programs are in the figures
_BUSY = 0.5


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the command of this file."""
    text = (
        "count parameters and multiply-accumulates (MACs) of a network, and measure the time and memory of its forward "
        "pass on this machine; reading and resizing pictures and stretching the logits are not in"
    )
    command = commands.add_parser("profile", help="parameters, MACs, latency and memory of a network", description=text)
    command.add_argument("model", help="folder or Hub id")
    command.add_argument(
        "--size",
        type=int,
        nargs=2,
        action="append",
        metavar=("H", "W"),
        help="of the input; may be repeated (default: 512 512, 512 1024 and 1024 2048)",
    )
    command.add_argument("--batch-size", type=int, default=1, help="images in a pass (default 1)")
    command.add_argument("--device", help="e.g. cuda or cpu; by default a GPU where there is one")
    command.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"), help="of the passes")
    command.add_argument("--channels-last", action="store_true", help="lay maps out with the channels last")
    command.add_argument("--compile", action="store_true", help="with torch.compile")
    command.add_argument("--warmup", type=int, default=10, help="passes before those that count (default 10)")
    command.add_argument("--repeats", type=int, default=40, help="passes that count (default 40)")
    command.add_argument(
        "--max-seconds", type=float, default=30.0, help="time limit for a size; at least 3 passes count (default 30)"
    )
    command.add_argument("--no-memory", action="store_true", help="leave peak memory out, which takes one more pass")
    command.add_argument("--json", type=Path, metavar="OUT", help="also write the rows to this file")
    command.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    command.set_defaults(run=_profile)


def _profile(args: argparse.Namespace) -> None:
    if args.overwrite and not args.json:
        raise ValueError("--overwrite is for --json, which is not there.")
    if args.json and args.json.exists() and not args.overwrite:
        raise FileExistsError(f"{args.json} exists; give another --json, or --overwrite.")
    from ..cost import ProfileSettings, profile_rows, write_profile
    from ..cost.latency import HEADER, SIZES

    hide_loading_bars()
    names = ("batch_size", "precision", "channels_last", "compile", "warmup", "repeats", "max_seconds")
    settings = ProfileSettings(**{name: getattr(args, name) for name in names}, memory=not args.no_memory)
    sizes = [tuple(size) for size in args.size] if args.size else SIZES
    rows = []
    for row in profile_rows(args.model, sizes, settings=settings, device=args.device):
        if not rows:
            print(f"{row.describe()}\n{HEADER}")
        print(row.format(), flush=True)  # large inputs take their time on a CPU
        rows.append(row)
        if args.json:  # after each row, so that none is lost if a larger input does not fit
            write_profile(args.json, args.model, rows)
    print(_closing(rows))
    if args.json:
        print(f"written: {args.json}")


def _closing(rows: list) -> str:
    notes = ["GMACs: thousand million multiply-accumulates of one image (1 MAC = 2 FLOPs)."]
    loads = [row.load_average for row in rows if row.load_average is not None]
    if loads and loads[0] > _BUSY * os.cpu_count():  # the later ones are of our own making
        notes.append(
            f"note: this machine was busy ({loads[0]:.1f} programs on {os.cpu_count()} cores): times are too long."
        )
    return "\n".join(notes)
