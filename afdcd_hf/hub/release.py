"""`afdcd release`: bring released files to the Hub. Convert, evaluate, compare, card, push, tag, collect."""

# No `from __future__ import annotations`: the checks need the fields' types as objects.
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi

from ..evaluation.results import evaluate_saved
from ..structured_files import read_yaml
from .card_facts import Facts, Fraction, facts_from_json, read_facts
from .conversion import convert_checkpoint
from .folder_facts import RESULTS_NAME, update_card
from .push import plain_hub_errors, push_folder
from .zoo import CheckpointRow, get_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReleasePlan(Facts):
    """The content of `releases.yaml`."""

    checkpoints: Mapping[str, str]  # row of `afdcd list` -> released file
    output_dir: str  # each model gets a folder in it
    data: Mapping[str, str] = field(default_factory=dict)  # benchmark -> its folder; others are not evaluated
    tolerance: Fraction = 0.01  # a model is pushed only if measured and reported mIoU differ by no more than this
    owner: str | None = None  # account that publishes; None: the row's owner
    private: bool = False
    tag: str | None = "v1.0"
    collection: str | None = None  # title; None: no collection
    device: str | None = None  # for the evaluation; None: a GPU if there is one


@dataclass
class Released:
    """The outcome of one row; `problem` is the error that stopped it."""

    row: CheckpointRow
    repo_id: str
    measured: float | None = None
    done: str = ""
    problem: str | None = None


def read_release_plan(path: str | Path) -> ReleasePlan:
    """Read `releases.yaml`; a ValueError names a key that is unknown or has a value of the wrong type."""
    plan = facts_from_json(read_yaml(path), ReleasePlan, str(path))
    for repo_id in plan.checkpoints:
        get_checkpoint(repo_id)
    return plan


def release(plan: ReleasePlan, *, dry_run: bool = True) -> list[Released]:
    """Publish every model of a plan, or list the steps in a dry run; steps that are already done are skipped.

    Returns the outcome of each row; a failure stops only its own row.
    """
    found = []
    for name, checkpoint in plan.checkpoints.items():
        row = get_checkpoint(name)
        one = Released(row, f"{plan.owner}/{name.split('/')[1]}" if plan.owner else name)
        found.append(one)
        try:
            _release(one, plan, Path(checkpoint), dry_run)
        except (ValueError, OSError) as error:
            one.problem = str(error)
        logger.info("%s: %s", one.repo_id, one.problem or one.done)
    return found


def to_markdown(found: Sequence[Released]) -> str:
    """Format the outcomes as a Markdown table: mIoU in percent, reported and measured."""
    lines = ["| model | dataset | reported | measured | difference | state |", "|---|---|---:|---:|---:|---|"]
    for one in found:
        measured = "not measured" if one.measured is None else f"{100 * one.measured:.2f}"
        difference = "" if one.measured is None else f"{100 * (one.measured - one.row.reported):+.2f}"
        state = one.done if one.problem is None else f"failed: {' '.join(one.problem.split())}".replace("|", "\\|")
        cells = (one.repo_id, f"{one.row.dataset} {one.row.split}", f"{100 * one.row.reported:.2f}", measured)
        lines.append(f"| {' | '.join(cells)} | {difference} | {state} |")
    return "\n".join(lines)


def _release(one: Released, plan: ReleasePlan, checkpoint: Path, dry_run: bool) -> None:
    row, folder = one.row, Path(plan.output_dir) / one.repo_id.split("/")[1]
    results, data_dir = folder / RESULTS_NAME, plan.data.get(row.dataset)
    is_converted, is_evaluated = (folder / "config.json").is_file(), results.is_file()
    if dry_run:
        if not is_converted and not checkpoint.is_file():
            raise FileNotFoundError(f"{checkpoint} does not exist; give the released file of {row.repo_id}.")
        steps = [f"convert {checkpoint}"] * (not is_converted)
        steps += [f"evaluate on {data_dir}"] * (data_dir is not None and not is_evaluated)
        one.done = ", ".join([*steps, f"push to {one.repo_id}"])
        return
    if not is_converted:
        convert_checkpoint(checkpoint, row.network, folder, dataset=row.dataset, published=row.repo_id)
    if data_dir is not None and not is_evaluated:
        choice = {"name": row.dataset, "split": row.split, "data_dir": data_dir}
        legacy = row.dataset == "coco_stuff_182"  # the paper counts its 11 classes that are never annotated as 0
        evaluate_saved(str(folder), choice, device=plan.device, absent_as_zero=legacy, output=results)
    update_card(folder, repo_id=one.repo_id, results=results if results.is_file() else None)
    scores = read_facts(folder).measured
    one.measured = scores.mean_iou if scores else None
    if one.measured is not None and abs(one.measured - row.reported) > plan.tolerance:
        raise ValueError(f"not pushed: measured and reported mIoU differ by more than {100 * plan.tolerance:g} points")
    commit = push_folder(folder, one.repo_id, private=plan.private).commit
    assert commit is not None  # None only in a dry run
    api = HfApi(library_name="afdcd_hf")
    with plain_hub_errors(one.repo_id, api.endpoint):
        if plan.collection:
            owner = one.repo_id.split("/")[0]
            slug = api.create_collection(plan.collection, namespace=owner, private=plan.private, exists_ok=True).slug
            api.add_collection_item(slug, item_id=one.repo_id, item_type="model", exists_ok=True)
        if plan.tag:  # an existing tag may be in use, so it is not moved
            api.create_tag(one.repo_id, tag=plan.tag, revision=commit.oid, exist_ok=True)
            tagged = api.model_info(one.repo_id, revision=plan.tag).sha
            if tagged != commit.oid:
                advice = f"for the new one, {commit.oid}, give another tag in the plan and release again"
                raise ValueError(f"the tag {plan.tag} still names an earlier commit, {tagged}; {advice}")
    one.done = f"pushed: {commit.commit_url}"
