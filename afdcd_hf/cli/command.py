"""Shared by all command parsers: option spelling, value checks, help, and errors as exceptions."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..atomic_io import refuse_existing
from ..messages import close_names

if TYPE_CHECKING:
    from ..inference.segment import InferenceSettings

PRECISIONS = ("fp32", "bf16", "fp16")


class Command(argparse.ArgumentParser):
    """The parser of one command and the function that runs it. Options use underscores; dashes are accepted too.

    `run` is called with the options and returns the exit status, or None for 0. `old` maps option names of earlier
    versions to the current ones. An `open_ended` command passes unknown options to `run` as the argument `rest`.
    `on_interruption` is a hint printed after Ctrl-C.
    """

    def __init__(
        self,
        prog: str,
        text: str,
        usage: str,
        run: Callable[..., int | None] | None = None,
        example: str | None = None,
        old: Mapping[str, str] | None = None,
        open_ended: bool = False,
        on_interruption: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            prog=prog,
            usage=f"{prog} {usage}",
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=None if example is None else f"example:\n  {prog} {example}".rstrip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **kwargs,
        )
        self.run, self.old, self.open_ended, self.on_interruption = run, dict(old or {}), open_ended, on_interruption
        self._into: argparse._ActionsContainer = self

    def group(self, title: str) -> None:
        """Start a help section with this title; options added from here on belong to it."""
        self._into = self.add_argument_group(title)

    def add(self, *names: str, help: str, **kwargs: Any) -> None:
        """Add an argument; its help ends with the default, unless that is None, False or empty."""
        default = kwargs.get("default")
        if default not in (None, False, []):
            help += f" (default {' '.join(map(str, default)) if isinstance(default, (list, tuple)) else default})"
        self._into.add_argument(*names, help=help, **kwargs)

    def flag(self, name: str, help: str, **kwargs: Any) -> None:
        """Add a switch."""
        self.add(name, action="store_true", help=help, **kwargs)

    def add_size(self, name: str, help: str, **kwargs: Any) -> None:
        """Add an option that takes a height and a width in pixels."""
        self.add(name, type=integer(1, 65536), nargs=2, metavar=("H", "W"), help=help, **kwargs)

    def add_device(self) -> None:
        """Add `--device`; `model_utils.check_device` checks it later, once torch is imported."""
        self.add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")

    def add_data(self) -> None:
        """Add the options that select images of a split and map their labels; `data_choice` reads them."""
        self.add("--list_file", help="list of images (and labels) to use instead of the whole split")
        self.add("--max_samples", type=integer(), metavar="N", help="use only the first N images")
        self.add("--image_column", help="image column of a dataset that is not a benchmark (default image)")
        self.add("--label_column", help="label column of such a dataset (default label)")
        self.add("--label_map", metavar="JSON", help="map label values to class ids, e.g. '{\"0\": 255}'")
        self.add("--labels_as", metavar="BENCHMARK", help="label values follow this benchmark's files")

    def add_inference(self) -> None:
        """Add the inference options; `inference_settings` reads them."""
        self.group("inference")
        scales = positive_number(at_most=100)
        self.add("--scales", type=scales, nargs="+", default=[1.0], help="scales to average over, e.g. 0.75 1 1.25")
        self.flag("--flip", "average with the horizontally flipped image")
        self.add_size("--window", "use a sliding window of this size")
        self.add_size("--stride", "stride of the window (default: 2/3 of its size)")
        self.add("--precision", default="fp32", choices=PRECISIONS, help="precision of the forward passes")
        self.add_device()

    def error(self, message: str) -> NoReturn:
        """Raise ValueError; argparse would print the usage and exit."""
        raise ValueError(f"{message}; see {self.prog} --help.")

    def options(self, argv: Sequence[str]) -> dict[str, Any]:
        """Parse a command line; an open-ended command gets its unknown options as `rest`."""
        words, names = [], []
        for word in argv:
            if word.startswith("--") and len(word) > 2:
                name, equals, value = word.partition("=")
                name = "--" + name[2:].replace("-", "_")
                names.append(self.old.get(name, name))
                word = names[-1] + equals + value
            words.append(word)
        if self.open_ended:
            known, rest = self.parse_known_args(words)
            return {**vars(known), "rest": rest}
        options = [name for name in self._option_string_actions if name.startswith("--")]
        if unknown := [name for name in names if name not in options]:
            raise ValueError(f"unknown option {unknown[0]}.{close_names(unknown[0], options)} See {self.prog} --help.")
        return vars(self.parse_args(words))


def add_command(
    commands: argparse._SubParsersAction, name: str, text: str, usage: str, run: Callable[..., int | None] | None,
    example: str | None = None, **kwargs: Any,
) -> Command:  # fmt: skip
    """Add a command; the list of commands shows its text up to the first semicolon."""
    kwargs |= {"help": textwrap.fill(text.split(";")[0], 78), "text": textwrap.fill(text, 100), "usage": usage}
    return commands.add_parser(name, run=run, example=example, **kwargs)


def integer(at_least: int = 1, at_most: int = 10**9) -> Callable[[str], int]:
    """Return an argparse type: a whole number within bounds."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[-+]?\d{1,18}", text) or not at_least <= int(text) <= at_most:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {at_least} to {at_most}")
        return int(text)

    return read


