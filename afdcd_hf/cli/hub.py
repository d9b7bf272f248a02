"""`afdcd list`, `convert`, `push` and `release`: released checkpoints, and the Hub."""

from __future__ import annotations

import argparse

from .command import add, add_command, flag, hide_loading_bars


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file."""
    text = "list the checkpoints that this project publishes"
    command = add_command(commands, "list", text, "[options]", example="afdcd list --dataset camvid")
    add(command, "--dataset", help="only those for this benchmark")
    flag(command, "--json", "everything that is known of them, as JSON")
    command.set_defaults(run=_list)

    text = "turn a released .pth into a folder for from_pretrained"
    command = add_command(
        commands, "convert", text, "--checkpoint FILE --output_dir DIR [options]", old={"--output": "--output_dir"},
        example="afdcd convert --checkpoint x.pth --network deeplabv3_resnet18 --dataset camvid --output_dir r18",
    )  # fmt: skip
    add(command, "--checkpoint", required=True, metavar="FILE", help="released .pth, or safetensors")
    add(command, "--network", help="its kind, such as deeplabv3_resnet18; an unknown one lists the known ones")
    add(command, "--dataset", help="benchmark it was trained on, for the names of its classes")
    add(command, "--classes", metavar="FILE", help="names of its classes instead, one a line")
    add(command, "--published", metavar="ID", help="the row of `afdcd list` that the file is, for the card")
    add(command, "--output_dir", required=True, help="folder to make; with --backbone_only a .safetensors file")
    flag(command, "--backbone_only", "the file holds a backbone's ImageNet weights")
    flag(command, "--overwrite", "replace an earlier conversion")
    command.set_defaults(run=_convert)

    text = "publish a model's folder on the Hub; the model, its source and its card, nothing else"
    command = add_command(
        commands, "push", text, "DIR REPO_ID [options]", example="afdcd push runs/mine me/my-student --dry_run"
    )
    command.add_argument("folder", metavar="DIR", help="folder of a saved model")
    command.add_argument("repo_id", metavar="REPO_ID", help="USER/NAME; made where there is no such repository")
    flag(command, "--private", "make the repository a private one")
    add(command, "--revision", help="branch to push to (default main); made where there is none")
    flag(command, "--dry_run", "show every file and its size, and send nothing")
    flag(command, "--overwrite_card", "replace a README.md on the Hub that was written by hand")
    command.set_defaults(run=_push)

    text = (
        "publish the zoo from released files; convert, evaluate where the data is there, compare with the reported "
        "score, render the card, push, tag and collect. Exit status 1: a model failed"
    )
    command = add_command(
        commands, "release", text, "--config YAML [--publish]", example="afdcd release --config releases.yaml"
    )
    add(command, "--config", required=True, metavar="YAML", help="what to publish; docs/publish.md has an example")
    flag(command, "--publish", "do it, and do not only tell what would be done")
    command.set_defaults(run=_release)


def _list(args: argparse.Namespace) -> None:
    from ..hub.zoo import select, to_json, to_table

    rows = select(args.dataset)
    print(to_json(rows) if args.json else to_table(rows))


def _convert(args: argparse.Namespace) -> None:
    hide_loading_bars()
    print(_convert_backbone(args) if args.backbone_only else _convert_model(args))


def _convert_model(args: argparse.Namespace) -> str:
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
        args.output_dir,
        dataset=args.dataset or (row.dataset if row else None),
        classes=read_class_names(args.classes) if args.classes else None,
        published=args.published,
        overwrite=args.overwrite,
    )
    return f"{folder} is ready for from_pretrained; `afdcd evaluate --model {folder} ...` scores it"


def _convert_backbone(args: argparse.Namespace) -> str:
    from ..hub.conversion.checkpoints import convert_backbone

    for name in ("dataset", "classes", "published"):
        if getattr(args, name):
            raise ValueError(f"--{name} has no place with --backbone_only: a backbone has no classes of a dataset.")
    if args.network is None:
        raise ValueError("--network is needed: resnet18, resnet50, resnet101 or mobilenetv2.")
    file = convert_backbone(args.checkpoint, args.network, args.output_dir, overwrite=args.overwrite)
    return f"{file} is ready for --pretrained_backbone"


def _push(args: argparse.Namespace) -> None:
    from ..hub.push import push_folder

    plan = push_folder(
        args.folder,
        args.repo_id,
        private=args.private,
        revision=args.revision,
        dry_run=args.dry_run,
        overwrite_card=args.overwrite_card,
    )
    width = max(len(f"{file.size:,}") for file in plan.files)
    for file in plan.files:
        print(f"{file.size:>{width},} bytes  {file.name}")
    print(f"{plan.size:>{width},} bytes in {len(plan.files)} files")
    if plan.left_out:
        print(f"not uploaded: {', '.join(plan.left_out)}")
    for note in plan.notes:
        print(f"note: {note}")
    print(f"pushed: {plan.commit.commit_url}" if plan.commit else f"nothing was sent to {plan.repo_id} (dry run)")


def _release(args: argparse.Namespace) -> None:
    from ..hub.release import read_release_plan, release, to_markdown

    hide_loading_bars()
    found = release(read_release_plan(args.config), dry_run=not args.publish)
    print(to_markdown(found) + ("" if args.publish else "\n\nNothing was done (dry run); --publish does it."))
    if any(one.problem for one in found):
        raise SystemExit(1)
