"""The whole distillation step for `benchmark.py`: the trainer's and the released one, alternating."""

from __future__ import annotations

import argparse
import contextlib
import copy
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial

import torch
from measuring import OURS, RELEASED, Clock, PeakMemory, check_equal, spread
from released import ReleasedStep
from torch import Tensor, nn
from transformers import TrainerCallback

from afdcd_hf import AfDcdForSemanticSegmentation, DistillationTrainer, DistillationTrainingArguments
from afdcd_hf.losses.mgd import random_mask
from afdcd_hf.losses.projectors import PlainProjector

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SEED, MASK_RATIO, LEARNING_RATE = 0, 0.75, 0.02
# relative, per term; the second step adds rounding of the optimizer and of batch norm over few values
STEP_TOLERANCES = {"fp32": 2e-3, "bf16": 1e-1}
CAMVID = {"auxiliary": 0.4, "kd": 1.0, "feature": 8e-6, "contrast": 1e-2}  # weights of the paper's recipe
CLASSES, CROP = 11, (360, 360)
WARM_UP = 3  # steps: two are compared, and the third is the first one with another projector


class Turns(TrainerCallback):
    """Alternates a released step with the trainer's own: after it in one step, before it in the next.

    Both start with the same weights and draw the same mask in each step.

    Args:
        released: functions that run one step and return its terms; the first is used twice, then the last.
        clock: for both.
        device: device whose memory is measured.
    """

    def __init__(self, released: list[Callable[[], dict]], clock: Clock, device: torch.device):
        self.released, self.clock, self.memory = released, clock, PeakMemory(device)
        self.seconds = {OURS: [], RELEASED: []}
        self.peaks = {OURS: [], RELEASED: []}
        self.terms: list[dict[str, Tensor]] = []

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step % 2:
            self.released_step()
        torch.manual_seed(state.global_step)
        self.memory.start()
        self.start = self.clock.now()

    def on_step_end(self, args, state, control, **kwargs):
        self.add(OURS, self.clock.now() - self.start)
        if state.global_step % 2:  # already incremented
            self.released_step()

    def released_step(self) -> None:
        torch.manual_seed(len(self.terms))  # the number of this step
        self.memory.start()
        start = self.clock.now()
        terms = self.released[0 if len(self.terms) < 2 else -1]()
        self.add(RELEASED, self.clock.now() - start)
        self.terms.append(terms)

    def add(self, way: str, seconds: float) -> None:
        self.seconds[way].append(seconds)
        self.peaks[way].append(self.memory.stop())


def step_cases(args: argparse.Namespace) -> Iterator[dict]:
    """Yield DeepLabV3-R101 to R18 in the trainer, with CamVid's recipe: the paper's projector, then a cheap one.

    The released computation is timed with the paper's in both cases; the two compared steps use the same one as ours.
    """
    for projector in ("plain", "depthwise"):
        yield step_case(projector, args)


def step_case(projector: str, args: argparse.Namespace) -> dict:
    if args.compile_step:
        from torch._inductor import config

        config.fallback_random = True  # to draw the same mask as the released step, which is not compiled
    torch.manual_seed(SEED)
    crop, backbone = ((72, 72), "resnet18") if args.small else (CROP, "resnet101")
    batch = {"pixel_values": torch.randn(args.batch, 3, *crop), "labels": torch.randint(CLASSES, (args.batch, *crop))}
    student, teacher = model("resnet18", auxiliary_head=True), model(backbone)
    with tempfile.TemporaryDirectory() as folder:
        trainer = our_trainer(student, teacher, projector, batch, folder, args)
        steps = [partial(twin, **on(args.device, batch)) for twin in released_twins(trainer, args)]
        turns = Turns(steps, Clock(args.device), args.device)
        trainer.add_callback(turns)
        with contextlib.redirect_stdout(sys.stderr):  # only the table goes to standard output
            trainer.train()
    # equal terms in the second step show that the weights were updated equally
    difference = max(
        difference_of_terms(*both) for both in zip(trainer.state.log_history[:2], turns.terms, strict=False)
    )
    sizes = f"({args.batch}, 3, {crop[0]}, {crop[1]}), {precision_of(trainer)}"
    name = f"whole step, {backbone} to resnet18, {projector} projector, {sizes}"
    check_equal(name, difference, STEP_TOLERANCES[args.step_dtype])
    measured = {
        way: {**spread(turns.seconds[way][WARM_UP:]), "memory_mib": max(turns.peaks[way][WARM_UP:])}
        for way in turns.peaks
    }
    return {"case": name, "difference": difference, **measured, "parts_of_ours": trainer.speed["time_split"]}


