"""What several commands have in common."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..inference.segment import InferenceSettings


def add_inference_options(command: argparse.ArgumentParser) -> None:
    """How a network is applied to a picture: `inference_settings` reads them."""
    group = command.add_argument_group("inference")
    group.add_argument("--scales", type=float, nargs="+", default=[1.0], help="sizes to average over, e.g. 0.75 1 1.25")
    group.add_argument("--flip", action="store_true", help="average with the mirrored picture")
    group.add_argument("--window", type=int, nargs=2, metavar=("H", "W"), help="slide a window over the picture")
    group.add_argument("--stride", type=int, nargs=2, metavar=("H", "W"), help="its steps (default: 2/3 of the window)")
    group.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"), help="of the network's passes")
    group.add_argument("--device", help="e.g. cuda or cpu; by default a GPU where there is one")


def inference_settings(args: argparse.Namespace) -> InferenceSettings:
    """The settings that `add_inference_options` asked for."""
    from ..inference.segment import InferenceSettings

    window, stride = (tuple(size) if size else None for size in (args.window, args.stride))
    return InferenceSettings(tuple(args.scales), args.flip, window, stride, args.precision)


def titled(words: list[str]) -> dict[str, str]:
    """`TITLE=FOLDER` or `FOLDER`, whose own name is the title then."""
    pairs = [word.split("=", 1) if "=" in word else (Path(word).name, word) for word in words]
    by_title = dict(pairs)
    if len(by_title) < len(pairs):
        raise ValueError(f"two of {', '.join(words)} have the same title; write TITLE=FOLDER.")
    return by_title


def hide_loading_bars() -> None:
    """No bars for reading and writing weights, which takes no time; training and evaluation keep theirs."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    enable_progress_bars()  # downloads from the Hub keep theirs
