"""Invariance to the number of processes and accumulation steps, and support for several GPUs."""

from __future__ import annotations

import logging
import re
from contextlib import nullcontext
from types import SimpleNamespace

import paths
import pytest
import tiny
import torch
from accelerate.commands.config.config_args import load_config_from_file
from tiny import distilling, loss_options, same, samples, segmenter, supervised, weights, without_batch_effects
from torch import nn

from afdcd_hf import AfDcdForSemanticSegmentation
from afdcd_hf.training.callbacks import Randomness
from afdcd_hf.training.distributed import (
    check_clipping,
    check_fsdp,
    device_batch_size,
    resolve_find_unused_parameters,
    synchronise_batch_norm,
    use_one_gpu_per_process,
)

TERMS = ("loss", "loss_task", "loss_kd", "loss_feature", "loss_contrast")
CONFIGURATIONS = sorted((paths.ROOT / "scripts" / "accelerate").glob("*.yaml"))

# Batches


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((16, None, 2, 4), 2),
        ((None, None, 2, 4), 16),
        ((None, 3, 2, 4), 3),
        ((12, None, 4, 2), r"total_batch_size=12 .*multiple of 8\..* that work with 4 process\(es\): 1, 3\.$"),
        ((16, 4, 1, 2), r"makes 8 image\(s\).*=4 was given\. Give only one of the two\.$"),
    ],
)
def test_processes_times_accumulation_times_batch_size_is_the_total_batch_size(given, expected):
    with pytest.raises(ValueError, match=expected) if isinstance(expected, str) else nullcontext():
        assert device_batch_size(*given) == expected


def test_accumulating_two_batches_of_eight_trains_student_and_loss_weights_like_one_batch_of_sixteen(tmp_path):
    states, logs = [], []
    # at scale 1, all samples have equally many unlabelled pixels
    options = {"train_dataset": samples(21, scales=[1.0]), "loss_kwargs": loss_options(mask="center")}
    options |= {"learning_rate": 0.1, "max_steps": 4, "total_batch_size": 16}
    for accumulation in (1, 2):
        student = without_batch_effects(segmenter())
        trainer = distilling(tmp_path, student, **options, gradient_accumulation_steps=accumulation)
        before = weights(trainer.model)
        trainer.train()
        assert trainer.args.per_device_train_batch_size == 16 // accumulation
        states.append(weights(trainer.model))
        logs.append([tiny.logged(trainer, name) for name in TERMS])
    for part, moved in (("student.", 0.05), (".align.", 1e-3), (".projector.", 1e-4)):
        first, second, start = ({k: v for k, v in state.items() if part in k} for state in (*states, before))
        assert tiny.largest_difference(first, second) < 1e-6  # measured: 6e-8; float32 sums in a different order
        assert tiny.largest_difference(first, start) > moved
    for whole, shared in zip(*logs, strict=True):
        assert len(whole) == 4 and shared == pytest.approx(whole, rel=1e-5)


def test_every_step_has_a_full_batch_at_any_number_of_accumulation_steps(tmp_path):
    """Ten samples make two steps of four per epoch, and the same two are left out however they are split."""
    orders = []
    for accumulation in (1, 2, 4):
        batch = {"total_batch_size": 4, "gradient_accumulation_steps": accumulation}
        loader = supervised(tmp_path, train_dataset=samples(10), **batch).get_train_dataloader()
        assert len(loader) == 2 * accumulation
        epochs = []
        for epoch in range(2):
            loader.set_epoch(epoch)
            epochs.append([name for batch in loader for name in batch["names"]])
        assert all(len(set(names)) == 8 for names in epochs) and epochs[0] != epochs[1]
        orders.append(epochs)
    assert orders[0] == orders[1] == orders[2]
    options = {"total_batch_size": 4, "gradient_accumulation_steps": 4, "dataloader_drop_last": False}
    assert len(supervised(tmp_path, train_dataset=samples(10), **options).get_train_dataloader()) == 10


def test_with_unequal_numbers_of_labelled_pixels_the_loss_is_the_mean_over_batches(tmp_path):
    """As on the GPUs of the released code, and unlike one large batch, which averages over all its pixels."""
    dataset = [dict(sample) for sample in (samples(4, scales=[1.0], flip=0.0)[index] for index in range(4))]
    for sample in dataset[2:]:
        sample["labels"] = sample["labels"].clone()
        sample["labels"][4:] = 255  # most of the image
    network = without_batch_effects(segmenter())
    network.head.classifier.weight.data *= 100  # otherwise all losses are about ln 4
    pixels, labels = (torch.stack([sample[name] for sample in dataset]) for name in ("pixel_values", "labels"))
    logits = nn.functional.interpolate(network(pixels).logits, (32, 48), mode="bilinear", align_corners=True)
    each = nn.functional.cross_entropy(logits, labels, ignore_index=255, reduction="none").detach()
    means = [each[part].sum().item() / (labels[part] != 255).sum().item() for part in (slice(0, 2), slice(2, 4))]
    expected = {1: each.sum().item() / (labels != 255).sum().item(), 2: sum(means) / 2}
    assert abs(expected[1] - expected[2]) > 0.01 * expected[1]
    options = {"max_steps": 1, "train_sampling_strategy": "sequential", "train_dataset": dataset, "total_batch_size": 4}
    for accumulation in (2, 1):
        options["learning_rate"] = 1e-12  # the second run starts from the same weights
        trainer = supervised(tmp_path, network, gradient_accumulation_steps=accumulation, **options)
        trainer.train()
        assert tiny.logged(trainer, "loss") == [pytest.approx(expected[accumulation], rel=1e-4)]


# Synchronised batch norm