def difference_of_terms(logged: dict[str, float], released: dict[str, Tensor]) -> float:
    """Return the largest difference of a term, relative to the released one or to a thousandth of the largest."""
    least = 1e-3 * max(abs(term.item()) for term in released.values())
    return max(abs(logged[f"loss_{name}"] - term.item()) / max(term.item(), least) for name, term in released.items())


def model(backbone: str, **options) -> AfDcdForSemanticSegmentation:
    """Build a model like the released ones, without dropout, whose random draws would differ between the versions."""
    deep_stem = {"stem_type": "deep", "stem_width": 64}
    options = {"backbone_kwargs": deep_stem, "num_labels": CLASSES, "pretrained_backbone": False, **options}
    built = AfDcdForSemanticSegmentation.from_backbone(backbone, **options)
    for module in built.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return built


def our_trainer(
    student: nn.Module,
    teacher: nn.Module,
    projector: str,
    batch: dict[str, Tensor],
    folder: str,
    args: argparse.Namespace,
) -> DistillationTrainer:
    weights = {"feature_weight": CAMVID["feature"], "contrast_weight": CAMVID["contrast"], "pool_size": 1}
    weights |= {"projector": projector}
    settings = DistillationTrainingArguments(
        output_dir=folder,
        loss="kd+af_dcd",
        loss_kwargs={"kd": {"weight": CAMVID["kd"]}, "af_dcd": weights},
        aux_weight=CAMVID["auxiliary"],
        per_device_train_batch_size=args.batch,
        max_steps=WARM_UP + args.repeats,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        lr_scheduler_kwargs={},
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        preflight=False,
        seed=SEED,
        use_cpu=args.device.type == "cpu",
        channels_last=True,
        fold_teacher_batch_norm=True,
        bf16=args.step_dtype == "bf16",
        torch_compile=args.compile_step,
    )
    samples = [{name: tensor[index] for name, tensor in batch.items()} for index in range(args.batch)]
    return DistillationTrainer(student, teacher, settings, train_dataset=samples, data_collator=lambda _: dict(batch))


def released_twins(trainer: DistillationTrainer, args: argparse.Namespace) -> list[ReleasedStep]:
    """Build the released step on copies of the trainer's models, and one with the paper's projector if ours differs."""
    loss = next(module for module in trainer.loss_module.modules() if hasattr(module, "projector"))
    same = isinstance(loss.projector[0], nn.Conv2d) and loss.projector[0].groups == 1  # ours is the paper's
    twins = []
    for projector in [loss.projector] if same else [loss.projector, PlainProjector(loss.projector[0].in_channels)]:
        parts = (trainer.student, trainer.teacher, loss.align, projector)
        copies = [copy.deepcopy(part).to(args.device, memory_format=torch.contiguous_format) for part in parts]
        draw = partial(random_mask, mask_ratio=MASK_RATIO)
        twins.append(ReleasedStep(*copies, draw_mask=draw, weights=CAMVID, learning_rate=LEARNING_RATE))
    return twins


def on(device: torch.device, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def precision_of(trainer: DistillationTrainer) -> str:
    return ("bf16" if trainer.args.bf16 else "fp32") + (" and compiled" if trainer.args.torch_compile else "")
