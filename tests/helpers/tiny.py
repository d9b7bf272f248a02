"""Small models, data and runs shared by the tests of training, evaluation and the command line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from images import TINY_RESNET, labelled_image
from paths import ROOT
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from afdcd_hf import (
    AfDcdForSemanticSegmentation,
    AfDcdImageProcessor,
    DistillationTrainer,
    DistillationTrainingArguments,
    SegmentationTrainer,
    SegmentationTrainingArguments,
)
from afdcd_hf.data import RandomScaleCropFlip, TrainingSamples


def segmenter(seed: int = 0, channels: int = 32, num_labels: int = 4, **config) -> AfDcdForSemanticSegmentation:
    """An FCN on a ResNet of four blocks whose last map has `channels` channels; equal arguments give equal weights."""
    kwargs = {**TINY_RESNET, "channels": [8, 16, 16, channels]}
    settings = {"backbone": "resnet18", "backbone_kwargs": kwargs, "head": "fcn", "head_channels": 8, **config}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AfDcdForSemanticSegmentation.from_backbone(num_labels=num_labels, pretrained_backbone=False, **settings)


def saved(folder: Path, model: nn.Module, **options) -> Path:
    """Save a model and its image processor to a folder."""
    model.save_pretrained(folder, **options)
    AfDcdImageProcessor().save_pretrained(folder)
    return folder


def segformer(num_labels: int = 4) -> SegformerForSemanticSegmentation:
    """A random SegFormer; stages of 8, 16, 16 and 32 channels at strides 4, 8, 16 and 32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        sizes = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 16, 32], "num_attention_heads": [1, 1, 2, 2]}
        return SegformerForSemanticSegmentation(SegformerConfig(num_labels=num_labels, decoder_hidden_size=16, **sizes))


def without_batch_effects(model: nn.Module) -> nn.Module:
    """Keep batch norm in eval mode permanently and disable dropout, so that images are treated independently."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module  # the Trainer would set training mode again
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def samples(
    count: int = 8, scales=(0.75, 1.0, 1.25), flip: float = 0.5, num_labels: int = 4, **options
) -> TrainingSamples:
    """Augmented crops of 32x48 pixels from images of that size."""
    images = [labelled_image(index, num_labels, 32, 48) for index in range(count)]
    transform = RandomScaleCropFlip(AfDcdImageProcessor(), (32, 48), scales=scales, flip_probability=flip)
    return TrainingSamples(images, transform, num_labels=num_labels, **options)


def same_batch_every_step() -> TrainingSamples:
    """Four samples without augmentation, on which the loss falls in every step."""
    return samples(4, scales=[1.0], flip=0.0)


def pictures(count: int = 3) -> list[dict]:
    """Images for evaluation, different from those of `samples`."""
    return [labelled_image(100 + index, 4, 32, 48) for index in range(count)]


def settings(folder: str | Path, **options) -> dict:
    """Arguments of a short run on the CPU that logs every step and saves nothing."""
    batch = {} if "total_batch_size" in options else {"per_device_train_batch_size": 4}
    batch |= {"output_dir": str(folder), "max_steps": 2, "learning_rate": 0.05, "logging_steps": 1}
    return {**batch, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True, **options}


def supervised(folder: str | Path, model: nn.Module | None = None, **options) -> SegmentationTrainer:
    """A supervised trainer; `options` are arguments of the run, or `train_dataset` and the like."""
    options, parts = _split(options)
    args = SegmentationTrainingArguments(**settings(folder, **options))
    return SegmentationTrainer(model or segmenter(), args, **parts)


def distilling(
    folder: str | Path, student: nn.Module | None = None, teacher: nn.Module | None = None, **options
) -> DistillationTrainer:
    """A trainer that distils a 48-channel map to a 32-channel one; `options` as for `supervised`."""
    options, parts = _split(options)
    options = {"loss": "kd+af_dcd", "loss_kwargs": loss_options(), **options}
    if "loss_instance" in options:
        parts["loss"] = options.pop("loss_instance")
    args = DistillationTrainingArguments(**settings(folder, **options))
    return DistillationTrainer(student or segmenter(), teacher or segmenter(1, channels=48), args, **parts)


def loss_options(**af_dcd) -> dict:
    """Options of `kd+af_dcd` for maps of 4x6 pixels and 48 channels, with terms about as large as the task loss."""
    own = {"feature_weight": 0.5, "contrast_weight": 0.02, "pool_size": 1, "channel_groups": 4, "reduction": "mean"}
    return {"kd": {"weight": 1.0}, "af_dcd": {**own, **af_dcd}}


def _split(options: dict) -> tuple[dict, dict]:
    parts = {"train_dataset": samples(), "eval_dataset": pictures(), "processing_class": AfDcdImageProcessor()}
    others = ("data_collator", "callbacks", "teacher_processor", "optimizers")
    parts |= {name: options[name] for name in (*parts, *others) if name in options}
    return {name: value for name, value in options.items() if name not in parts}, parts


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Copy a module's parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two state dicts are bit-for-bit equal."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Largest absolute difference over all tensors of two state dicts."""
    assert first.keys() == second.keys()
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)


def logged(trainer: SegmentationTrainer, key: str) -> list[float]:
    """The values of one quantity in the trainer's log, in order."""
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def passes_of(module: nn.Module) -> list[int]:
    """A list that grows with each forward pass."""
    passes: list[int] = []
    module.register_forward_hook(lambda *_: passes.append(1))
    return passes


def with_scores(trainer: SegmentationTrainer, *scores: float) -> SegmentationTrainer:
    """Let the trainer's evaluations return these values of mean IoU, one after another."""
    values = iter(scores)

    def evaluate(**_) -> dict[str, float]:
        trainer.control.should_evaluate = False  # as a real evaluation does
        return {"eval_mean_iou": next(values)}

    trainer.evaluate = evaluate
    return trainer


def run_processes(
    script: str | Path, *arguments: str | Path, processes: int = 2, gpus: bool = False, timeout: float = 280
) -> str:
    """Run a script under torchrun, on CPU processes (gloo) or one GPU each (nccl), and return its output."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(port), str(script), *map(str, arguments)]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "helpers")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {} if gpus else {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, env=environment, timeout=timeout, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout
