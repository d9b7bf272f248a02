"""Pushing to the Hub during and after training: `push_to_hub=True`."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from ..cost.machine import library_versions, machine_name
from ..hub.card_facts import FACTS_NAME, CardFacts, TrainingFacts, write_facts
from ..hub.folder_facts import network_facts, update_card
from ..hub.model_card import CARD_NAME, is_handwritten
from ..hub.push import PushPlan, make_repository, plain_hub_errors, plan_push, send

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi
    from transformers import TrainerControl

    from .training_args import SegmentationTrainingArguments

logger = logging.getLogger(__name__)


class HubTrainer(Trainer):
    """`transformers.Trainer` that uploads only what `afdcd push` would: the student and its card."""

    args: SegmentationTrainingArguments
    control: TrainerControl
    hub_model_id: Any
    push_in_progress: Any
    _hub_client: HfApi | None = None  # one for the whole run, so that background pushes run one after another

    @property
    def evaluated_student(self) -> nn.Module:
        """The model that is evaluated, saved and published."""
        raise NotImplementedError

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository `hub_model_id`, by default named after the output folder, before training."""
        if (strategy := self.args.hub_strategy) in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            text = "would publish optimizer and projector; use 'every_save' or 'end'."
            raise ValueError(f"hub_strategy={strategy.value!r} {text}")
        if not self.is_world_process_zero():
            return
        api, name = self._hub(token), self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        with plain_hub_errors(name, api.endpoint):
            name = name if "/" in name else f"{api.whoami()['name']}/{name}"
            make_repository(api, name, self.args.hub_private_repo if private is None else private)
        self.hub_model_id, self.push_in_progress = name, None

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> CommitInfo | Future[PushPlan] | None:
        """Save the student and push it with its card; `card` takes the arguments of `create_model_card`.

        Returns the commit, or with `blocking=False` a future of the push; None on all but the main process.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**card)
        self._finish_current_push()
        plan = self._plan(self.args.output_dir)
        for note in plan.notes:
            logger.warning("%s", note)
        options: dict[str, Any] = {"revision": revision or self.args.hub_revision, "message": commit_message}
        if not blocking:
            return self._in_background(plan, token, **options)
        try:
            commit: Any = send(plan, self._hub(token), **options).commit
        except OSError as error:
            folder, again = self.args.output_dir, f"afdcd push {self.args.output_dir} {self.hub_model_id}"
            raise type(error)(f"{error} The model is saved in {folder}: `{again}` retries it.") from error
        logger.info("pushed: %s", commit.commit_url)
        return commit

    def create_model_card(
        self,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        **others: Any,
    ) -> None:
        """Write our model card into the output folder, unless there is a hand-written one.

        `license` and `finetuned_from` are Hub identifiers, `model_name` is the title, and `tags` are added to the
        existing ones. Other arguments of transformers' method are not supported and raise ValueError.
        """
        if unused := sorted(name for name, value in others.items() if value is not None):
            raise ValueError(f"our card does not support {', '.join(unused)}; write {CARD_NAME} by hand instead.")
        student, folder = self.evaluated_student, Path(self.args.output_dir)
        if not self.is_world_process_zero() or not isinstance(student, PreTrainedModel):
            return
        path, known = folder / CARD_NAME, (folder / FACTS_NAME).is_file()
        if path.is_file() and (not known or is_handwritten(path)):
            return
        if not known:
            made: dict[str, Any] = {"hardware": machine_name(), "versions": library_versions()}
            training = TrainingFacts(seed=self.args.seed, iterations=self.state.global_step, **made)
            name = folder.resolve().name
            write_facts(folder, CardFacts(model_name=name, training=training, **network_facts(student)))
        given: dict[str, Any] = {"license": license, "model_name": model_name, "base_model": finetuned_from}
        given = {name: value for name, value in given.items() if value is not None}
        update_card(folder, tags=[tags] if isinstance(tags, str) else tags or [], **given)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint's student in the background, unless an earlier push is still running."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        job = self._in_background(self._plan(checkpoint_folder), revision=self.args.hub_revision, message=message)
        self.push_in_progress = PushInProgress([*(self.push_in_progress.jobs if busy else ()), job])

    def _plan(self, folder: str) -> PushPlan:
        return plan_push(folder, self.hub_model_id, needs_config=isinstance(self.evaluated_student, PreTrainedModel))

    def _in_background(self, plan: PushPlan, token: str | None = None, **options: Any) -> Future[PushPlan]:
        # read into memory, because the folder may be removed or overwritten before the upload
        plan, api = replace(plan, files=[replace(file, content=file.read()) for file in plan.files]), self._hub(token)
        return api.run_as_future(_send, plan, api, **options)

    def _hub(self, token: str | None = None) -> HfApi:
        from huggingface_hub import HfApi

        if token is not None:
            return HfApi(token=token, library_name="afdcd_hf")
        self._hub_client = self._hub_client or HfApi(token=self.args.hub_token, library_name="afdcd_hf")
        return self._hub_client


def _send(plan: PushPlan, api: HfApi, **options: Any) -> PushPlan:
    """Send a plan in the background; its failure, which does not end the training, is logged before the job is done."""
    try:
        return send(plan, api, **options)
    except Exception as error:
        logger.warning("A background push failed; training continues: %s", error)
        raise
