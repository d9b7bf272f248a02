"""Publish a model's folder on the Hub: choose its files, send them in one commit, report refusals in one line."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants, errors, get_token
from transformers.dynamic_module_utils import get_relative_import_files

from ..messages import without_tokens
from ..structured_files import read_json
from .card_facts import FACTS_NAME, RECIPE_NAME, CardFacts, facts_json, read_facts
from .folder_facts import RESULTS_NAME, check_repo_id, public_results, with_current_name
from .model_card import CARD_NAME, is_handwritten, render_card
from .weight_files import CONFIG_NAME, INDEX_NAME, WEIGHTS_NAME, check_weights, checksums

PROCESSOR_NAME, VERIFIED_NAME = "preprocessor_config.json", "verified.json"
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token with write access"
_TEXTS = {".json", ".md", ".yaml", ".py"}
_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".svg"}
_SHOWN_PICTURE = re.compile(
    r"!\[[^\]]*\]\(\s*(?:<(?P<quoted>[^>]+)>|(?P<plain>[^\s)]+))|<img\b[^>]*?\bsrc\s*=\s*[\"'](?P<html>[^\"']+)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class PushFile:
    """A file to publish."""

    name: str  # its path in the repository
    content: Path | bytes  # the file that holds it, or the bytes themselves

    @property
    def size(self) -> int:
        """Size in bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def read(self) -> bytes:
        """Return the content."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


@dataclass(frozen=True)
class PushPlan:
    """The files that a push sends or has sent."""

    repo_id: str
    files: Sequence[PushFile]
    left_out: Sequence[str] = ()  # names in the folder that are not uploaded
    notes: Sequence[str] = ()  # for the user
    commit: CommitInfo | None = None  # None if nothing was sent


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

    All files arrive in one commit, or none does. After a failure, push again: large files already uploaded are not
    sent twice. Repository and branch are created if needed. Only weights that new shards replace are removed.

    Args:
        folder: written by `save_pretrained`, a training or `afdcd convert`.
        repo_id: `user/name`.
        private: create the repository as a private one.
        revision: branch to commit to; by default `main`.
        dry_run: only check the folder and the Hub.
        overwrite_card: replace a card on the Hub that was written by hand.

    Returns:
        What was sent; in a dry run, what would be.

    Raises:
        FileNotFoundError: the folder has no complete model.
        ValueError: its weights are damaged or of another model, a file is a link out of the folder or contains an
            access token, the name is not allowed, or `private` is set for an existing public repository.
        PermissionError: there is no token, or its rights do not suffice.
        OSError: the Hub cannot be reached, or refuses.
    """
    api, plan = HfApi(library_name="afdcd_hf"), plan_push(folder, repo_id)
    if not dry_run:
        return send(plan, api, private=private, revision=revision, overwrite_card=overwrite_card)
    try:
        with plain_hub_errors(repo_id, api.endpoint):
            is_private = _visibility(api, repo_id, private)
            if is_private is not None and not overwrite_card:
                plan = _drop_card_if_handwritten(plan, api, revision)
        note = f"{repo_id} exists and is {'private' if is_private else 'public'}"
        if is_private is None:
            note = f"{repo_id} is new{' and would be private' if private else ''}"
    except OSError as error:
        note = f"the Hub could not be reached: {error}"
    return replace(plan, notes=[*plan.notes, note])


