"""Publishing a model's folder on the Hub: what of it is sent, in one commit, and what the Hub refuses, in one line."""

from __future__ import annotations

import json
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
from .card_facts import FACTS_NAME, CardFacts, facts_json, read_facts
from .folder_facts import RESULTS_NAME, check_repo_id, public_protocol, read_results, with_repo_id
from .model_card import CARD_NAME, is_handwritten, render_card
from .weight_files import CONFIG_NAME, INDEX_NAME, WEIGHTS_NAME, check_weights

PROCESSOR_NAME, RECIPE_NAME, VERIFIED_NAME = "preprocessor_config.json", "recipe.yaml", "verified.json"
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
        """In bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def read(self) -> bytes:
        """The content."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


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
    """What of a saved model is pushed; looks at the folder only, with arguments and errors of `push_folder`.

    Weights, configurations, the source they name, card, the images it shows, results, facts, recipe and statement.
    Checkpoints, optimizers, weights of the loss, logs and settings of the run are not, nor is anything unknown. Card,
    facts and results get the repository's name; the files in the folder stay as they are. A card is rendered again
    where it is the one of the facts beside it; any other is published as it is. Scores of a dataset on the Hub are
    added as `.eval_results/*.yaml`. `needs_config` says whether `from_pretrained` must be able to load it.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    weights = check_weights(folder)
    if needs_config and not (folder / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{folder} has weights but no {CONFIG_NAME}; save the model with save_pretrained.")
    card = (folder / CARD_NAME).read_text("utf-8", "replace") if (folder / CARD_NAME).is_file() else ""
    names = [CONFIG_NAME, *weights, PROCESSOR_NAME, *_source(folder), CARD_NAME, *shown_pictures(folder, card)]
    names += [RESULTS_NAME, FACTS_NAME, RECIPE_NAME, VERIFIED_NAME]
    contents: dict[str, Path | bytes] = {name: folder / name for name in names if (folder / name).is_file()}
    if outside := [folder / name for name in contents if not _lies_in(folder, name)]:
        found = f"{outside[0]} is a link to {outside[0].resolve()}, and a push follows no link out of the folder"
        raise ValueError(f"{found}; put the file itself there, or remove the link.")
    if RESULTS_NAME in contents:
        results = read_results(folder / RESULTS_NAME)
        results["protocol"] = public_protocol(results["protocol"], repo_id)
        contents[RESULTS_NAME] = (json.dumps(results, indent=2) + "\n").encode("utf-8")
    if FACTS_NAME in contents:
        facts = read_facts(folder)
        public = with_repo_id(facts, repo_id)
        contents |= {FACTS_NAME: facts_json(public), **_eval_results(public)}
        if card == render_card(facts):
            card = render_card(public)
            contents[CARD_NAME] = card.encode("utf-8")
    notes = []
    if CARD_NAME not in contents:
        notes.append(f"there is no {CARD_NAME}: `afdcd card {folder}` renders one")
    elif repo_id not in card:
        notes.append(f"{CARD_NAME} does not name {repo_id} and is pushed as it is")
    files = [PushFile(name, content) for name, content in contents.items()]
    notes += _private_texts(folder, files)
    if PROCESSOR_NAME not in contents:
        notes.append(f"there is no {PROCESSOR_NAME}: pipelines will not know how to prepare images")
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
    """Carry out a plan, in one commit; arguments, result and errors as of `push_folder`."""
    with plain_hub_errors(plan.repo_id, api.endpoint):
        make_repository(api, plan.repo_id, private or None)  # None: as the account has it by default
        if revision not in (None, "main") and not revision.startswith("refs/"):  # pull requests are there already
            api.create_branch(plan.repo_id, branch=revision, exist_ok=True)
        if not overwrite_card:
            plan = _keeping_card(plan, api, revision)
        changes: list[Any] = [CommitOperationAdd(file.name, file.content) for file in plan.files]
        sharded = any(file.name == INDEX_NAME for file in plan.files)
        if sharded and api.file_exists(plan.repo_id, WEIGHTS_NAME, revision=revision):
            changes.append(CommitOperationDelete(WEIGHTS_NAME))  # from_pretrained would take it, not the new shards
        commit = api.create_commit(plan.repo_id, changes, commit_message=message, revision=revision)
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
    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise PermissionError(f"there is no token for {endpoint}: {_LOG_IN}.") from error
    except (errors.HTTPError, RuntimeError) as error:  # a failed upload's is wrapped in a RuntimeError
        cause = error if isinstance(error, errors.HTTPError) else error.__cause__
        if not isinstance(cause, errors.HTTPError):
            raise
        said = str(getattr(cause, "server_message", None) or cause).strip() or type(cause).__name__
        said = said.splitlines()[0]
        if not isinstance(cause, errors.HfHubHTTPError):  # of the connection, not of what was asked
            raise ConnectionError(f"{endpoint} cannot be reached, or the connection broke: {said}") from error
        status = cause.response.status_code
        said = f"({status}: {said})"
        if status == 401:
            token = "refuses the token" if get_token() else "wants a token"
            raise PermissionError(f"{endpoint} {token} for {repo_id} {said}: {_LOG_IN}.") from error
        if status == 403:
            advice = f"use a token with write access to {repo_id.split('/')[0]!r}, or another name"
            raise PermissionError(f"{endpoint} refuses to write to {repo_id} {said}: {advice}.") from error
        raise OSError(f"{endpoint} refuses {repo_id} {said}.") from error


def shown_pictures(folder: Path, card: str) -> list[str]:
    """The images in the folder that its card shows; of other files, and of what lies elsewhere, none."""
    paths = [next(filter(None, match.groups())) for match in _SHOWN_PICTURE.finditer(card)]
    names = [path.removeprefix("./") for path in paths if Path(path).suffix.lower() in _PICTURES]
    return [name for name in names if not Path(name).is_absolute() and _lies_in(folder, name)]


def _visibility(api: HfApi, repo_id: str, private: bool | None) -> bool | None:
    """Whether the repository is private; None where there is none. One that is public must not be asked to be."""
    try:
        is_private = bool(api.repo_info(repo_id).private)
    except errors.RepositoryNotFoundError:
        return None
    if private and not is_private:
        raise ValueError(f"{repo_id} exists and is public: make it private in its settings on the Hub first.")
    return is_private


def _keeping_card(plan: PushPlan, api: HfApi, revision: str | None) -> PushPlan:
    """The plan without our card, where the Hub has one that was written by hand."""
    others = [file for file in plan.files if file.name != CARD_NAME]
    with (
        tempfile.TemporaryDirectory() as folder,
        suppress(errors.RemoteEntryNotFoundError, errors.RevisionNotFoundError),
    ):
        card = api.hf_hub_download(plan.repo_id, CARD_NAME, revision=revision, local_dir=folder)
        if len(others) < len(plan.files) and is_handwritten(Path(card)):
            note = f"the {CARD_NAME} on the Hub was not generated and stays as it is; --overwrite_card replaces it"
            return replace(plan, files=others, notes=[*plan.notes, note])
    return plan


def _eval_results(facts: CardFacts) -> dict[str, bytes]:
    """The Hub's own format of scores, for a dataset that is there, and a whole split of it."""
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


