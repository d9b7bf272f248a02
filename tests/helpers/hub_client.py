"""Point this process's huggingface_hub client at the small Hub of `hub_server.py`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import constants


@contextmanager
def serving(home: Path) -> Iterator[HubServer]:
    """Serve a Hub on localhost, with an empty cache and the token of its user "street"."""
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        for name, value in hub.client_settings().items():
            patch.setenv(name, value)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "cache"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        patch.setattr("transformers.utils.hub._hf_api", None)  # cached with the current address
        yield hub


def no_waiting(patch: pytest.MonkeyPatch) -> None:
    """Let the client retry without waiting."""
    patch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
