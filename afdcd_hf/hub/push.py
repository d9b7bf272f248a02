"""Publishing a network's folder on the Hub, in one commit."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .hub_errors import plain_hub_errors
from .published import as_published, is_generated
from .push_files import CARD_NAME, PROCESSOR_NAME, PushFile, files_to_push, left_out
from .weights_check import check_weights

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi


@dataclass(frozen=True)
class PushPlan:
    """What a push sends, or has sent.

    Attributes:
        repo_id: the repository.
        files: what is uploaded.
        left_out: names in the folder that are not.
        notes: what the user should know.
        commit: the commit; None where nothing was sent.
    """

    repo_id: str
    files: Sequence[PushFile]
    left_out: Sequence[str] = ()
    notes: Sequence[str] = ()
    commit: CommitInfo | None = None

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(file.size for file in self.files)

    def noting(self, note: str, **changes) -> PushPlan:
        """The plan with one more note, and with other changes."""
        return replace(self, notes=[*self.notes, note], **changes)


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    overwrite_card: bool = False,
) -> PushPlan:
    """Publish the network in a folder: weights, configurations, source, card with its pictures, results, facts.

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
        FileNotFoundError: there is no whole network in the folder.
        ValueError: its weights are damaged or of another network, the name is not allowed, or `private` is asked of a
            public repository.
        PermissionError: there is no token, or it does not suffice.
        OSError: the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api, plan = HfApi(library_name="afdcd_hf"), plan_push(folder, repo_id)
    if dry_run:
        return _looked_at(plan, api, private, revision, overwrite_card)
    return send(plan, api, private=private, revision=revision, overwrite_card=overwrite_card)


def plan_push(folder: str | Path, repo_id: str, *, needs_config: bool = True) -> PushPlan:
    """What of the folder is pushed; looks at the folder only.

    Args:
        folder: as for `push_folder`.
        repo_id: `user/name`.
        needs_config: whether `from_pretrained` must be able to load the folder.

    Raises:
        FileNotFoundError: there is no whole network in the folder.
        ValueError: its weights are damaged or of another network, or the name is not allowed.
    """
    folder = Path(folder)
    _check_repo_id(repo_id)
    found = files_to_push(folder, needs_config=needs_config)
    check_weights(folder, [file.name for file in found if file.name.endswith(".safetensors")])
    files, notes = as_published(folder, found, repo_id)
    if PROCESSOR_NAME not in {file.name for file in files}:
        notes.append(f"there is no {PROCESSOR_NAME}: pipelines will not know how to prepare images")
    return PushPlan(repo_id, files, left_out(folder, found), notes)


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
            plan = _keeping_card(plan, _card_on_hub(api, plan.repo_id, revision))
        additions = [CommitOperationAdd(file.name, file.content) for file in plan.files]
        commit = api.create_commit(plan.repo_id, additions, commit_message=message, revision=revision)
    return replace(plan, commit=commit)


def make_repository(api: HfApi, repo_id: str, private: bool | None) -> None:
    """Make the repository where there is none.

    Raises:
        ValueError: it exists and is public, but a private one is wanted.
    """
    there = _visibility(api, repo_id)
    _check_private(repo_id, private, there)
    if there is None:
        api.create_repo(repo_id, private=private, exist_ok=True)


def _check_repo_id(repo_id: str) -> None:
    """Refuse a name that is not `user/name` as the Hub allows it."""
    from huggingface_hub.utils import validate_repo_id

    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} is no name of a repository; write USER/NAME.")
    validate_repo_id(repo_id)


def _visibility(api: HfApi, repo_id: str) -> bool | None:
    """Whether the repository is private; None where there is none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return bool(api.repo_info(repo_id).private)
    except RepositoryNotFoundError:
        return None


def _check_private(repo_id: str, private: bool | None, is_private: bool | None) -> None:
    if private and is_private is False:
        raise ValueError(
            f"{repo_id} exists and is public, and a push does not change that: make it private in its settings on the "
            "Hub, or push to another name."
        )


def _card_on_hub(api: HfApi, repo_id: str, revision: str | None) -> str | None:
    """The text of the repository's card at a revision; of `main` where there is no such revision yet."""
    from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError

    with tempfile.TemporaryDirectory() as folder:
        try:
            path = api.hf_hub_download(repo_id, CARD_NAME, revision=revision, local_dir=folder)
        except RevisionNotFoundError:
            return None if revision is None else _card_on_hub(api, repo_id, None)
        except RemoteEntryNotFoundError:
            return None
        return Path(path).read_text(encoding="utf-8", errors="replace")


def _keeping_card(plan: PushPlan, on_hub: str | None) -> PushPlan:
    """The plan without our card, where the Hub has one that was written by hand."""
    others = [file for file in plan.files if file.name != CARD_NAME]
    if on_hub is None or is_generated(on_hub) or len(others) == len(plan.files):
        return plan
    note = f"the {CARD_NAME} on the Hub was not generated and stays as it is; --overwrite-card replaces it"
    return plan.noting(note, files=others)


def _looked_at(plan: PushPlan, api: HfApi, private: bool, revision: str | None, overwrite_card: bool) -> PushPlan:
    """The plan as the Hub stands; where that cannot be asked, the plan says so."""
    card = None
    try:
        with plain_hub_errors(plan.repo_id, api.endpoint):
            is_private = _visibility(api, plan.repo_id)
            if is_private is not None and not overwrite_card:
                card = _card_on_hub(api, plan.repo_id, revision)
    except OSError as error:
        return plan.noting(f"the Hub could not be asked: {error}")
    _check_private(plan.repo_id, private, is_private)
    new = "is new and would be private" if private else "is new"
    state = new if is_private is None else f"exists and is {'private' if is_private else 'public'}"
    return _keeping_card(plan.noting(f"{plan.repo_id} {state}"), card)
