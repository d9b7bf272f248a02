"""The end of a process that `torchrun` or `accelerate launch` connected with others."""

from __future__ import annotations

import gc
import sys
import time

# What gloo's threads need to free their last tensors, many times over.
_SECONDS_FOR_GLOO = 0.1


def leave_process_group() -> None:
    """Part from the other processes, where there are any; call it on every rank, when all work is done.

    Without it NCCL warns on leaving, and where gloo is used a finished run can end with SIGABRT ("terminate called
    without an active exception"): a thread of gloo frees the tensor of the last collective operation after the
    caller has gone on, asks for the interpreter in order to do so and, in Python < 3.14, is ended within C++ if that
    is shutting down. Destroying the group joins these threads, but for those of groups that something still holds, as
    DistributedDataParallel's reducer does for ever: they get a moment.
    """
    distributed = sys.modules.get("torch.distributed")  # if nobody imported it, there is no group
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    gc.collect()  # a trainer, which refers to itself, holds its groups
    distributed.destroy_process_group()
    time.sleep(_SECONDS_FOR_GLOO)
