"""What the Hub refuses, in one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token with write access"


@contextmanager
def plain_hub_errors(repo_id: str, endpoint: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into errors of one line.

    Args:
        repo_id: repository that is talked about.
        endpoint: address of the Hub.

    Raises:
        PermissionError: there is no token, or the Hub refuses it.
        ConnectionError: the Hub cannot be reached, or the connection broke.
        OSError: any other refusal.
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise PermissionError(f"there is no token for {endpoint}: {_LOG_IN}.") from error
    except HfHubHTTPError as error:
        raise _refusal(error, repo_id, endpoint) from error
    except HTTPError as error:  # of the connection, not of what was asked
        raise _broken(error, endpoint) from error
    except RuntimeError as error:  # so an upload's failure is wrapped
        if isinstance(error.__cause__, HfHubHTTPError):
            raise _refusal(error.__cause__, repo_id, endpoint) from error
        if isinstance(error.__cause__, HTTPError):
            raise _broken(error.__cause__, endpoint) from error
        raise


def _broken(error: Exception, endpoint: str) -> ConnectionError:
    return ConnectionError(f"{endpoint} cannot be reached, or the connection broke: {_first_line(error)}")


def _refusal(error: Exception, repo_id: str, endpoint: str) -> OSError:
    from huggingface_hub import get_token

    status, said = error.response.status_code, _first_line(error.server_message or error)
    if status == 401:
        token = "refuses the token" if get_token() else "wants a token"
        return PermissionError(f"{endpoint} {token} for {repo_id} ({status}: {said}): {_LOG_IN}.")
    if status == 403:
        return PermissionError(
            f"{endpoint} refuses to write to {repo_id} ({status}: {said}): use a token with write access to "
            f"{repo_id.split('/')[0]!r}, or another name."
        )
    return OSError(f"{endpoint} refuses {repo_id} ({status}: {said}).")


def _first_line(error: Exception | str) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