def _private_texts(folder: Path, files: list[PushFile]) -> list[str]:
    """Warnings of texts that name folders of this machine; one with an access token is refused."""
    roots = {str(path) for path in (Path.home(), Path.cwd(), folder.resolve().parent) if len(path.parts) > 1}
    pattern = re.compile("(?:" + "|".join(map(re.escape, sorted(roots, reverse=True))) + r")/[^\s\"'`<>)|]*")
    warnings = []
    for file in files:
        text = file.read().decode("utf-8", "replace") if Path(file.name).suffix in _TEXTS else ""
        if without_tokens(text) != text:
            raise ValueError(f"{folder / file.name} holds what looks like an access token; remove it before pushing.")
        if match := pattern.search(text):
            warnings.append(f"{file.name} names a path of this machine, {match[0]}")
    return warnings


def _lies_in(folder: Path, name: str) -> bool:
    """Whether it is a file in the folder also where a link leads: into the folder, or the cache of the Hub."""
    path, allowed = (folder / name).resolve(), (folder.resolve(), Path(constants.HF_HUB_CACHE).resolve())
    return path.is_file() and any(path.is_relative_to(root) for root in allowed)


def _source(folder: Path) -> list[str]:
    """The modules that the configurations name in `auto_map`, and those that these import."""
    names = []
    for config in (folder / CONFIG_NAME, folder / PROCESSOR_NAME):
        named: Any = read_json(config, "a configuration").get("auto_map", {}) if config.is_file() else {}
        # `modeling_x` of `modeling_x.XModel`; what lies in another repository (`user/repo--x.X`) is not in the folder.
        names += [str(name).split(".")[0] + ".py" for name in dict(named).values() if "--" not in str(name)]
    try:
        imported = [Path(file).name for name in sorted(names) for file in get_relative_import_files(folder / name)]
    except FileNotFoundError as error:
        lacks = f"{folder} lacks {Path(error.filename).name}, without which it does not load without afdcd_hf"
        raise FileNotFoundError(f"{lacks}; load model and image processor, and save_pretrained both again.") from error
    return list(dict.fromkeys([*names, *imported]))
