"""Random numbers that differ from rank to rank and epoch to epoch, and are the same whenever a run is repeated."""

from __future__ import annotations

import numpy as np
import torch
from transformers import TrainerCallback

from ..data.samples import TrainingSamples

_GENERATOR, _GLOBAL = 0, 1  # what a seed is for: no two uses share a stream


def rank_generator(seed: int, rank: int, device: torch.device | str) -> torch.Generator:
    """A generator for one rank's masks, on the device where they are drawn."""
    return torch.Generator(device).manual_seed(_rank_seed(seed, rank, _GENERATOR))


class RankSeedCallback(TrainerCallback):
    """Lets dropout differ from rank to rank, by another global torch seed on each from the first step on.

    The Trainer seeds all ranks alike, which gives them equal weights to start from, and would hide the same units on
    all of them. A resumed run is left alone: the Trainer restores the state of each rank. So is a single process.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        """Called by the Trainer once data loader, network and optimizer are there."""
        if args.world_size > 1 and state.global_step == 0:
            torch.manual_seed(_rank_seed(args.seed, args.process_index, _GLOBAL))


class EpochCallback(TrainerCallback):
    """Tells the training samples which epoch it is, so that augmentation differs from epoch to epoch.

    accelerate does this for iterable datasets and samplers only. Persistent data workers see it too: the number lies in
    shared memory.
    """

    def __init__(self, samples: TrainingSamples):
        self.samples = samples

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Called by the Trainer, also for the epoch in which a run is resumed."""
        self.samples.set_epoch(int(state.epoch or 0))


def _rank_seed(seed: int, rank: int, use: int) -> int:
    return int(np.random.SeedSequence([seed, rank, use]).generate_state(1, np.uint64)[0])
