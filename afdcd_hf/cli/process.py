"""A command's process: its log messages on the terminal, and how it leaves the others of a launcher."""

from __future__ import annotations

import gc
import logging
import os
import re
import sys
import time
from contextlib import nullcontext

from ..messages import without_tokens

_SURPLUS = re.compile(r"Unexpected keys \((?P<keys>[^)]*)\) found while loading pretrained weights")
_CLASSIFIER = {"bn2", "classifier", "conv_head", "fc", "head", "norm_head"}


def quieten() -> None:
    """Our own messages from the main process only, above the progress bar; of others only what tells of trouble."""
    main_process = os.environ.get("RANK", "0") == "0"
    handler = BesideBars(sys.stderr)
    handler.setFormatter(Plain())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("afdcd_hf").setLevel(logging.INFO if main_process else logging.ERROR)
    logging.getLogger("timm.models._builder").addFilter(tells_news)


def tells_news(record: logging.LogRecord) -> bool:
    """Whether timm's surplus weights are more than the classifier, for which a backbone has no use."""
    surplus = _SURPLUS.search(record.getMessage())
    return surplus is None or not {key.split(".")[0] for key in surplus["keys"].split(", ")} <= _CLASSIFIER


class BesideBars(logging.StreamHandler):
    """Writes a message above a progress bar, not into it."""

    def emit(self, record: logging.LogRecord) -> None:
        bars = getattr(sys.modules.get("tqdm"), "tqdm", None)  # not imported: no bar to care for
        with bars.external_write_mode(file=self.stream) if bars else nullcontext():
            super().emit(record)


class Plain(logging.Formatter):
    """News as they are, trouble with its level before it; of others' messages also where they come from."""

    def format(self, record: logging.LogRecord) -> str:
        source = "" if record.name.split(".")[0] == "afdcd_hf" else f"{record.name} "
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        return without_tokens(source + level + super().format(record))


def leave_process_group() -> None:
    """Part from the other processes, where there are any; call it on every rank, when all work is done.

    Without it NCCL warns on leaving, and a finished run with gloo can end with SIGABRT: in Python < 3.14 one of its
    threads may ask for the interpreter while that is shutting down. Those that DDP holds for ever get a moment.
    """
    distributed = sys.modules.get("torch.distributed")  # if nobody imported it, there is no group
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    gc.collect()  # a trainer, which refers to itself, holds its groups
    distributed.destroy_process_group()
    time.sleep(0.1)
