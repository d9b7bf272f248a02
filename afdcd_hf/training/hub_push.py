"""Publishing while training and afterwards: `push_to_hub=True`.

Only what `afdcd push` would send leaves the machine: the student and its card. The loss's weights, the optimizer and
the settings with their local paths stay, as does a card on the Hub that was written by hand.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from ..evaluation.results import library_versions, machine_name
from ..hub.card_facts import CardFacts, TrainingFacts
from ..hub.facts_file import FACTS_NAME, read_facts, write_facts
from ..hub.folder_facts import network_facts
from ..hub.hub_errors import plain_hub_errors
from ..hub.model_card import CARD_NAME, is_handwritten, write_card
from ..hub.push import PushPlan, make_repository, plan_push, send

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

    from .trainer import SegmentationTrainer

logger = logging.getLogger(__name__)

_PUBLISHES_ALL = (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)


def prepare_repository(trainer: SegmentationTrainer, token: str | None, private: bool | None) -> None:
    """Make the repository of `hub_model_id`, by default named like the output folder.

    Raises:
        ValueError: the strategy would publish whole checkpoints, or the repository is to be private and is public.
        OSError: the Hub cannot be reached, or refuses.
    """
    args = trainer.args
    if args.hub_strategy in _PUBLISHES_ALL:
        raise ValueError(
            f"hub_strategy={args.hub_strategy.value!r} would publish optimizer and projector; use "
            "'every_save' or 'end'."
        )
    if not trainer.is_world_process_zero():
        return
    api, name = _hub(trainer, token), args.hub_model_id or Path(args.output_dir).absolute().name
    private = args.hub_private_repo if private is None else private
    with plain_hub_errors(name, api.endpoint):
        name = name if "/" in name else f"{api.whoami()['name']}/{name}"
        make_repository(api, name, private)
    trainer.hub_model_id, trainer.push_in_progress = name, None


def publish(
    trainer: SegmentationTrainer, message: str, blocking: bool, token: str | None, revision: str | None
) -> CommitInfo | Future[PushPlan]:
    """Publish the output folder, from the main process: the commit, or a future of what was pushed."""
    folder, name = trainer.args.output_dir, trainer.hub_model_id
    api, options = _hub(trainer, token), {"revision": revision or trainer.args.hub_revision, "message": message}
    plan = _plan(trainer, folder)
    for note in plan.notes:
        logger.warning("%s", note)
    if not blocking:
        return _in_background(api, _in_memory(plan), **options)
    try:
        commit = send(plan, api, **options).commit
    except OSError as error:
        again = f"The model is saved in {folder}: `afdcd push {folder} {name}` tries again."
        raise type(error)(f"{error} {again}") from error
    logger.info("pushed: %s", commit.commit_url)
    return commit


def publish_checkpoint(trainer: SegmentationTrainer, folder: str) -> None:
    """Publish a checkpoint's student in the background, unless the last one is still on its way."""
    if not trainer.is_world_process_zero() or trainer.args.hub_strategy == HubStrategy.END:
        return
    busy = trainer.push_in_progress is not None and not trainer.push_in_progress.is_done()
    if busy and not trainer.args.hub_always_push:
        return
    trainer.callback_handler.on_push_begin(trainer.args, trainer.state, trainer.control)
    # In memory: the checkpoint may be removed before it has been sent.
    plan, message = _in_memory(_plan(trainer, folder)), f"Training in progress, step {trainer.state.global_step}"
    job = _in_background(_hub(trainer), plan, revision=trainer.args.hub_revision, message=message)
    if busy:
        trainer.push_in_progress.jobs.append(job)
    else:
        trainer.push_in_progress = PushInProgress([job])


def write_own_card(trainer: SegmentationTrainer, tags: str | list[str] | None, **given: str | None) -> None:
    """Write our card into the output folder, never over one that somebody wrote by hand.

    Args:
        trainer: of the model.
        tags: tags beside the package's own.
        given: facts that replace the known ones, where they are not None.
    """
    if not trainer.is_world_process_zero() or not isinstance(trainer.student, PreTrainedModel):
        return
    folder = Path(trainer.args.output_dir)
    path, known = folder / CARD_NAME, (folder / FACTS_NAME).is_file()
    if path.is_file() and (not known or is_handwritten(path)):
        return
    facts = read_facts(folder) if known else _card_facts(trainer, folder)
    tags = [tags] if isinstance(tags, str) else tags or []
    chosen = {name: value for name, value in given.items() if value is not None}
    facts = replace(facts, **chosen, tags=list(dict.fromkeys([*facts.tags, *tags])))
    write_facts(folder, facts)
    write_card(folder, facts)


def _card_facts(trainer: SegmentationTrainer, folder: Path) -> CardFacts:
    training = TrainingFacts(
        seed=trainer.args.seed,
        iterations=trainer.state.global_step,
        hardware=machine_name(),
        versions=library_versions(),
    )
    return CardFacts(model_name=folder.resolve().name, training=training, **network_facts(trainer.evaluated_student))


def _plan(trainer: SegmentationTrainer, folder: str) -> PushPlan:
    return plan_push(folder, trainer.hub_model_id, needs_config=isinstance(trainer.student, PreTrainedModel))


def _in_background(api: HfApi, plan: PushPlan, **options: Any) -> Future[PushPlan]:
    job = api.run_as_future(send, plan, api, **options)
    job.add_done_callback(_report_failure)
    return job


def _hub(trainer: SegmentationTrainer, token: str | None = None) -> HfApi:
    """A client of the Hub; one for the whole run, so that pushes in the background go one after the other."""
    from huggingface_hub import HfApi

    if token is not None:
        return HfApi(token=token, library_name="afdcd_hf")
    if trainer.hub_client is None:
        trainer.hub_client = HfApi(token=trainer.args.hub_token, library_name="afdcd_hf")
    return trainer.hub_client


def _in_memory(plan: PushPlan) -> PushPlan:
    return replace(plan, files=[replace(file, content=file.read()) for file in plan.files])


def _report_failure(job: Future[PushPlan]) -> None:
    """A push in the background that fails must not end a training, and must not go unnoticed."""
    if not job.cancelled() and (error := job.exception()) is not None:
        logger.warning("A push in the background failed, the training goes on: %s", error)
