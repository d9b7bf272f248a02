"""Models of other libraries as teachers and students, and several pairs of maps."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file
from tiny import distilling, logged, loss_options, same, segformer, segmenter, weights
from torch import nn
from torch.distributed.utils import _to_kwargs
from transformers import Dinov2Config, Dinov2ForImageClassification, Dinov2Model

from afdcd_hf import Activations, as_segmenter, capture
from afdcd_hf.models.loading import load_model
from afdcd_hf.recipes import load_recipe
from afdcd_hf.training.preflight import preflight
from afdcd_hf.training.recipe_arguments import parse_arguments

# as_segmenter


class Dictionary(nn.Module):
    """Like torchvision's: takes `images` by position, returns a dictionary, and has an auxiliary head."""

    def __init__(self, key: str = "out"):
        super().__init__()
        self.key = key
        self.body = nn.Sequential(nn.Conv2d(3, 16, 8, stride=8), nn.BatchNorm2d(16), nn.ReLU())
        self.classifier, self.auxiliary = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 4, 1)

    def forward(self, images):
        features = self.body(images)
        return OrderedDict({self.key: self.classifier(features), "aux": self.auxiliary(features)})


class Plain(nn.Module):
    """Returns a tensor, as in segmentation_models_pytorch."""

    def __init__(self, wrap=lambda scores: scores):
        super().__init__()
        self.body, self.classifier, self.wrap = nn.Conv2d(3, 16, 8, stride=8), nn.Conv2d(16, 4, 1), wrap

    def forward(self, x):
        return self.wrap(self.classifier(self.body(x)))


IMAGES = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def test_scores_are_found_in_the_models_output():
    for network, output in (
        (Plain(), None),
        (Plain(lambda scores: (scores.mean(), scores)), 1),
        (Plain(lambda scores: type("Output", (), {"logits": scores})()), None),
        (Plain(lambda scores: {"logits": scores, "out": None}), None),
        (Dictionary("scores"), "scores"),
        (Dictionary(), None),
    ):
        wrapped = as_segmenter(network, num_labels=4, output=output).eval()
        torch.testing.assert_close(wrapped(pixel_values=IMAGES).logits, network.classifier(network.body(IMAGES)))


def test_an_output_without_scores_or_of_another_number_of_classes_is_described():
    for network, options, message in (
        (Plain(lambda scores: (scores, scores)), {}, r"Plain returns a tuple, .*output=\.\.\."),
        (Plain(lambda scores: {"a": scores}), {}, r"a dict with the keys a, .*no \(B, K, h, w\) class scores"),
        (Plain(lambda scores: {"a": scores}), {"output": "b"}, r"class scores \(output='b'\)"),
        (Plain(), {"num_labels": 5}, "gives 4 classes, not num_labels=5"),
    ):
        with pytest.raises(ValueError, match=message):
            as_segmenter(network, **options)(IMAGES)
    with pytest.raises(ValueError, match=r"id2label names the classes \[0, 2\]; expected a name for each of 0 to"):
        as_segmenter(Plain(), id2label={0: "road", 2: "car"})


def test_models_with_another_interface_are_rejected_with_a_suggestion(tmp_path):
    class Bare(Plain):
        def forward(self, pixel_values):
            return super().forward(pixel_values)

    names = {0: "road", 1: "sky", 2: "car", 3: "tree"}
    named = segmenter(id2label=names), as_segmenter(Plain(), id2label={**names, 3: "dog"})
    for student, teacher, message in (
        (segmenter(), Plain(), r"cannot be called as model\(pixel_values=\.\.\.\).*as_segmenter\(model\)"),
        (segmenter(), Bare(), r"teacher, a Bare, has no class scores .* loss kd reads.*as_segmenter"),
        (Bare(), segmenter(), r"student, a Bare, returns no \.logits .*as_segmenter"),
        (*named, "Class 3 is 'tree' for the student and 'dog' for the teacher"),
    ):
        layers = {"student_layer": "body" if type(student) is Bare else "backbone[-1]"}
        layers["teacher_layer"] = {Plain: "body", Bare: "body"}.get(type(teacher), "backbone[-1]")
        layers |= {"teacher_layer": "module.body"} if teacher is named[1] else {}
        with pytest.raises(ValueError, match=message):
            distilling(tmp_path, student, teacher, **layers)


def test_a_wrapped_student_trains_with_its_auxiliary_head_scores_and_is_saved(tmp_path):
    torch.manual_seed(0)
    student = as_segmenter(Dictionary())
    before = weights(student)
    trainer = distilling(tmp_path, student, student_layer="module.body")
    trainer.train()
    trainer.save_model()
    assert all(value > 0 for value in logged(trainer, "loss_auxiliary"))
    moved = [name for name, tensor in weights(student).items() if not torch.equal(tensor, before[name])]
    assert {"module.body.0.weight", "module.classifier.weight", "module.auxiliary.weight"} <= set(moved)
    assert 0 <= trainer.evaluate()["eval_mean_iou"] <= 1
    again = as_segmenter(Dictionary())
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert same(weights(again), weights(student))


# A teacher without logits

MAPS_ALONE = {"af_dcd": loss_options()["af_dcd"]}


def dinov2(folder):
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=32)
    Dinov2ForImageClassification(config).save_pretrained(folder)
    return load_model(folder, needs_logits=False)


