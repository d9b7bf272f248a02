"""Random masks and dropout: the same from the same seed, other ones on another rank, and the same shuffling on all."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import distilling, loss_options, run_two_processes, same, samples, weights

from afdcd_hf.cli.process_group import leave_process_group
from afdcd_hf.features import Activations
from afdcd_hf.losses import build_loss
from afdcd_hf.losses.masks import draw_mask, random_mask
from afdcd_hf.losses.random_source import RandomSource
from afdcd_hf.training.randomness import RankSeedCallback, rank_generator

MAP = torch.zeros(2, 3, 8, 8)


def draws(seed: int, rank: int) -> torch.Tensor:
    return torch.rand(64, generator=rank_generator(seed, rank, "cpu"))


# Generators


def test_a_rank_draws_the_same_from_the_same_seed_and_other_numbers_from_another():
    assert torch.equal(draws(0, 1), draws(0, 1))
    drawn = [draws(*each) for each in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 10))]
    assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_a_mask_follows_its_generator_and_leaves_the_global_one_alone():
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    masks = [random_mask(MAP, 0.5, RandomSource(rank_generator(0, rank, "cpu"))) for rank in (0, 0, 1)]
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert torch.equal(draw_mask("random", MAP, 0.5, RandomSource(rank_generator(0, 0, "cpu"))), masks[0])


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
    assert all(part.generator is generator for part in (loss, inner, *getattr(inner, "losses", ())))
    assert list(loss.state_dict()) == names and loss.get_config_dict() == config
    loss.generator = None
    assert inner.generator is None


def test_two_pairs_hide_other_positions_but_draw_from_one_generator():
    loss = build_loss("af_dcd", {"af_dcd": loss_options(contrast_weight=0.0)["af_dcd"]}, (3, 3), (8, 8))
    loss.losses[1].load_state_dict(loss.losses[0].state_dict())
    loss.generator = rank_generator(0, 0, "cpu")
    noise = torch.randn(2, 11, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = [Activations(noise[:, :1], each, (each,)) for each in (noise[:, :3], noise[:, 3:])]
    terms = loss(*seen)
    assert terms["feature_1"] != terms["feature_2"]
    loss.generator = rank_generator(0, 0, "cpu")
    assert all(torch.equal(again, terms[name]) for name, again in loss(*seen).items())


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


def test_two_compiled_losses_draw_from_their_own_generators():
    first, seen = two_pairs()
    second = copy.deepcopy(first)
    second.generator.manual_seed(5)
    compiled = [torch.compile(loss, backend="aot_eager") for loss in (first, second)]
    terms = [loss(*seen)["feature_1"] for loss in compiled]
    assert terms[0] != terms[1]
    second.generator.manual_seed(5)
    assert torch.equal(compiled[1](*seen)["feature_1"], terms[1])


# The trainer


def test_the_trainer_draws_its_masks_from_its_seed_alone(tmp_path):
    drawn = []
    for seed, before in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(before)
        trainer = distilling(tmp_path, seed=seed)
        drawn.append(torch.rand(8, generator=trainer.loss_module.losses["af_dcd"].generator))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_training_again_from_the_same_seed_ends_alike(tmp_path):
    ended = []
    for _ in range(2):
        trainer = distilling(tmp_path)
        trainer.train()
        ended.append(weights(trainer.model))
        torch.rand(3)  # the global generator is elsewhere when the second begins
    assert same(*ended)


@pytest.mark.parametrize(("world_size", "step", "seeded"), [(2, 0, True), (2, 5, False), (1, 0, False)])
def test_only_the_beginning_of_a_run_on_several_ranks_is_seeded_per_rank(world_size, step, seeded):
    drawn = []
    for rank in range(2):
        torch.manual_seed(0)
        args = SimpleNamespace(seed=0, process_index=rank, world_size=world_size)
        RankSeedCallback().on_train_begin(args, SimpleNamespace(global_step=step), None)
        drawn.append(torch.rand(8))
    assert torch.equal(*drawn) is not seeded
    torch.manual_seed(0)
    assert torch.equal(torch.rand(8), drawn[0]) is not seeded


class Recording(torch.utils.data.Dataset):
    """Training samples that write down which of them are asked for."""

    def __init__(self):
        self.samples, self.asked = samples(8), []

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        self.asked.append(index)
        return self.samples[index]


@pytest.mark.slow
def test_ranks_draw_other_masks_and_dropout_but_share_one_order_of_samples(tmp_path):
    run_two_processes(__file__, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["weights"] == second["weights"]
    assert first["dropped"] and first["dropped"] != second["dropped"]
    assert first["masks"] != second["masks"]
    for mine, others in zip(first["asked"], second["asked"], strict=True):  # two trainings of one epoch each
        assert sorted(mine + others) == list(range(8))


def _train_on_this_rank(folder: Path) -> None:
    dataset = Recording()
    options = {"total_batch_size": 4, "max_steps": 2, "student_layer": "backbone[-1]"}
    trainer = distilling(folder / "run", train_dataset=dataset, **options)
    seen = {"weights": sum(p.double().sum().item() for p in trainer.model.parameters()), "asked": []}
    dropout = next(module for module in trainer.student.modules() if isinstance(module, torch.nn.Dropout))
    dropped = []
    dropout.register_forward_hook(lambda module, inputs, output: dropped.append((output == 0).long().sum((2, 3))))
    for _ in range(2):
        dataset.asked = []
        trainer.train()
        seen["asked"].append(dataset.asked)
    seen["dropped"] = [each.tolist() for each in dropped]
    seen["masks"] = torch.rand(8, generator=trainer.loss_module.generator).tolist()
    (folder / f"{trainer.args.process_index}.json").write_text(json.dumps(seen))


if __name__ == "__main__":  # one of the two processes
    torch.set_num_threads(1)
    _train_on_this_rank(Path(sys.argv[1]))
    leave_process_group()
