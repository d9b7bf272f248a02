"""The teacher's own preprocessing, folded batch norm, channels last and early exit; nothing else changes."""

from __future__ import annotations

import logging
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import tiny
import torch
from accelerate.utils import DynamoBackend
from images import labelled_image
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d
from tiny import distilling, logged, loss_options, passes_of, same, segmenter, weights, without_batch_effects
from torch import nn
from transformers import MobileViTImageProcessor, TimmWrapperImageProcessor

from afdcd_hf import AfDcdImageProcessor, as_segmenter
from afdcd_hf.features import LayerTap
from afdcd_hf.models.image_processing_afdcd import RELEASED_INPUT
from afdcd_hf.training.teacher import adapt_input, observe, optimize_teacher, stops_early

BOTH = {"fold_teacher_batch_norm": True, "channels_last": True}
IMAGES = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def trained(network: nn.Module) -> nn.Module:
    """Give batch norm non-trivial statistics and weights."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, BatchNormAct2d)):
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.3, 2.0, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.5, 0.5, generator=generator)
    return network.eval()


def layers_of(norm: type[nn.Module] = nn.BatchNorm2d, **options) -> OrderedDict:
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 16, 8, stride=8, **options)
    return OrderedDict(stem=stem, norm=norm(16), classifier=nn.Conv2d(16, 4, 1))


class Bypassed(nn.Sequential):
    """The convolution's output also bypasses the batch norm."""

    def forward(self, images):
        stem = self.stem(images)
        return self.classifier(self.norm(stem) + stem)


PLAIN = nn.Sequential(layers_of())


def run(teacher, *layers, fold=True, channels_last=False):
    return optimize_teacher(teacher, IMAGES[:1], layers, fold=fold, channels_last=channels_last)


def assert_same_activations(actual, expected):
    for one, other in zip((actual, *actual.of_each_layer()), (expected, *expected.of_each_layer()), strict=True):
        for name in ("logits", "feature_map"):
            before = getattr(other, name)
            assert (getattr(one, name) - before).abs().max() <= 1e-5 * before.abs().max(), name


# Preprocessing

IMAGE = labelled_image(0, 4, 32, 48)["image"]
TIMMS = {"input_size": (3, 32, 48), "crop_pct": 1.0, "mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3)}
PROCESSORS = {
    "imagenet": AfDcdImageProcessor(),
    "released": AfDcdImageProcessor(**RELEASED_INPUT),  # BGR, 0..255, mean subtracted
    "halves": AfDcdImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3, do_flip_channels=True),
    "mobilevit": MobileViTImageProcessor(do_resize=False, do_center_crop=False),  # BGR, 0..1
    "timm": TimmWrapperImageProcessor(TIMMS),
}


def prepared(name: str) -> torch.Tensor:
    return PROCESSORS[name](IMAGE, return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("theirs", PROCESSORS)
@pytest.mark.parametrize("own", ["imagenet", "released"])
def test_pixel_values_are_converted_to_those_of_the_teachers_processor(own, theirs):
    teacher = torch.nn.Identity()
    seeing = adapt_input(teacher, PROCESSORS[own], PROCESSORS[theirs])
    assert (seeing is teacher) == (own == theirs)
    torch.testing.assert_close(seeing(prepared(own)), prepared(theirs), atol=2e-5, rtol=1e-5)
    assert torch.equal(teacher(prepared(theirs)), prepared(theirs))  # the given teacher is unchanged


def test_the_trainers_teacher_gets_its_own_preprocessing_and_shares_its_weights(tmp_path):
    teacher = segmenter(1, channels=48)
    parts = {"processing_class": PROCESSORS["released"], "teacher_processor": PROCESSORS["imagenet"]}
    trainer = distilling(tmp_path, teacher=teacher, **parts)
    taught = trainer._teach(prepared("released"))
    with torch.no_grad():
        expected = teacher.eval()(pixel_values=prepared("imagenet")).logits
    torch.testing.assert_close(taught.logits, expected, atol=1e-4, rtol=1e-4)
    assert all(map(lambda one, other: one is other, trainer.teacher.parameters(), teacher.parameters()))
    teacher.save_pretrained(tmp_path / "teacher")  # a folder comes with its image processor
    PROCESSORS["imagenet"].save_pretrained(tmp_path / "teacher")
    named = distilling(tmp_path, teacher=str(tmp_path / "teacher"), processing_class=PROCESSORS["released"])
    torch.testing.assert_close(named._teach(prepared("released")).logits, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="teacher_processor needs processing_class"):
        distilling(tmp_path, processing_class=None, teacher_processor=PROCESSORS["imagenet"])
    with pytest.raises(ValueError, match="SimpleNamespace has no do_rescale, .* give an image processor"):
        adapt_input(torch.nn.Identity(), PROCESSORS["imagenet"], SimpleNamespace())


# The faster copy


@pytest.mark.parametrize(("fold", "channels_last"), [(False, False), (True, True)])
@pytest.mark.parametrize(
    ("teacher", "layers"),
    [
        (trained(segmenter(1, channels=48, auxiliary_head=True)), ["backbone[-1]", "head.features"]),
        (trained(as_segmenter(nn.Sequential(layers_of(BatchNormAct2d, bias=False)))), ["module.norm"]),
        (trained(as_segmenter(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), PLAIN))),
         ["module.2.stem", "module.2.norm"]),
    ],
    ids=["ours", "timm's norm with activation", "the convolution itself is distilled"],
)  # fmt: skip
def test_the_copy_gives_the_same_logits_and_maps_and_the_teacher_is_unchanged(teacher, layers, fold, channels_last):
    before, strides = weights(teacher), [parameter.stride() for parameter in teacher.parameters()]
    expected = observe(teacher, IMAGES, layers)
    running = run(teacher, *layers, fold=fold, channels_last=channels_last)
    assert (running is teacher) == (not fold and not channels_last)
    assert_same_activations(observe(running, IMAGES, layers), expected)
    assert same(weights(teacher), before)
    assert [parameter.stride() for parameter in teacher.parameters()] == strides
    assert torch.equal(observe(teacher, IMAGES, layers).logits, expected.logits)


