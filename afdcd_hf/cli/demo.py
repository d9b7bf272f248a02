"""`afdcd demo`: a web page for saved models, here or as a Space."""

from __future__ import annotations

import argparse
from pathlib import Path

from .command import add, add_command, add_device, flag, hide_loading_bars, titled, whole


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the command of this file."""
    text = "show in a web page what saved models make of an image, side by side; or write the page as a Space"
    command = add_command(
        commands, "demo", text, "[TITLE=]MODEL [...] [options]", example="afdcd demo teacher=runs/teacher runs/mine",
    )  # fmt: skip
    command.add_argument("models", nargs="+", metavar="[TITLE=]MODEL", help="folder or Hub id")
    add(command, "--example", nargs="+", default=[], metavar="IMG", help="images to offer on the page")
    add(command, "--longest_side", type=whole(32, 65536), default=1024, metavar="PX", help="shrink larger images")
    served = command.add_argument_group("served here")
    add(served, "--port", type=whole(1, 65535), help="by default the first free one from 7860 on")
    flag(served, "--share", "also make a public link through Gradio's servers")
    add_device(served)
    space = command.add_argument_group("as a Space")
    add(space, "--write_space", type=Path, metavar="DIR", help="write the folder of a Space, and serve nothing")
    add(space, "--title", help="of the Space on the Hub")
    flag(space, "--overwrite", "write into a folder that is not empty")
    command.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> None:
    unused = ("port", "share", "device") if args.write_space else ("title", "overwrite")
    given = [f"--{name}" for name in unused if getattr(args, name)]
    if given:  # an option that would do nothing is a mistake
        where = "with" if args.write_space else "without"
        raise ValueError(f"{' and '.join(given)} would do nothing {where} --write_space; leave it out.")
    hide_loading_bars()
    models = titled(args.models)
    _write(args, models) if args.write_space else _serve(args, models)


def _serve(args: argparse.Namespace, models: dict[str, str]) -> None:
    try:
        from ..demo.app import launch_demo
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError(str(error)) from error
    options = {"device": args.device, "longest_side": args.longest_side, "port": args.port, "share": args.share}
    launch_demo(models, args.example, **options)


def _write(args: argparse.Namespace, models: dict[str, str]) -> None:
    from ..demo.space import write_space

    title = {"title": args.title} if args.title else {}
    options = {"longest_side": args.longest_side, "overwrite": args.overwrite, **title}
    folder = write_space(models, args.write_space, args.example, **options)
    print(f"{folder} is a Space. Try it:  cd {folder} && python app.py")
    print("Publish it:  hf repos create YOU/NAME --type space --space-sdk gradio")
    print(f"             hf upload YOU/NAME {folder} . --repo-type space")
