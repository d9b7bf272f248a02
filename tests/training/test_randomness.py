"""Random masks and dropout: the same from the same seed, other ones on another rank, and the same shuffling on all."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tiny import distilling, loss_options, same, weights

from afdcd_hf.features import Activations
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
def test_a_mask_on_the_gpu_needs_a_generator_there():
    on_gpu = MAP.cuda()
    assert random_mask(on_gpu, 0.5, RandomSource(rank_generator(0, 0, "cuda"))).is_cuda
    with pytest.raises(RuntimeError, match="device"):
        random_mask(on_gpu, 0.5, RandomSource(rank_generator(0, 0, "cpu")))


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


def test_a_loss_with_a_generator_can_be_copied():
    loss = build_loss("af_dcd", {"af_dcd": loss_options()["af_dcd"]}, 3, 8)
    loss.generator = rank_generator(0, 0, "cpu")
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(copied.generator.get_state(), loss.generator.get_state())
        assert copied.generator is not loss.generator


def two_pairs():
    torch.manual_seed(0)
    loss = build_loss("kd+af_dcd", loss_options(patch_size=1), (3, 3), (8, 8))
    noise = torch.randn(2, 11, 8, 8, generator=torch.Generator().manual_seed(0))
    loss.generator = rank_generator(0, 0, "cpu")
    return loss, [Activations(noise[:, :4], each, (each,)) for each in (noise[:, :3], noise[:, 3:])]


def test_random_masks_compile_to_one_graph_with_the_draws_of_eager_mode():
    loss, seen = two_pairs()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    results = [compiled(*seen), compiled(*seen)]
    sum(results[0].values()).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in loss.named_parameters()}
    eager, seen = two_pairs()
    expected = [eager(*seen), eager(*seen)]
    sum(expected[0].values()).backward()
    for actual, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    for name, parameter in eager.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)
    assert expected[0]["feature_1"] != expected[1]["feature_1"]


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
