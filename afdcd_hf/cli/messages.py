"""How log messages look on the terminal."""

from __future__ import annotations

import logging
import os
import re
import sys
from contextlib import nullcontext

from ..messages import without_tokens

_SURPLUS = re.compile(r"Unexpected keys \((?P<keys>[^)]*)\) found while loading pretrained weights")
# What classifiers of timm have behind the feature maps: a backbone does without.
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
        """Write one message."""
        bars = getattr(sys.modules.get("tqdm"), "tqdm", None)  # not imported: no bar to care for
        with bars.external_write_mode(file=self.stream) if bars else nullcontext():
            super().emit(record)


class Plain(logging.Formatter):
    """News as they are, trouble with its level before it; of others' messages also where they come from."""

    def format(self, record: logging.LogRecord) -> str:
        """The lines of one message."""
        source = "" if record.name.split(".")[0] == "afdcd_hf" else f"{record.name} "
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        return without_tokens(source + level + super().format(record))
