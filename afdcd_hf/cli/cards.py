"""`afdcd card` and `afdcd verify`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from .command import PRECISIONS, add, add_command, add_device, add_size, flag, hide_loading_bars, whole

_FACTS = ("repo_id", "license", "license_name", "license_link", "base_model", "teacher")


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file."""
    text = (
        "render a model's card again from its card_facts.json, with what you add; a README.md written by hand stays, "
        "and the card goes beside it"
    )
    command = add_command(
        commands,
        "card",
        text,
        "DIR [options]",
        example="afdcd card runs/mine --repo_id me/student --license apache-2.0",
    )
    command.add_argument("folder", metavar="DIR", help="folder of a saved model")
    add(command, "--repo_id", metavar="USER/NAME", help="its repository on the Hub, for the examples")
    add(command, "--title", help="title of the card (default: the folder's name)")
    add(command, "--license", help='of the weights, an identifier of the Hub such as apache-2.0, or "other"')
    add(command, "--license_name", help='name of the licence, with "other"')
    add(command, "--license_link", metavar="URL", help='its text, with "other"')
    add(command, "--base_model", metavar="HUB_ID", help="weights it started from, e.g. timm/resnet18.a1_in1k")
    add(command, "--teacher", help="name or Hub id of its teacher")
    add(command, "--dataset_title", help="name of the data set as people write it")
    add(command, "--dataset_id", metavar="USER/NAME", help="the data set on the Hub, for its table of results")
    add(command, "--reported", nargs=2, metavar=("PERCENT", "SOURCE"), help="published mIoU, and where it stands")
    add(command, "--results", metavar="JSON", help="results.json of `afdcd evaluate`, for other scores")
    add(command, "--picture", nargs=2, action="append", default=[], metavar=("FILE", "CAPTION"), help="may be repeated")
    add(command, "--tag", action="append", default=[], help="may be repeated")
    add(command, "--note", action="append", default=[], help="a paragraph for the reader; may be repeated")
    speed = command.add_argument_group("speed on this machine")
    flag(speed, "--latency", "measure it")
    add_size(speed, "--size", "of the input; may be repeated", action="append")
    add_device(speed)
    add(speed, "--precision", choices=PRECISIONS, help="of the passes (default fp32)")
    command.set_defaults(run=_card)

    text = (
        "check the score that a model card claims; evaluates under its protocol. Exit status 0: it holds, 1: it "
        "does not, 2: it could not be checked"
    )
    command = add_command(
        commands, "verify", text, "REPO_OR_DIR [options]", example="afdcd verify me/my-student --data_dir data/camvid"
    )
    command.add_argument("model", metavar="REPO_OR_DIR", help="folder or Hub id")
    add(command, "--data_dir", help="folder of the benchmark's files")
    add(command, "--tolerance", type=float, default=0.05, help="in points of mIoU %%, for other rounding")
    add(command, "--dataset", help="where the data set lies, if the card names a folder of its author's")
    add(command, "--list_file", help="the list of images, if the card names one")
    add(command, "--revision", help="branch, tag or commit on the Hub")
    add_device(command)
    add(command, "--num_workers", type=whole(0, 1024), default=0, help="processes that decode images")
    flag(command, "--json", "print JSON")
    command.set_defaults(run=_verify)


def _card(args: argparse.Namespace) -> None:
    from ..hub.card_facts import ReportedResults
    from ..hub.card_update import update_card

    given = [name for name in ("size", "device", "precision") if getattr(args, name) is not None]
    if given and not args.latency:
        raise ValueError(f"--{given[0]} is for --latency, which is missing.")
    hide_loading_bars()
    changes = {name: getattr(args, name) for name in _FACTS} | {"model_name": args.title}
    if args.reported:
        changes["reported"] = ReportedResults(_fraction(args.reported[0]), args.reported[1])
    if args.latency:
        changes["latency"] = _latency(args)
    dataset = {"pretty_name": args.dataset_title, "hub_id": args.dataset_id}
    card = update_card(
        args.folder,
        results=args.results,
        pictures=args.picture,
        dataset={name: value for name, value in dataset.items() if value is not None},
        tags=args.tag,
        notes=args.note,
        **{name: value for name, value in changes.items() if value is not None},
    )
    print(f"written: {card}")


def _latency(args: argparse.Namespace) -> list:
    from ..hub.card_update import measure_latency

    sizes = [tuple(size) for size in args.size] if args.size else None
    return measure_latency(args.folder, sizes, device=args.device, precision=args.precision or "fp32")


def _fraction(percent: str) -> float:
    try:
        value = float(percent)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise ValueError(f"--reported {percent}: a percentage from 0 to 100 is expected, such as 76.43.")
    return value / 100


def _verify(args: argparse.Namespace) -> int:
    from ..hub.verify import format_verification, verify

    hide_loading_bars()
    done = verify(
        args.model,
        args.data_dir,
        tolerance=args.tolerance / 100,
        dataset=args.dataset,
        list_file=args.list_file,
        revision=args.revision,
        device=args.device,
        num_workers=args.num_workers,
    )
    print(json.dumps(asdict(done), indent=2, default=str) if args.json else format_verification(done))
    return 0 if done.holds else 1