def test_every_batch_norm_after_a_convolution_is_folded_and_logged_and_hooks_fire_in_the_copy(caplog):
    caplog.set_level(logging.INFO, "afdcd_hf.training.teacher")
    teacher = trained(segmenter(1, channels=48))
    calls = passes_of(teacher.head.classifier)
    running = run(teacher)
    norms = [module for module in running.modules() if isinstance(module, nn.BatchNorm2d)]
    assert running.head.classifier.weight is teacher.head.classifier.weight  # shared if unchanged
    assert f"Folded {len(norms)} of the teacher's {len(norms)} batch-norm layers" in caplog.text
    calls.clear()
    running(IMAGES)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("network", "layers", "message"),
    [
        (Bypassed(layers_of()), [], r"the teacher's logits would change by up to .*leave out fold_teacher"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)), [], "no batch norm directly after a conv"),
        (nn.Sequential(PLAIN), ["module.0.stem"], "found no batch norm .* in WrappedSegmenter"),
    ],
)
def test_a_teacher_that_cannot_be_folded_is_refused(network, layers, message):
    with pytest.raises(ValueError, match=message):
        run(trained(as_segmenter(network)), *layers)


# Training


def test_training_with_all_options_takes_the_same_steps_in_channels_last_except_for_the_saved_student(tmp_path):
    runs, seen = [], []
    options = {"max_steps": 2, "learning_rate": 0.01, "ema_decay": 0.9, "save_strategy": "steps", "save_steps": 2}
    for name, added in (("plain", {}), ("fast", BOTH)):
        network = trained(segmenter(1, channels=48))
        before, student = weights(network), without_batch_effects(segmenter())
        trainer = distilling(tmp_path / name, student, network, **options, **added)
        student.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True)
        trainer.train()
        assert same(weights(network), before) and trainer.teacher is network
        runs.append(trainer)
    plain, fast = runs
    for term in ("loss", "loss_task", "loss_kd", "loss_feature", "loss_contrast"):
        assert logged(fast, term) == pytest.approx(logged(plain, term), rel=1e-4), term
    assert tiny.largest_difference(weights(fast.model), weights(plain.model)) < 1e-4
    kernels = [each for net in (fast.student, fast._run_teacher) for each in net.parameters() if each.ndim == 4]
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in (*seen[2:], *kernels))
    assert same(load_file(tmp_path / "fast/checkpoint-2/model.safetensors"), weights(fast.evaluated_student))


# Early exit


def test_no_early_exit_if_a_later_module_changes_the_map_if_compiled_or_without_maps():
    plain, compiled = (
        SimpleNamespace(state=SimpleNamespace(dynamo_plugin=SimpleNamespace(backend=backend)))
        for backend in (DynamoBackend.NO, DynamoBackend.INDUCTOR)
    )
    for inplace, layer, stops in ((False, "first", True), (True, "first", False), (True, "relu", True)):
        layers = OrderedDict(first=nn.Conv2d(3, 8, 3), relu=nn.ReLU(inplace=inplace), classifier=nn.Conv2d(8, 4, 1))
        network = as_segmenter(nn.Sequential(layers)).eval()
        taps = [LayerTap(network, f"module.{layer}")]
        assert stops_early(network, IMAGES, taps, plain) is stops
        assert not stops_early(network, IMAGES, taps, compiled) and not stops_early(network, IMAGES, [], plain)


@pytest.mark.parametrize("options", [BOTH, {"bf16": True}])
def test_training_without_the_teachers_head_is_the_same_bit_for_bit(tmp_path, options):
    results, maps_only = [], {"loss": "af_dcd", "loss_kwargs": {"af_dcd": loss_options()["af_dcd"]}}
    for stop in (True, False):
        trainer = distilling(tmp_path / str(stop), **maps_only, **options)
        assert trainer._teacher_stops_early
        trainer._teacher_stops_early = stop
        classified = passes_of(trainer._run_teacher.head.classifier)
        trainer.train()
        assert bool(classified) is not stop
        results.append(weights(trainer.model))
    assert same(*results)
