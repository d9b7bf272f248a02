"""What a training needs to know of the processes and GPUs it runs on; starting them is accelerate's and torchrun's."""

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
    """Images that one process takes at a time, where `total` images make an optimizer step; each may be left out."""
    if total is None:
        return DEFAULT_BATCH_SIZE if per_device is None else per_device
    share, shown = processes * accumulation, f"{processes} process(es) with {accumulation} accumulation step(s)"
    if total < 1 or total % share:
        fitting = [str(steps) for steps in range(1, total + 1) if total % (processes * steps) == 0]
        raise ValueError(
            f"total_batch_size={total} cannot be shared by {shown}: it must be a multiple of {share}. Accumulation "
            f"steps that work with {processes} process(es): {', '.join(fitting) or 'none'}."
        )
    if per_device not in (None, total // share):
        raise ValueError(
            f"total_batch_size={total} on {shown} makes {total // share} image(s) per process, but "
            f"per_device_train_batch_size={per_device} was given. Give only one of the two."
        )
    return total // share


def images_per_step(args: TrainingArguments) -> int:
    """Images of one optimizer step, over all processes and accumulation steps."""
    return args.train_batch_size * args.world_size * args.gradient_accumulation_steps


def rank_seed(seed: int, rank: int) -> int:
    """The seed of what one rank draws for itself: no two ranks share a stream."""
    return int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0])


def align_buffers(world_size: int, *modules: nn.Module) -> None:
    """Give all ranks rank 0's batch-norm statistics: DDP lets them drift, and rank 0's are what is saved."""
    if world_size > 1:
        for buffer in dict.fromkeys(buffer for module in modules for buffer in module.buffers()):
            buffer.copy_(broadcast(buffer.clone(), from_process=0))


def of_whole_batches(sampler: Sampler | None, args: TrainingArguments) -> Sampler | None:
    """Cut a random sampler to whole optimizer steps, where incomplete batches are dropped: the loader sees its own."""
    if not args.dataloader_drop_last or type(sampler) is not RandomSampler:
        return sampler
    whole = len(sampler) // images_per_step(args) * images_per_step(args)
    return RandomSampler(sampler.data_source, num_samples=whole, generator=sampler.generator)


def use_one_gpu_per_process(args: TrainingArguments) -> None:
    """Keep the Trainer from `nn.DataParallel`, which would double the batch and run our hooks on throw-away copies."""
    if args.n_gpu > 1:
        how = f"torchrun --nproc_per_node {args.n_gpu} scripts/distill.py (or train.py) with the same arguments"
        logger.warning("This process sees %d GPUs and uses the first one. To train on all: %s.", args.n_gpu, how)
        args._n_gpu = 1


def synchronise_batch_norm(module: AnyModule, args: Any) -> AnyModule:
    """Have batch norm take its statistics over the images of all GPUs, by default where several of them train."""
    if args.sync_batch_norm and args.device.type != "cuda":
        raise ValueError(f"sync_batch_norm=True needs GPUs: torch has none for {args.device.type}. Leave it out.")
    shares = args.sync_batch_norm is not False and args.device.type == "cuda" and args.world_size > 1
    if not shares or any(isinstance(part, nn.SyncBatchNorm) for part in module.modules()):
        return module
    return convert_sync_batchnorm(module)  # timm's: torch's loses the activation in timm's combined layers


def check_clipping(deepspeed: bool, loss_max_grad_norm: float) -> None:
    """Refuse what would be left out silently: DeepSpeed keeps gradients to itself until it has applied them."""
    if deepspeed and loss_max_grad_norm > 0:
        raise ValueError("DeepSpeed cannot clip the gradients of the loss's own weights: give --loss_max_grad_norm 0.")


def check_sharding(plugin: FullyShardedDataParallelPlugin) -> None:
    """Refuse settings of FSDP with which no student would be saved that `from_pretrained` loads."""
    if plugin.fsdp_version != 2 or "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise ValueError("FSDP would save no student: set fsdp_version: 2 and fsdp_state_dict_type: FULL_STATE_DICT.")


def whole_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that FSDP has sharded, put together; others as they are. All processes have to call it."""
    return {name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in tensors.items()}


def settle_unused_parameter_search(args: Any, student: nn.Module) -> None:
    """Spare our own models, whose weights all take part, DDP's search for unused ones, unless the user has chosen."""
    at_times = getattr(args, "distils_at_times", False)
    if at_times and args.ddp_find_unused_parameters is False and args.world_size > 1:
        raise ValueError("distill_every and distill_until: leave out ddp_find_unused_parameters=False, or DDP stops.")
    if at_times or args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = at_times or not isinstance(student, AfDcdForSemanticSegmentation)
