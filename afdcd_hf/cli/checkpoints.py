"""`afdcd list` and `afdcd convert`: released checkpoints."""

from __future__ import annotations

import argparse


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file."""
    _add_list(commands)
    _add_convert(commands)


def _add_list(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("list", help="list the checkpoints that this project publishes")
    command.add_argument("--dataset", help="only those for this benchmark")
    command.add_argument("--json", action="store_true", help="everything that is known of them, as JSON")
    command.set_defaults(run=_list)


def _list(args: argparse.Namespace) -> None:
    from ..hub.zoo_table import select, to_json, to_table

    rows = select(args.dataset)
    print(to_json(rows) if args.json else to_table(rows))


def _add_convert(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("convert", help="turn a released .pth into a folder for from_pretrained")
    command.add_argument("--checkpoint", required=True, metavar="FILE", help="released .pth, or safetensors")
    command.add_argument("--network", help="its kind, such as deeplabv3_resnet18; an unknown one lists the known ones")
    command.add_argument("--dataset", help="benchmark it was trained on, for the names of its classes")
    command.add_argument("--classes", metavar="FILE", help="names of its classes instead, one a line")
    command.add_argument("--published", metavar="ID", help="the row of `afdcd list` that the file is, for the card")
    command.add_argument("--output", required=True, help="folder to make; with --backbone-only a .safetensors file")
    command.add_argument("--backbone-only", action="store_true", help="the file holds a backbone's ImageNet weights")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier conversion")
    command.set_defaults(run=_convert)


def _convert(args: argparse.Namespace) -> None:
    from .options import hide_loading_bars

    hide_loading_bars()
    written = _convert_backbone(args) if args.backbone_only else _convert_network(args)
    print(written)


def _convert_network(args: argparse.Namespace) -> str:
    from ..hub.conversion.checkpoints import convert_checkpoint
    from ..hub.conversion.reading import read_class_names
    from ..hub.zoo import get_checkpoint

    row = get_checkpoint(args.published) if args.published else None
    network = args.network or (row.network if row else None)
    if network is None:
        raise ValueError("--network is needed, such as deeplabv3_resnet18, or --published with a row of `afdcd list`.")
    folder = convert_checkpoint(
        args.checkpoint,
        network,
        args.output,
        dataset=args.dataset or (row.dataset if row else None),
        classes=read_class_names(args.classes) if args.classes else None,
        published=args.published,
        overwrite=args.overwrite,
    )
    return f"{folder} is ready for from_pretrained; `afdcd evaluate --model {folder} ...` scores it"


def _convert_backbone(args: argparse.Namespace) -> str:
    from ..hub.conversion.backbones import convert_backbone

    for name in ("dataset", "classes", "published"):
        if getattr(args, name):
            raise ValueError(f"--{name} has no place with --backbone-only: a backbone has no classes of a dataset.")
    if args.network is None:
        raise ValueError("--network is needed: resnet18, resnet101 or mobilenetv2.")
    file = convert_backbone(args.checkpoint, args.network, args.output, overwrite=args.overwrite)
    return f"{file} is ready for --pretrained_backbone"
