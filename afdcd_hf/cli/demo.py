"""`afdcd demo`: a web page for saved models, here or as a Space."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import hide_loading_bars, titled


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the command of this file."""
    text = "show in a web page what saved models make of a picture, side by side; or write the page as a Space"
    command = commands.add_parser("demo", help=text, description=text)
    command.add_argument("models", nargs="+", metavar="[TITLE=]MODEL", help="folder or Hub id")
    command.add_argument("--example", nargs="+", default=[], metavar="IMG", help="pictures to offer on the page")
    command.add_argument(
        "--longest-side", type=int, default=1024, metavar="PX", help="shrink larger pictures (default %(default)s)"
    )
    served = command.add_argument_group("served here")
    served.add_argument("--port", type=int, help="by default the first free one from 7860 on")
    served.add_argument("--share", action="store_true", help="also make a public link through Gradio's servers")
    served.add_argument("--device", help="e.g. cuda or cpu; by default a GPU where there is one")
    space = command.add_argument_group("as a Space")
    space.add_argument("--write-space", type=Path, metavar="DIR", help="write the folder of a Space, and serve nothing")
    space.add_argument("--title", help="of the Space on the Hub")
    space.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    command.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> None:
    _check_options(args)
    hide_loading_bars()
    models = titled(args.models)
    _write(args, models) if args.write_space else _serve(args, models)


def _check_options(args: argparse.Namespace) -> None:
    """An option that would do nothing is a mistake."""
    unused = ("port", "share", "device") if args.write_space else ("title", "overwrite")
    given = [f"--{name}" for name in unused if getattr(args, name)]
    if given:
        where = "with" if args.write_space else "without"
        raise ValueError(f"{' and '.join(given)} would do nothing {where} --write-space; leave it out.")


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