@pytest.mark.parametrize("stops_early", [True, False])
def test_a_backbone_without_logits_teaches_its_maps(tmp_path, stops_early):
    teacher = dinov2(tmp_path / "teacher")
    assert type(teacher) is Dinov2Model
    layers = {"teacher_layer": "encoder.layer.1:tokens", "student_layer": "backbone[-1]"}
    with pytest.raises(
        ValueError, match="a Dinov2Model, has no class scores .* the loss kd reads: choose a loss on feature maps"
    ):
        distilling(tmp_path / "refused", teacher=teacher, **layers)
    loss = {"loss": "fitnet" if stops_early else "af_dcd", "loss_kwargs": None if stops_early else MAPS_ALONE}
    trainer = distilling(tmp_path / "run", teacher=teacher, **layers, **loss)
    trainer._teacher_stops_early = stops_early
    preflight(trainer, [str(index) for index in range(4)])  # does not need the teacher's score
    before = weights(trainer.student)
    trainer.train()
    assert not same(weights(trainer.student), before)
    with torch.no_grad(), capture(teacher, [layers["teacher_layer"]]) as maps:
        teacher(pixel_values=IMAGES)
    assert torch.equal(trainer._teach(IMAGES).feature_map, *maps.values())


# Several pairs of maps

TWO = {"student_layer": ["backbone[-2]", "backbone[-1]"], "teacher_layer": ["segformer.stages.1", "segformer.stages.3"]}


def test_each_pair_has_its_own_loss_terms_and_weights(tmp_path):
    # Other maps than the ones named would give other values; the batch is recomputed here layer by layer.
    trainer = distilling(tmp_path, teacher=segformer(), **TWO, loss_kwargs=loss_options(mask="center", patch_size=1))
    student, teacher, loss = trainer.student.eval(), trainer.teacher, trainer.loss_module
    labels, before = torch.zeros(2, 32, 48, dtype=torch.long), weights(loss)
    with torch.no_grad():
        terms = trainer.model(IMAGES, labels, trainer._teach(IMAGES))["terms"]
        for number, (layer, taught) in enumerate(zip(*TWO.values(), strict=True), 1):
            with capture(student, [layer]) as maps, capture(teacher, [taught]) as targets:
                student(pixel_values=IMAGES)
                teacher(pixel_values=IMAGES)
            raw = loss.losses["af_dcd"].losses[str(number - 1)].raw_terms(maps[layer], targets[taught])
            torch.testing.assert_close(terms[f"feature_{number}"], 0.5 * raw["feature"])
            torch.testing.assert_close(terms[f"contrast_{number}"], 0.02 * raw["contrast"])
    trainer.train()
    names = {"task", "kd", "feature_1", "contrast_1", "feature_2", "contrast_2"}
    assert {name for name in trainer.state.log_history[0] if name.startswith("loss_")} == {f"loss_{n}" for n in names}
    assert not any(torch.equal(tensor, before[name]) for name, tensor in weights(loss).items())


def test_layers_are_named_in_a_recipe_or_on_the_command_line(tmp_path):
    layers = 'student_layer:\n- backbone[-2]\n- backbone[-1]\nteacher_layer: [segformer.stages.1, "segformer[0]"]'
    (tmp_path / "mine.yaml").write_text(f"loss: kd\n{layers}")
    recipe = load_recipe(tmp_path / "mine.yaml")
    pairs = [["backbone[-2]", "backbone[-1]"], ["segformer.stages.1", "segformer[0]"]]
    argv = ["--student_layer", *pairs[0], "--teacher_layer", *pairs[1]]
    for given in ((recipe, []), ({"loss": "kd"}, argv), ({"loss": "kd", "student_layer": "x"}, argv)):
        args = parse_arguments(*given, distils=True)[-1]
        assert [args.student_layer, args.teacher_layer] == pairs
    args = parse_arguments({"loss": "kd", "student_layer": "x"}, ["--teacher_layer", "y"], distils=True)[-1]
    assert (args.student_layer, args.teacher_layer) == ("x", "y")
    with pytest.raises(ValueError, match="student_layer names 1 .* teacher_layer 2"):
        parse_arguments(recipe, ["--student_layer", "x"], distils=True)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_several_maps_survive_distributed_data_parallel(number):
    # DDP on GPUs takes its inputs apart, moves the tensors, and puts them together again
    maps = [torch.full((1, 2, 3, 3), float(index)) for index in range(number)]
    sent = Activations(torch.zeros(1, 4, 3, 3), *maps[:1], further_maps=tuple(maps[1:]))
    received = _to_kwargs((sent,), {}, torch.device("cpu"), False)[0][0]
    received = received[0] if not isinstance(received, Activations) else received
    assert isinstance(received, Activations) and len(received.of_each_layer()) == number
    assert all(torch.equal(one.feature_map, sent) for one, sent in zip(received.of_each_layer(), maps, strict=True))


# Shapes


class ChannelsLast(nn.Module):
    """Like a Swin transformer: the body's map is (B, h, w, C)."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.classifier = nn.Conv2d(3, 16, 8, stride=8), nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x):
        return self.classifier(self.norm(self.body(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def test_channels_last_maps_are_read_if_the_layer_says_so_and_otherwise_noticed(tmp_path):
    teacher = as_segmenter(ChannelsLast())
    with torch.no_grad(), capture(teacher, ["module.norm", "module.norm:nhwc"]) as maps:
        teacher(pixel_values=IMAGES)
    assert maps["module.norm:nhwc"].shape == (2, 16, 4, 6)
    assert torch.equal(maps["module.norm:nhwc"], maps["module.norm"].permute(0, 3, 1, 2))
    with pytest.raises(ValueError, match=r"map of shape \(4, 6, 16\) .* 32x48, .* write 'module.norm:nhwc'"):
        distilling(tmp_path, teacher=teacher, teacher_layer="module.norm")
    trainer = distilling(tmp_path, teacher=teacher, teacher_layer="module.norm:nhwc")
    assert trainer.loss_module.losses["af_dcd"].teacher_channels == 16
    trainer.train()
