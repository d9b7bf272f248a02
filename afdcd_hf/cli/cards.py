"""`afdcd card` and `afdcd verify`."""

from __future__ import annotations

import argparse

from .options import hide_loading_bars


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file."""
    _add_card(commands)
    _add_verify(commands)


def _add_card(commands: argparse._SubParsersAction) -> None:
    text = (
        "render a network's model card again from its card_facts.json, with what you add here; a README.md written by "
        "hand stays, and the card goes beside it"
    )
    command = commands.add_parser("card", help="render a network's model card, and add facts to it", description=text)
    command.add_argument("folder", metavar="DIR", help="folder of a saved network")
    command.add_argument("--repo-id", metavar="USER/NAME", help="its repository on the Hub, for the examples")
    command.add_argument("--title", help="title of the card (default: the folder's name)")
    command.add_argument("--license", help='of the weights, an identifier of the Hub such as apache-2.0, or "other"')
    command.add_argument("--license-name", help='name of the licence, with "other"')
    command.add_argument("--license-link", metavar="URL", help='its text, with "other"')
    command.add_argument("--base-model", metavar="HUB_ID", help="weights it started from, e.g. timm/resnet18.a1_in1k")
    command.add_argument("--teacher", help="name or Hub id of its teacher")
    command.add_argument("--dataset-title", help="name of the data set as people write it")
    command.add_argument("--dataset-id", metavar="USER/NAME", help="the data set on the Hub, for its table of results")
    command.add_argument(
        "--reported", nargs=2, metavar=("PERCENT", "SOURCE"), help="published mIoU of this network, and where it stands"
    )
    command.add_argument("--results", metavar="JSON", help="results.json of `afdcd evaluate`, for other scores")
    command.add_argument(
        "--picture", nargs=2, action="append", default=[], metavar=("FILE", "CAPTION"), help="may be repeated"
    )
    command.add_argument("--tag", action="append", default=[], help="may be repeated")
    command.add_argument("--note", action="append", default=[], help="a paragraph for the reader; may be repeated")
    command.add_argument("--latency", action="store_true", help="measure its speed on this machine")
    command.add_argument(
        "--size", type=int, nargs=2, action="append", metavar=("H", "W"), help="of the input, with --latency"
    )
    command.add_argument("--device", help="with --latency: e.g. cuda or cpu; by default a GPU where there is one")
    command.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="with --latency (default fp32)")
    command.set_defaults(run=_card)


def _add_verify(commands: argparse._SubParsersAction) -> None:
    text = (
        "evaluate a network again under its card's protocol, and hold the number against the card's; exit status 0: it "
        "holds, 1: it does not, 2: it could not be checked"
    )
    command = commands.add_parser("verify", help="check the score that a model card claims", description=text)
    command.add_argument("model", metavar="REPO_OR_DIR", help="folder or Hub id")
    command.add_argument("--data-dir", help="folder of the benchmark's files")
    command.add_argument(
        "--tolerance", type=float, default=0.05, help="in points of mIoU %%, for other rounding (default %(default)s)"
    )
    command.add_argument("--dataset", help="where the data set lies, if the card names a folder of its author's")
    command.add_argument("--list-file", help="the list of images, if the card names one")
    command.add_argument("--revision", help="branch, tag or commit on the Hub")
    command.add_argument("--device", help="e.g. cuda or cpu; by default a GPU where there is one")
    command.add_argument("--num-workers", type=int, default=0, help="processes that decode images")
    command.set_defaults(run=_verify)


def _card(args: argparse.Namespace) -> None:
    from ..hub.card_facts import ReportedResults
    from ..hub.card_update import update_card

    hide_loading_bars()
    _check_latency_options(args)
    names = ("repo_id", "license", "license_name", "license_link", "base_model", "teacher")
    changes = {name: getattr(args, name) for name in names} | {"model_name": args.title}
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


def _check_latency_options(args: argparse.Namespace) -> None:
    given = [name for name in ("size", "device", "precision") if getattr(args, name) is not None]
    if given and not args.latency:
        raise ValueError(f"--{given[0]} is for --latency, which is not there.")


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


def _verify(args: argparse.Namespace) -> None:
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
    print(format_verification(done))
    if not done.holds:
        raise SystemExit(1)