def positive_number(at_most: float) -> Callable[[str], float]:
    """Return an argparse type: a number above 0 and at most `at_most`."""

    def read(text: str) -> float:
        with suppress(ValueError):
            if 0 < float(text) <= at_most:
                return float(text)
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0 and at most {at_most:g}")

    return read


def data_choice(name: str, split: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `load_split`, removing them from a command's options."""
    from ..recipes import parse_json_object

    names = ("data_dir", "list_file", "max_samples", "image_column", "label_column", "label_map", "labels_as")
    choice = {"name": name, "split": split, **given_options({option: options.pop(option, None) for option in names})}
    if "label_map" in choice:
        choice["label_map"] = parse_json_object("label_map", choice["label_map"])
    return choice


def inference_settings(options: dict[str, Any]) -> InferenceSettings:
    """Build the settings from the options of `add_inference`, removing them; the device is checked and stays."""
    from ..inference.segment import InferenceSettings
    from ..model_utils import check_device

    check_device(options["device"])
    scales, flip, window, stride = (options.pop(name) for name in ("scales", "flip", "window", "stride"))
    window, stride = (tuple(size) if size else None for size in (window, stride))
    return InferenceSettings(tuple(scales), flip, window, stride, options.pop("precision"))


def check_output(output: Path | None, overwrite: bool) -> None:
    """Refuse to overwrite an existing file unless `overwrite` is set."""
    reject({"overwrite": overwrite} if output is None else {}, "can only be used with --output.")
    refuse_existing([] if output is None else [output], overwrite, "--output")


def reject(options: Mapping[str, Any], why: str) -> None:
    """Raise ValueError if the command line has any of these options, which would have no effect."""
    if named := [f"--{name}" for name in given_options(options)]:
        raise ValueError(f"{' and '.join(named)} {why}")


def given_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given on the command line."""
    return {name: value for name, value in options.items() if value is not None and value is not False}


def parse_titles(words: list[str]) -> dict[str, str]:
    """Map titles to folders from `TITLE=FOLDER` or, if that exists or has no "=", `FOLDER` by its last part."""
    titled = {word for word in words if "=" in word and not Path(word).expanduser().exists()}
    pairs = [word.split("=", 1) if word in titled else [Path(word).name, word] for word in words]
    by_title = dict(pairs)
    if len(by_title) < len(pairs):
        raise ValueError(f"two of {', '.join(words)} have the same title; tell them apart with TITLE=FOLDER.")
    return by_title


def hide_loading_bars() -> None:
    """Hide the progress bars of loading and saving weights; training and evaluation keep theirs."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    enable_progress_bars()  # downloads from the Hub keep theirs
