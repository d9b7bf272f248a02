"""`afdcd push`: what concerns the Hub."""

from __future__ import annotations

import argparse


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file."""
    _add_push(commands)


def _add_push(commands: argparse._SubParsersAction) -> None:
    text = "publish a network's folder on the Hub: the network, its source and its card, nothing else"
    command = commands.add_parser("push", help="publish a network's folder on the Hub", description=text)
    command.add_argument("folder", metavar="DIR", help="folder of a saved network")
    command.add_argument("repo_id", metavar="REPO_ID", help="USER/NAME; made where there is no such repository")
    command.add_argument("--private", action="store_true", help="make the repository a private one")
    command.add_argument("--revision", help="branch to push to (default main); made where there is none")
    command.add_argument("--dry-run", action="store_true", help="show every file and its size, and send nothing")
    command.add_argument(
        "--overwrite-card", action="store_true", help="replace a README.md on the Hub that was written by hand"
    )
    command.set_defaults(run=_push)


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
        print(f"stays here: {', '.join(plan.left_out)}")
    for note in plan.notes:
        print(f"note: {note}")
    print(f"pushed: {plan.commit.commit_url}" if plan.commit else f"nothing was sent to {plan.repo_id} (dry run)")
