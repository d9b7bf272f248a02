"""Random masks and dropout: the same from the same seed, other ones on another rank, and the same shuffling on all."""

from __future__ import annotations

import pytest
import torch
from tiny import distilling, loss_options, same, weights

from afdcd_hf.losses import build_loss
from afdcd_hf.losses.mgd import random_mask
from afdcd_hf.losses.random_source import RandomSource
from afdcd_hf.training.distributed import rank_generator

MAP = torch.zeros(2, 3, 8, 8)


# Generators


def test_a_mask_follows_its_generator_and_leaves_the_global_one_alone():
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    masks = [random_mask(MAP, 0.5, RandomSource(rank_generator(0, rank, "cpu"))) for rank in (0, 0, 1)]
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("channels", [((3,), (8,)), ((3, 3), (8, 8))])
def test_a_generator_reaches_every_loss_inside_and_no_state_dict(channels):
    torch.manual_seed(0)
    loss = build_loss("kd+af_dcd", loss_options(patch_size=1), *channels)
    names, config = list(loss.state_dict()), loss.get_config_dict()
    assert loss.generator is None
    loss.generator = generator = rank_generator(0, 0, "cpu")
    inner = loss.losses["af_dcd"]
    assert all(part.generator is generator for part in (loss, inner, *getattr(inner, "losses", {}).values()))
    assert list(loss.state_dict()) == names and loss.get_config_dict() == config
    loss.generator = None
    assert inner.generator is None


# The trainer


def test_the_trainer_draws_its_masks_and_the_losses_weights_from_its_seed_alone(tmp_path):
    drawn, started = [], []
    for seed, before in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(before)
        trainer = distilling(tmp_path, seed=seed)
        started.append(weights(trainer.loss_module))
        drawn.append(torch.rand(8, generator=trainer.loss_module.losses["af_dcd"].generator))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert same(started[0], started[1]) and not same(started[0], started[2])
