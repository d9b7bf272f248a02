"""Helpers for training on several processes and GPUs; accelerate and torchrun launch them."""

from __future__ import annotations

import logging
from typing import Any, TypeVar

import numpy as np
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import broadcast
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import RandomSampler, Sampler
from transformers import TrainingArguments

from ..models.modeling_afdcd import AfDcdForSemanticSegmentation

logger = logging.getLogger(__name__)

DEFAULT_BATCH_SIZE = 16
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def device_batch_size(total: int | None, per_device: int | None, processes: int, accumulation: int) -> int:
    """Return the batch size per device for `total` images per optimizer step; either number may be None."""
    if total is None:
        return DEFAULT_BATCH_SIZE if per_device is None else per_device
    share, shown = processes * accumulation, f"{processes} process(es) with {accumulation} accumulation step(s)"
    if total < 1 or total % share:
        fitting = [str(steps) for steps in range(1, total + 1) if total % (processes * steps) == 0]
        raise ValueError(
            f"total_batch_size={total} cannot be split over {shown}: it must be a multiple of {share}. Accumulation "
            f"steps that work with {processes} process(es): {', '.join(fitting) or 'none'}."
        )
    if per_device not in (None, total // share):
        raise ValueError(
            f"total_batch_size={total} on {shown} makes {total // share} image(s) per process, but "
            f"per_device_train_batch_size={per_device} was given. Give only one of the two."
        )
    return total // share


def images_per_step(args: TrainingArguments) -> int:
    """Return the number of images per optimizer step, over all processes and accumulation steps."""
    return args.train_batch_size * args.world_size * args.gradient_accumulation_steps


def rank_seed(seed: int, rank: int) -> int:
    """Return the seed for a rank's own random numbers, different for every rank."""
    return int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0])


def broadcast_buffers(world_size: int, *modules: nn.Module) -> None:
    """Give all ranks the batch norm statistics of rank 0, which are saved; under DDP they drift apart."""
    if world_size > 1:
        for buffer in dict.fromkeys(buffer for module in modules for buffer in module.buffers()):
            buffer.copy_(broadcast(buffer.clone(), from_process=0))


def trim_to_whole_steps(sampler: Sampler | None, args: TrainingArguments) -> Sampler | None:
    """Trim a random sampler to whole optimizer steps if `dataloader_drop_last`; the loader trims to batches only."""
    if not args.dataloader_drop_last or type(sampler) is not RandomSampler:
        return sampler
    whole = len(sampler) // images_per_step(args) * images_per_step(args)
    return RandomSampler(sampler.data_source, num_samples=whole, generator=sampler.generator)


def use_one_gpu_per_process(args: TrainingArguments) -> None:
    """Prevent `nn.DataParallel`, which would multiply the batch size and run our hooks on temporary replicas."""
    if args.n_gpu > 1:
        how = f"torchrun --nproc_per_node {args.n_gpu} scripts/distill.py (or train.py) with the same arguments"
        logger.warning("This process sees %d GPUs but uses only the first. To train on all: %s.", args.n_gpu, how)
        args._n_gpu = 1


def synchronise_batch_norm(module: AnyModule, args: Any) -> AnyModule:
    """Compute batch norm statistics over the images of all GPUs, unless disabled; a no-op without several GPUs."""
    if args.sync_batch_norm and args.device.type != "cuda":
        raise ValueError(f"sync_batch_norm=True needs GPUs: torch cannot do it on {args.device.type}. Leave it out.")
    enabled = args.sync_batch_norm is not False and args.device.type == "cuda" and args.world_size > 1
    if not enabled or any(isinstance(part, nn.SyncBatchNorm) for part in module.modules()):
        return module
    return convert_sync_batchnorm(module)  # timm's version keeps the activation in timm's combined layers


def check_clipping(deepspeed: bool, loss_max_grad_norm: float) -> None:
    """Refuse to clip under DeepSpeed, which applies its gradients before they can be reached."""
    if deepspeed and loss_max_grad_norm > 0:
        raise ValueError("DeepSpeed cannot clip the gradients of the loss's own weights: give --loss_max_grad_norm 0.")


def check_fsdp(plugin: FullyShardedDataParallelPlugin) -> None:
    """Refuse FSDP settings that would not save a student that `from_pretrained` can load."""
    if plugin.fsdp_version != 2 or "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise ValueError("FSDP would save no student: set fsdp_version: 2 and fsdp_state_dict_type: FULL_STATE_DICT.")


def gather_full_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gather tensors sharded by FSDP; others are returned unchanged. Call on every process."""
    return {name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in tensors.items()}


def resolve_find_unused_parameters(args: Any, student: nn.Module) -> None:
    """Set whether DDP searches for unused parameters; our own models have none, unless steps skip the teacher."""
    skips = getattr(args, "skips_teacher", False)
    if skips and args.ddp_find_unused_parameters is False and args.world_size > 1:
        raise ValueError("distill_every and distill_until: leave out ddp_find_unused_parameters=False, or DDP fails.")
    if skips or args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = skips or not isinstance(student, AfDcdForSemanticSegmentation)