def plan_push(folder: str | Path, repo_id: str, *, needs_config: bool = True) -> PushPlan:
    """List what a push would send, from the folder alone; arguments and errors are those of `push_folder`.

    Included are weights, configurations, the source they name, the card and its images, results, facts, recipe and a
    `verified.json` about these weights. Checkpoints, optimizer state, weights of the loss, logs, settings of the run
    and unknown files are not. Facts and results get the repository's name, and so does a card that is an unedited
    rendering of the facts; any other card is sent unchanged. The files in the folder are not modified. Scores on a
    dataset on the Hub are added as `.eval_results/*.yaml`. With `needs_config`, `from_pretrained` must be able to load
    the folder.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    weights = check_weights(folder)
    if needs_config and not (folder / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{folder} has weights but no {CONFIG_NAME}; save the model with save_pretrained.")
    card = (folder / CARD_NAME).read_text("utf-8", "replace") if (folder / CARD_NAME).is_file() else ""
    names = [CONFIG_NAME, *weights, PROCESSOR_NAME, *_source_files(folder), CARD_NAME, *shown_pictures(folder, card)]
    names += [RESULTS_NAME, FACTS_NAME, RECIPE_NAME, VERIFIED_NAME]
    contents: dict[str, Path | bytes] = {name: folder / name for name in names if (folder / name).is_file()}
    if outside := [folder / name for name in contents if not _is_inside(folder, name)]:
        found = f"{outside[0]} is a link to {outside[0].resolve()}, and push follows no links out of the folder"
        raise ValueError(f"{found}; put the file itself there, or remove the link.")
    if RESULTS_NAME in contents:
        contents[RESULTS_NAME] = public_results(folder / RESULTS_NAME, repo_id).encode("utf-8")
    if FACTS_NAME in contents:
        facts = read_facts(folder)
        public = with_current_name(facts, folder, repo_id)
        contents |= {FACTS_NAME: facts_json(public), **_eval_results(public)}
        if card == render_card(facts):
            card = render_card(public)
            contents[CARD_NAME] = card.encode("utf-8")
    notes = []
    if VERIFIED_NAME in contents and _of_other_weights(folder / VERIFIED_NAME, weights):
        del contents[VERIFIED_NAME]
        notes.append(f"{VERIFIED_NAME} is about other weights and is not uploaded: run `afdcd verify` again")
    if CARD_NAME not in contents:
        notes.append(f"there is no {CARD_NAME}: `afdcd card {folder}` renders one")
    elif repo_id not in card:
        notes.append(f"{CARD_NAME} does not name {repo_id} and is pushed unchanged")
    files = [PushFile(name, content) for name, content in contents.items()]
    notes += _check_texts(folder, files)
    if PROCESSOR_NAME not in contents:
        notes.append(f"there is no {PROCESSOR_NAME}: pipelines cannot prepare images")
    sent = {Path(name).parts[0] for name in contents}
    others = [f"{path.name}{'/' * path.is_dir()}" for path in sorted(folder.iterdir()) if path.name not in sent]
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
    """Carry out a plan in one commit; arguments, result and errors are those of `push_folder`."""
    with plain_hub_errors(plan.repo_id, api.endpoint):
        make_repository(api, plan.repo_id, private or None)  # None: the account's default
        if revision not in (None, "main") and not revision.startswith("refs/"):  # refs of pull requests exist already
            api.create_branch(plan.repo_id, branch=revision, exist_ok=True)
        if not overwrite_card:
            plan = _drop_card_if_handwritten(plan, api, revision)
        changes: list[Any] = [CommitOperationAdd(file.name, file.content) for file in plan.files]
        sharded = any(file.name == INDEX_NAME for file in plan.files)
        if sharded and api.file_exists(plan.repo_id, WEIGHTS_NAME, revision=revision):
            changes.append(CommitOperationDelete(WEIGHTS_NAME))  # from_pretrained would prefer it to the new shards
        commit = api.create_commit(plan.repo_id, changes, commit_message=message, revision=revision)
    return replace(plan, commit=commit)


def make_repository(api: HfApi, repo_id: str, private: bool | None) -> None:
    """Create the repository unless it exists; a ValueError if it is public and `private` is set."""
    if _visibility(api, repo_id, private) is None:
        api.create_repo(repo_id, private=private, exist_ok=True)


@contextmanager
def plain_hub_errors(repo_id: str, endpoint: str) -> Iterator[None]:
    """Convert huggingface_hub's errors to an OSError of one line.

    A missing or refused token becomes a PermissionError, an unreachable Hub a ConnectionError.
    """
    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise PermissionError(f"there is no token for {endpoint}: {_LOG_IN}.") from error
    except (errors.HTTPError, RuntimeError) as error:  # failed uploads raise a RuntimeError from the HTTPError
        cause = error if isinstance(error, errors.HTTPError) else error.__cause__
        if not isinstance(cause, errors.HTTPError):
            raise
        said = str(getattr(cause, "server_message", None) or cause).strip() or type(cause).__name__
        said = said.splitlines()[0]
        if not isinstance(cause, errors.HfHubHTTPError):  # the connection failed, not the request
            raise ConnectionError(f"{endpoint} cannot be reached, or the connection broke: {said}") from error
        status = cause.response.status_code
        said = f"({status}: {said})"
        if status == 401:
            token = "refuses the token" if get_token() else "requires a token"
            raise PermissionError(f"{endpoint} {token} for {repo_id} {said}: {_LOG_IN}.") from error
        if status == 403:
            advice = f"use a token with write access to {repo_id.split('/')[0]!r}, or another name"
            raise PermissionError(f"{endpoint} refuses to write to {repo_id} {said}: {advice}.") from error
        raise OSError(f"{endpoint} refuses {repo_id} {said}.") from error


def shown_pictures(folder: Path, card: str) -> list[str]:
    """List the images that the card shows from this folder; other files and images elsewhere are skipped."""
    paths = [next(filter(None, match.groups())) for match in _SHOWN_PICTURE.finditer(card)]
    names = [path.removeprefix("./") for path in paths if Path(path).suffix.lower() in _PICTURES]
    return [name for name in names if not Path(name).is_absolute() and _is_inside(folder, name)]


def _visibility(api: HfApi, repo_id: str, private: bool | None) -> bool | None:
    """Whether the repository is private, None if it does not exist; a ValueError if `private` is set but it is not."""
    try:
        is_private = bool(api.repo_info(repo_id).private)
    except errors.RepositoryNotFoundError:
        return None
    if private and not is_private:
        raise ValueError(f"{repo_id} exists and is public: make it private in its settings on the Hub first.")
    return is_private


def _drop_card_if_handwritten(plan: PushPlan, api: HfApi, revision: str | None) -> PushPlan:
    """Remove the card from the plan if the one on the Hub was written by hand."""
    others = [file for file in plan.files if file.name != CARD_NAME]
    with (
        tempfile.TemporaryDirectory() as folder,
        suppress(errors.RemoteEntryNotFoundError, errors.RevisionNotFoundError),
    ):
        card = api.hf_hub_download(plan.repo_id, CARD_NAME, revision=revision, local_dir=folder)
        if len(others) < len(plan.files) and is_handwritten(Path(card)):
            note = f"the {CARD_NAME} on the Hub was not generated and is kept; --overwrite_card replaces it"
            return replace(plan, files=others, notes=[*plan.notes, note])
    return plan


def _eval_results(facts: CardFacts) -> dict[str, bytes]:
    """Write the score in the Hub's own format if the dataset is on the Hub and a whole split was evaluated."""
    dataset, measured = facts.dataset, facts.measured
    if dataset is None or dataset.hub_id is None or measured is None or not measured.covers_split:
        return {}
    entry = huggingface_hub.EvalResultEntry(
        dataset_id=dataset.hub_id,
        task_id="semantic-segmentation",
        value=round(100 * measured.mean_iou, 2),
        date=measured.date,
        source_url=f"https://huggingface.co/{facts.repo_id}",
        source_name="Model card",
        notes=f"mIoU in percent, split {dataset.split}; the protocol is in {RESULTS_NAME}",
    )
    name = f".eval_results/{dataset.hub_id.replace('/', '_')}.yaml"
    return {name: yaml.safe_dump(huggingface_hub.eval_result_entries_to_yaml([entry]), sort_keys=False).encode("utf-8")}