def synchronised(network: nn.Module, device: str, processes: int, wanted: bool | None = None) -> int:
    """Synchronise as on other devices; return the number of synchronised layers."""
    args = SimpleNamespace(device=torch.device(device), world_size=processes, sync_batch_norm=wanted)
    return sum(isinstance(module, nn.SyncBatchNorm) for module in synchronise_batch_norm(network, args).modules())


def test_batch_norm_is_synchronised_over_several_gpus_without_changing_outputs_or_names(tmp_path):
    for device, processes, wanted in (("cuda", 2, False), ("cuda", 1, True), ("cpu", 2, None)):
        assert not synchronised(segmenter(), device, processes, wanted)
    with pytest.raises(ValueError, match="sync_batch_norm=True needs GPUs.* cpu. Leave it out"):
        distilling(tmp_path, sync_batch_norm=True)
    network = segmenter(backbone="efficientnet_lite0", backbone_kwargs={}).eval()
    picture = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before, expected = weights(network), network(pixel_values=picture).logits
    plain = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    assert synchronised(network, "cuda", 2) == plain > 3
    assert torch.equal(network(pixel_values=picture).logits, expected) and same(weights(network), before)
    network.save_pretrained(tmp_path)
    loaded = AfDcdForSemanticSegmentation.from_pretrained(tmp_path)
    assert torch.equal(loaded(pixel_values=picture).logits, expected)


# DDP


@pytest.mark.parametrize(("student", "options"), [
    ({}, {"feature_weight": 0.0}), ({}, {"contrast_weight": 0.0}), ({"auxiliary_head": True}, {}),
    ({"backbone": "mobilenetv2_050", "backbone_kwargs": {}}, {}),
    ({"backbone": "efficientnet_lite0", "backbone_kwargs": {}}, {}),
    ({"backbone": "mobilenetv3_small_050", "backbone_kwargs": {}}, {}),
])  # fmt: skip
def test_all_weights_of_our_models_and_losses_get_gradients_so_ddp_need_not_search(student, options, tmp_path):
    trainer = distilling(tmp_path, segmenter(**student), loss_kwargs=loss_options(**options), aux_weight=0.0)
    assert trainer.args.ddp_find_unused_parameters is False
    trainer.compute_loss(trainer.model.train(), next(iter(trainer.get_train_dataloader()))).backward()
    assert [name for name, parameter in trainer.model.named_parameters() if parameter.grad is None] == []


def test_ddp_searches_for_unused_weights_if_there_may_be_some_unless_the_user_decides():
    for at_times, asked, network, searching in (
        (False, None, segmenter(), False),
        (False, None, nn.Identity(), True),
        (False, True, segmenter(), True),
        (False, False, nn.Identity(), False),
        (True, None, segmenter(), True),
    ):
        args = SimpleNamespace(skips_teacher=at_times, ddp_find_unused_parameters=asked, world_size=2)
        resolve_find_unused_parameters(args, network)
        assert args.ddp_find_unused_parameters is searching
    args = SimpleNamespace(skips_teacher=True, ddp_find_unused_parameters=False, world_size=2)
    with pytest.raises(ValueError, match="leave out ddp_find_unused_parameters=False"):
        resolve_find_unused_parameters(args, segmenter())


def test_a_process_that_sees_several_gpus_uses_one_and_logs_how_to_use_all(caplog):
    args = SimpleNamespace(n_gpu=4)
    with caplog.at_level(logging.WARNING, logger="afdcd_hf"):
        use_one_gpu_per_process(args)
    assert args._n_gpu == 1 and "torchrun --nproc_per_node 4" in caplog.text


def test_deepspeed_with_clipped_loss_weights_and_fsdp_that_would_save_no_student_are_refused():
    check_clipping(deepspeed=False, loss_max_grad_norm=15.0)
    check_clipping(deepspeed=True, loss_max_grad_norm=0.0)
    with pytest.raises(ValueError, match="--loss_max_grad_norm 0"):
        check_clipping(deepspeed=True, loss_max_grad_norm=15.0)
    for version, kind, works in ((2, "FULL", True), (2, "SHARDED", False), (1, "FULL", False)):
        plugin = SimpleNamespace(fsdp_version=version, state_dict_type=f"StateDictType.{kind}_STATE_DICT")
        with nullcontext() if works else pytest.raises(ValueError, match="set fsdp_version: 2 and .*FULL_STATE_DICT"):
            check_fsdp(plugin)


def test_accelerate_reads_every_bundled_configuration_and_the_docs_describe_it():
    text = (paths.DOCS / "scaling_out.md").read_text()
    assert len(CONFIGURATIONS) == 5
    assert {path.name for path in CONFIGURATIONS} <= set(re.findall(r"[a-z0-9_]+\.yaml", text))
    assert all(load_config_from_file(str(path)).num_processes >= 2 for path in CONFIGURATIONS)


def test_loss_weights_and_random_draws_depend_only_on_seed_and_rank(tmp_path):
    drawn, started = [], []
    for seed, before in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(before)
        trainer = distilling(tmp_path, seed=seed)
        started.append(weights(trainer.loss_module))
        drawn.append(torch.rand(8))  # the first mask or dropout
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert same(started[0], started[1]) and not same(started[0], started[2])
    for rank in (0, 0, 1):  # mid-run: a checkpoint of one process has no random state for a second one
        args = SimpleNamespace(seed=3, world_size=2, process_index=rank)
        Randomness(None).on_train_begin(args, SimpleNamespace(global_step=2), None)
        drawn.append(torch.rand(8))
    assert torch.equal(drawn[3], drawn[4]) and not torch.equal(drawn[3], drawn[5])
