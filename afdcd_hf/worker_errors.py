"""Errors of data workers, as a user wants to read them."""

from __future__ import annotations

import re


def plain_message(error: Exception) -> str:
    """An error's message in one line, without the traceback that a data worker of torch's puts around it."""
    text = str(error)
    if text.startswith("Caught "):
        found = re.findall(rf"^(?:[\w.<>]+\.)?{re.escape(type(error).__name__)}: ", text, flags=re.MULTILINE)
        text = text.rsplit(f"\n{found[-1]}", 1)[-1] if found else text
    text = " ".join(text.split()) or type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."