def _check_texts(folder: Path, files: list[PushFile]) -> list[str]:
    """Warn about texts that contain local paths; refuse one that contains an access token."""
    roots = {str(path) for path in (Path.home(), Path.cwd(), folder.resolve().parent) if len(path.parts) > 1}
    pattern = re.compile("(?:" + "|".join(map(re.escape, sorted(roots, reverse=True))) + r")/[^\s\"'`<>)|]*")
    warnings = []
    for file in files:
        text = file.read().decode("utf-8", "replace") if Path(file.name).suffix in _TEXTS else ""
        if without_tokens(text) != text:
            raise ValueError(f"{folder / file.name} contains what looks like an access token; remove it first.")
        if match := pattern.search(text):
            warnings.append(f"{file.name} contains a local path, {match[0]}")
    return warnings


def _of_other_weights(verified: Path, weights: Sequence[str]) -> bool:
    """Whether a record of `afdcd verify` was made before the weights beside it were changed."""
    record: Any = read_json(verified, "a record of afdcd verify")
    return record.get("weights") != checksums(verified.parent, weights)


def _is_inside(folder: Path, name: str) -> bool:
    """Whether the name, after following links, is a file in the folder or in the Hub's cache."""
    path, allowed = (folder / name).resolve(), (folder.resolve(), Path(constants.HF_HUB_CACHE).resolve())
    return path.is_file() and any(path.is_relative_to(root) for root in allowed)


def _source_files(folder: Path) -> list[str]:
    """List the modules that the configurations name in `auto_map`, and the modules they import."""
    names = []
    for config in (folder / CONFIG_NAME, folder / PROCESSOR_NAME):
        named: Any = read_json(config, "a configuration").get("auto_map", {}) if config.is_file() else {}
        # `modeling_x` of `modeling_x.XModel`; code in another repository (`user/repo--x.X`) is not in the folder.
        names += [str(name).split(".")[0] + ".py" for name in dict(named).values() if "--" not in str(name)]
    try:
        imported = [Path(file).name for name in sorted(names) for file in get_relative_import_files(folder / name)]
    except FileNotFoundError as error:
        lacks = f"{folder} lacks {Path(error.filename).name}, which it needs to load without afdcd_hf"
        raise FileNotFoundError(f"{lacks}; load model and image processor and save_pretrained both again.") from error
    return list(dict.fromkeys([*names, *imported]))
