"""Keeps access tokens out of whatever is shown or saved: errors, logs, cards, recipes."""

from __future__ import annotations

import re

# Hugging Face's tokens start with hf_ or api_org_; the length keeps names such as hf_model readable.
_TOKEN = re.compile(r"\b(hf_|api_org_)[A-Za-z0-9]{10,}")


def without_tokens(text: str) -> str:
    """The text with everything that looks like an access token replaced by its prefix and `***`."""
    return _TOKEN.sub(r"\1***", text)
