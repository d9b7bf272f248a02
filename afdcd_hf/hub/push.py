"""Publishing a model's folder on the Hub, in one commit, and what the Hub refuses, in one line that says what to do."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .folder_facts import check_repo_id
from .model_card import CARD_NAME, is_handwritten
from .push_files import PROCESSOR_NAME, PushFile, files_to_push

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token with write access"


@dataclass(frozen=True)
class PushPlan:
    """What a push sends, or has sent."""

    repo_id: str
    files: Sequence[PushFile]
    left_out: Sequence[str] = ()  # names in the folder that are not uploaded
    notes: Sequence[str] = ()  # what the user should know
    commit: CommitInfo | None = None  # None where nothing was sent


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    overwrite_card: bool = False,
) -> PushPlan:
    """Publish the model in a folder: weights, configurations, source, card with its images, results, facts.

    All files arrive in one commit, or none does. After a failure, push again: large files that had arrived are not
    sent twice. The repository is made where there is none, the revision's branch as well. Nothing there is removed.

    Args:
        folder: what `save_pretrained`, a training or `afdcd convert` wrote.
        repo_id: `user/name`.
        private: make the repository a private one.
        revision: branch to commit to; by default `main`.
        dry_run: only look, at the folder and at the Hub.
        overwrite_card: replace a card on the Hub that was written by hand.

    Returns:
        What was sent; in a dry run, what would be.

    Raises:
        FileNotFoundError: there is no whole model in the folder.
        ValueError: its weights are damaged or of another model, a file is a link out of the folder or holds an access
            token, the name is not allowed, or `private` is asked of a public repository.
        PermissionError: there is no token, or it does not suffice.
        OSError: the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api, plan = HfApi(library_name="afdcd_hf"), plan_push(folder, repo_id)
    if not dry_run:
        return send(plan, api, private=private, revision=revision, overwrite_card=overwrite_card)
    try:
        with plain_hub_errors(repo_id, api.endpoint):
            is_private = _visibility(api, repo_id, private)
            if is_private is not None and not overwrite_card:
                plan = _keeping_card(plan, api, revision)
        note = f"{repo_id} exists and is {'private' if is_private else 'public'}"
        if is_private is None:
            note = f"{repo_id} is new{' and would be private' if private else ''}"
    except OSError as error:
        note = f"the Hub could not be asked: {error}"
    return replace(plan, notes=[*plan.notes, note])


def plan_push(folder: str | Path, repo_id: str, *, needs_config: bool = True) -> PushPlan:
    """What of the folder is pushed; looks at the folder only, with arguments and errors of `push_folder`.

    `needs_config` says whether `from_pretrained` must be able to load it.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    files, notes = files_to_push(folder, repo_id, needs_config=needs_config)
    names = {Path(file.name).parts[0] for file in files}
    if PROCESSOR_NAME not in names:
        notes.append(f"there is no {PROCESSOR_NAME}: pipelines will not know how to prepare images")
    others = [f"{path.name}{'/' * path.is_dir()}" for path in sorted(folder.iterdir()) if path.name not in names]
    return PushPlan(repo_id, files, others, notes)


def send(
    plan: PushPlan,
    api: HfApi,
    *,
    private: bool = False,
    revision: str | None = None,
    overwrite_card: bool = False,
    message: str = "Push with afdcd",
) -> PushPlan:
    """Carry out a plan, in one commit; arguments, result and errors as of `push_folder`."""
    from huggingface_hub import CommitOperationAdd

    with plain_hub_errors(plan.repo_id, api.endpoint):
        make_repository(api, plan.repo_id, private or None)  # None: as the account has it by default
        if revision not in (None, "main") and not revision.startswith("refs/"):  # pull requests are there already
            api.create_branch(plan.repo_id, branch=revision, exist_ok=True)
        if not overwrite_card:
            plan = _keeping_card(plan, api, revision)
        additions = [CommitOperationAdd(file.name, file.content) for file in plan.files]
        commit = api.create_commit(plan.repo_id, additions, commit_message=message, revision=revision)
    return replace(plan, commit=commit)


def make_repository(api: HfApi, repo_id: str, private: bool | None) -> None:
    """Make the repository where there is none; a ValueError if it exists and is public, but a private one is wanted."""
    if _visibility(api, repo_id, private) is None:
        api.create_repo(repo_id, private=private, exist_ok=True)


@contextmanager
def plain_hub_errors(repo_id: str, endpoint: str) -> Iterator[None]:
    """Turn what huggingface_hub raises about a repository into an OSError of one line.

    A PermissionError where there is no token or the Hub refuses it, a ConnectionError where it cannot be reached.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise PermissionError(f"there is no token for {endpoint}: {_LOG_IN}.") from error
    except (HTTPError, RuntimeError) as error:  # a failed upload's is wrapped in a RuntimeError
        cause = error if isinstance(error, HTTPError) else error.__cause__
        if not isinstance(cause, HTTPError):
            raise
        said = str(getattr(cause, "server_message", None) or cause).strip() or type(cause).__name__
        if not isinstance(cause, HfHubHTTPError):  # of the connection, not of what was asked
            broken = f"{endpoint} cannot be reached, or the connection broke: {said.splitlines()[0]}"
            raise ConnectionError(broken) from error
        status = cause.response.status_code
        said = f"({status}: {said.splitlines()[0]})"
        if status == 401:
            token = "refuses the token" if get_token() else "wants a token"
            raise PermissionError(f"{endpoint} {token} for {repo_id} {said}: {_LOG_IN}.") from error
        if status == 403:
            advice = f"use a token with write access to {repo_id.split('/')[0]!r}, or another name"
            raise PermissionError(f"{endpoint} refuses to write to {repo_id} {said}: {advice}.") from error
        raise OSError(f"{endpoint} refuses {repo_id} {said}.") from error


def _visibility(api: HfApi, repo_id: str, private: bool | None) -> bool | None:
    """Whether the repository is private; None where there is none. One that is public must not be asked to be."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        is_private = bool(api.repo_info(repo_id).private)
    except RepositoryNotFoundError:
        return None
    if private and not is_private:
        raise ValueError(
            f"{repo_id} exists and is public, and a push does not change that: make it private in its settings on the "
            "Hub, or push to another name."
        )
    return is_private


def _keeping_card(plan: PushPlan, api: HfApi, revision: str | None) -> PushPlan:
    """The plan without our card, where the Hub has one that was written by hand."""
    others = [file for file in plan.files if file.name != CARD_NAME]
    if len(others) == len(plan.files) or not _handwritten_on_hub(api, plan.repo_id, revision):
        return plan
    note = f"the {CARD_NAME} on the Hub was not generated and stays as it is; --overwrite_card replaces it"
    return replace(plan, files=others, notes=[*plan.notes, note])


def _handwritten_on_hub(api: HfApi, repo_id: str, revision: str | None) -> bool:
    """Looks at a revision; at `main` where there is no such revision yet."""
    from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError

    with tempfile.TemporaryDirectory() as folder:
        try:
            return is_handwritten(Path(api.hf_hub_download(repo_id, CARD_NAME, revision=revision, local_dir=folder)))
        except RevisionNotFoundError:
            return revision is not None and _handwritten_on_hub(api, repo_id, None)
        except RemoteEntryNotFoundError:
            return False
