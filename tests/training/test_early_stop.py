"""A teacher whose logits nobody reads runs no further than its maps, and nothing else changes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DynamoBackend
from tiny import distilling, loss_options, passes_of, pictures, same, segmenter, weights
from torch import nn

from afdcd_hf import AfDcdImageProcessor, evaluate_segmenter
from afdcd_hf.features import LayerTap, run_tapped, run_to_maps
from afdcd_hf.training.early_stop import stops_early

MAPS_ONLY = {"loss": "af_dcd", "loss_kwargs": {"af_dcd": loss_options()["af_dcd"]}}
PIXELS = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
UNCOMPILED = SimpleNamespace(state=SimpleNamespace(dynamo_plugin=SimpleNamespace(backend=DynamoBackend.NO)))


class Network(nn.Module):
    """Two convolutions with a ReLU between, then a classifier."""

    def __init__(self, inplace: bool = False):
        super().__init__()
        self.first, self.relu = nn.Conv2d(3, 8, 3), nn.ReLU(inplace=inplace)
        self.second, self.classifier = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.classifier(self.second(self.relu(self.first(pixel_values)))))


@pytest.mark.parametrize(
    "layers", [["backbone[-1]"], ["backbone[1]", "backbone[-1]"], ["head.features", "backbone[0]"]]
)
def test_the_maps_are_those_of_a_whole_pass(layers):
    network = segmenter().eval()
    taps = [LayerTap(network, layer) for layer in layers]
    classified = passes_of(network.head.classifier)
    with torch.no_grad():
        stopped = run_to_maps(network, PIXELS, taps)
        assert stopped.logits is None and not classified
        whole = run_tapped(network, PIXELS, taps)[1]
    assert classified
    pairs = zip(stopped.of_each_layer(), whole.of_each_layer(), strict=True)
    assert all(torch.equal(ours.feature_map, theirs.feature_map) for ours, theirs in pairs)


def test_a_layer_that_takes_no_part_is_still_named():
    network = Network()
    network.idle = nn.Conv2d(3, 3, 1)
    taps = [LayerTap(network, layer) for layer in ("first", "idle")]
    with pytest.raises(RuntimeError, match="Layer 'idle' took no part in the forward pass"):
        run_to_maps(network, PIXELS, taps)


@pytest.mark.parametrize(("inplace", "layer", "stops"), [(False, "first", True), (True, "first", False),
                                                         (True, "relu", True), (True, "second", True)])  # fmt: skip
def test_it_is_not_done_where_a_later_module_changes_the_map(inplace, layer, stops):
    network = Network(inplace).eval()
    assert stops_early(network, PIXELS, [LayerTap(network, layer)], UNCOMPILED) is stops


def test_it_is_not_done_for_compiled_networks_and_without_maps():
    network = Network()
    compiled = SimpleNamespace(state=SimpleNamespace(dynamo_plugin=SimpleNamespace(backend=DynamoBackend.INDUCTOR)))
    assert not stops_early(network, PIXELS, [LayerTap(network, "first")], compiled)
    assert not stops_early(network, PIXELS, [], UNCOMPILED)


@pytest.mark.parametrize("options", [{}, {"fold_teacher_batch_norm": True, "channels_last": True}, {"bf16": True}])
def test_a_training_is_the_same_to_the_bit_without_the_teachers_head(tmp_path, options):
    results = []
    for stop in (True, False):
        teacher = segmenter(1, channels=48)
        trainer = distilling(tmp_path / str(stop), teacher=teacher, **MAPS_ONLY, **options)
        assert trainer._teacher_stops_early
        trainer._teacher_stops_early = stop
        classified = passes_of(trainer._run_teacher.head.classifier)
        trainer.train()
        assert bool(classified) is not stop
        results.append(weights(trainer.model))
    assert same(*results)


def test_a_loss_on_logits_makes_the_teacher_run_to_its_end(tmp_path):
    teacher = segmenter(1, channels=48)
    trainer = distilling(tmp_path, teacher=teacher)  # kd+af_dcd
    classified = passes_of(teacher.head.classifier)
    trainer.train()
    assert len(classified) == 2


def test_the_teacher_still_predicts_outside_of_the_training(tmp_path):
    teacher = segmenter(1, channels=48)
    before = evaluate_segmenter(teacher, pictures(), processor=AfDcdImageProcessor())["confusion_matrix"]
    trainer = distilling(tmp_path, teacher=teacher, **MAPS_ONLY)
    trainer.train()
    after = evaluate_segmenter(trainer.teacher, pictures(), processor=AfDcdImageProcessor())["confusion_matrix"]
    assert (after == before).all()
