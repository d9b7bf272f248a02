"""What the Hub refuses, in one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token with write access"


@contextmanager
def plain_hub_errors(repo_id: str, endpoint: str) -> Iterator[None]:
    """Turn what huggingface_hub raises about a repository into an OSError of one line.

    A PermissionError where there is no token or the Hub refuses it, a ConnectionError where it cannot be reached.
    """
    from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise PermissionError(f"there is no token for {endpoint}: {_LOG_IN}.") from error
    except (HTTPError, RuntimeError) as error:  # a failed upload's is wrapped in a RuntimeError
        cause = error if isinstance(error, HTTPError) else error.__cause__
        if not isinstance(cause, HTTPError):
            raise
        raise _plain(cause, repo_id, endpoint) from error


def _plain(error: Exception, repo_id: str, endpoint: str) -> OSError:
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    lines = str(getattr(error, "server_message", None) or error).splitlines()
    said = next((line.strip() for line in lines if line.strip()), type(error).__name__)
    if not isinstance(error, HfHubHTTPError):  # of the connection, not of what was asked
        return ConnectionError(f"{endpoint} cannot be reached, or the connection broke: {said}")
    status = error.response.status_code
    if status == 401:
        token = "refuses the token" if get_token() else "wants a token"
        return PermissionError(f"{endpoint} {token} for {repo_id} ({status}: {said}): {_LOG_IN}.")
    if status == 403:
        owner = repo_id.split("/")[0]
        advice = f"use a token with write access to {owner!r}, or another name"
        return PermissionError(f"{endpoint} refuses to write to {repo_id} ({status}: {said}): {advice}.")
    return OSError(f"{endpoint} refuses {repo_id} ({status}: {said}).")
