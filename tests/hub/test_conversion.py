"""Conversion of released checkpoints: equal outputs, every tensor accounted for, all or nothing written."""

from __future__ import annotations

import json
import os
import re
import runpy

import numpy as np
import pytest
import timm
import torch
import torchvision
from command_line import answer
from formula_weights import formula_tensor, generator, images
from huggingface_hub import ModelCard
from PIL import Image
from released_forward import Released
from safetensors.torch import load_file, save_file
from tiny import same
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation

from afdcd_hf import AfDcdForSemanticSegmentation
from afdcd_hf.cli import main
from afdcd_hf.hub import conversion
from afdcd_hf.hub.card_facts import read_facts
from afdcd_hf.hub.conversion import convert_backbone, convert_checkpoint, read_class_names, released_model
from afdcd_hf.hub.released_networks import RELEASED_NETWORKS
from afdcd_hf.hub.weight_files import read_tensors
from afdcd_hf.hub.zoo import CHECKPOINTS

SMALL = "pspnet_mobilenetv2"
# The depthwise block of the released MobileNetV2 is flat, torchvision's nested.
FLAT = {f"1.conv.{nested}": f"1.conv.{flat}" for nested, flat in (("0.0", 0), ("0.1", 1), ("1", 3), ("2", 4))}
for block in range(2, 18):
    pairs = (("0.0", 0), ("0.1", 1), ("1.0", 3), ("1.1", 4), ("2", 6), ("3", 7))
    FLAT |= {f"{block}.conv.{nested}": f"{block}.conv.{flat}" for nested, flat in pairs}


def released_shapes(network, num_labels=19, width=None):
    """Shapes of all tensors by released name; `width` is the head's, if not the default."""
    classifier = "head.block.4.weight" if network.startswith("deeplabv3") else "head.classifier.weight"
    tensors = {classifier: torch.empty(num_labels, width, 1, 1, device="meta")} if width else {}
    tensors |= {"auxlayer.": torch.empty(0)} if width and "mobilenet" not in network else {}
    model, names = released_model(network, [str(index) for index in range(num_labels)], tensors)
    ours = model.state_dict()
    return {released: ours[name].shape for released, name in names.items()}


def released_file(path, network, num_labels=19, width=None, left_out=()):
    """Write a released network's tensors under its names; small batch norm weights keep activations in range."""
    shapes = released_shapes(network, num_labels, width).items()
    values = {name: formula_tensor(name, shape) for name, shape in shapes if not any(part in name for part in left_out)}
    values |= {name: value / 2 for name, value in values.items() if value.ndim == 1 and name.endswith("weight")}
    torch.save(values, path)
    return values


def outputs_of(folder, pixel_values):
    """Outputs of the saved and reloaded network, under the names of the golden values."""
    model = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
    seen = {}
    model.head.features.register_forward_hook(lambda module, args, output: seen.update(feature=output))
    with torch.no_grad():
        labels = torch.zeros(1, *pixel_values.shape[-2:]).long()
        outputs = model(pixel_values, labels=labels, output_hidden_states=True)
    seen.update(logits=outputs.logits, backbone=outputs.hidden_states[-1])
    return seen if outputs.aux_logits is None else {**seen, "aux": outputs.aux_logits}


def assert_equal_to(expected, found, tolerance=1e-4):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert (found[name] - value).abs().max() <= tolerance * value.abs().max(), name


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """A released PSPNet on MobileNetV2 with 19 classes, and its tensors."""
    path = tmp_path_factory.mktemp("released") / f"{SMALL}.pth"
    return path, released_file(path, SMALL, width=16)


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory, small_file):
    """The converted `small_file`."""
    return convert_checkpoint(small_file[0], SMALL, tmp_path_factory.mktemp("converted") / "out", dataset="cityscapes")


def test_the_saved_and_reloaded_folder_reproduces_the_golden_outputs(tmp_path, shared_dir):
    golden = load_file(shared_dir / "golden/models.safetensors")
    layout = json.loads((shared_dir / "golden/official_layouts.json").read_text())["deeplabv3_resnet18"]
    tensors = {name: formula_tensor(name, shape) for name, shape in layout.items()}
    torch.save(tensors, tmp_path / "released.pth")
    convert_checkpoint(tmp_path / "released.pth", "deeplabv3_resnet18", tmp_path / "out", dataset="cityscapes")
    by_hand = Released(tensors, "deeplabv3_resnet18")
    for height, width in {re.search(r"\.(\d+)x(\d+)\.", key).groups() for key in golden}:
        size = (int(height), int(width))
        pixel_values = torch.from_numpy(generator(str(size)).normal(0, 1, (1, 3, *size)).astype(np.float32))
        prefix = f"deeplabv3_resnet18.{height}x{width}."
        expected = {key.removeprefix(prefix): golden[key] for key in golden if key.startswith(prefix)}
        assert_equal_to(expected, outputs_of(tmp_path / "out", pixel_values))
        assert_equal_to(expected, by_hand(pixel_values))  # validates it for the other kinds of network


@pytest.mark.parametrize(
    ("network", "left_out"),
    [  # every head and every backbone layout; ResNet-50 has ResNet-101's blocks
        ("deeplabv3_mobilenetv2", ()),
        ("deeplabv3_resnet50", ()),
        ("pspnet_resnet18", ()),
        ("pspnet_resnet18", ("auxlayer.", "num_batches_tracked")),
    ],
)
def test_a_converted_network_computes_the_same_as_the_released_one(tmp_path, network, left_out):
    tensors = released_file(tmp_path / "released.pth", network, 7, 32, left_out)
    folder = convert_checkpoint(tmp_path / "released.pth", network, tmp_path / "out", classes=list("abcdefg"))
    pixel_values, config = images(1, 3, 41, 57), AutoConfig.from_pretrained(folder)
    assert_equal_to(Released(tensors, network)(pixel_values), outputs_of(folder, pixel_values), 1e-5)
    assert config.auxiliary_head == ("resnet" in network and not left_out) and config.num_labels == 7
    counters = [value for name, value in load_file(folder / "model.safetensors").items() if name.endswith("tracked")]
    assert counters and (not left_out or not any(counters))


def test_cirkd_v2s_network_with_wide_heads_reproduces_its_authors_outputs(tmp_path, shared_dir):
    public = shared_dir / "golden/public"
    if not (public / "cirkd_v2_networks.safetensors").is_file():
        pytest.skip("golden/public is not here")
    tensor_of = runpy.run_path(str(public / "weights_of.py"))["tensor_of"]
    shapes = released_shapes("deeplabv3_resnet18", 5, 512)
    torch.save({name: tensor_of(name, shape) for name, shape in shapes.items()}, tmp_path / "released.pth")
    folder = convert_checkpoint(tmp_path / "released.pth", "deeplabv3_resnet18", tmp_path / "out")
    golden = load_file(public / "cirkd_v2_networks.safetensors")
    found = outputs_of(folder, golden["pixel_values"])
    for ours, theirs in (("logits", "logits"), ("aux", "aux_logits")):
        expected = golden[f"deeplabv3_resnet18/{theirs}"]
        assert (found[ours] - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_every_released_name_and_shape_is_known(shared_dir):
    layouts = json.loads((shared_dir / "golden/official_layouts.json").read_text())
    assert layouts.keys() <= RELEASED_NETWORKS.keys() and len(layouts) == 6
    for network, layout in layouts.items():
        assert {name: list(shape) for name, shape in released_shapes(network).items()} == layout


def test_the_folder_has_the_classes_of_the_dataset_the_released_input_and_a_card(tmp_path):
    row = CHECKPOINTS["afdcd/deeplabv3-mbv2-cityscapes"]
    tensors = released_file(tmp_path / "x.pth", row.network, width=16)
    command = ["--checkpoint", str(tmp_path / "x.pth"), "--published", row.repo_id]
    assert main(["convert", *command, "--output_dir", str(tmp_path / "city")]) == 0
    config, facts = AutoConfig.from_pretrained(tmp_path / "city"), read_facts(tmp_path / "city")
    assert (config.backbone, config.head, config.auxiliary_head) == ("mobilenetv2_100", "deeplabv3", False)
    assert (config.output_stride, config.num_labels) == (8, 19)
    assert config.id2label[18] == "bicycle" and config.label2id["road"] == 0
    assert facts.reported.mean_iou == 0.7643 and facts.measured is None and facts.teacher == row.teacher
    assert facts.model_name == "deeplabv3-mbv2-cityscapes"
    assert facts.num_parameters == sum(tensor.numel() for tensor in tensors.values())
    text = (tmp_path / "city/README.md").read_text()
    assert "76.43" in text and "not measured" in text and "1D1pREhq" in text and "SHA-256" in text
    assert str(tmp_path) not in text
    ModelCard(text).data.to_dict()


def test_tensors_are_converted_bit_for_bit_and_the_image_processor_subtracts_the_bgr_mean_without_dividing(
    small_folder, small_file
):
    tensors, stored = small_file[1], load_file(small_folder / "model.safetensors")
    assert len(stored) == len(tensors) == 338
    ours = AfDcdForSemanticSegmentation(AutoConfig.from_pretrained(small_folder)).state_dict()  # in the released order
    assert all(torch.equal(stored[mine], theirs) for mine, theirs in zip(ours, tensors.values(), strict=True))
    picture = np.random.RandomState(0).randint(0, 256, (6, 8, 3), dtype=np.uint8)
    processor = AutoImageProcessor.from_pretrained(small_folder)
    found = processor(images=Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
    expected = picture[:, :, ::-1].astype(np.float32) - [104.00698793, 116.66876762, 122.67891434]
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1e-4)


def test_half_precision_becomes_single_and_unnamed_classes_are_numbered(tmp_path, small_file):
    halves = {name: value.half() if value.is_floating_point() else value for name, value in small_file[1].items()}
    torch.save(halves, tmp_path / "half.pth")
    convert_checkpoint(tmp_path / "half.pth", SMALL, tmp_path / "out")
    assert AutoConfig.from_pretrained(tmp_path / "out").id2label[18] == "LABEL_18"
    kinds = {tensor.dtype for tensor in load_file(tmp_path / "out/model.safetensors").values()}
    assert kinds == {torch.float32, torch.int64}


def test_plain_nested_and_prefixed_files_have_the_same_tensors(tmp_path):
    tensors = {"conv.weight": torch.ones(2, 2), "bn.bias": torch.zeros(2)}
    prefixed = {f"module._orig_mod.{name}": value for name, value in tensors.items()}
    nested = ({"state_dict": tensors, "epoch": 3}, {"model": {"net": prefixed}, "optimizer": {}})
    for content in (tensors, prefixed, *nested):
        for zipped in (True, False):
            torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
            assert same(read_tensors(tmp_path / "x.pth"), tensors)
    save_file(prefixed, tmp_path / "x.safetensors")
    assert same(read_tensors(tmp_path / "x.safetensors"), tensors)


class RunsOnLoading:
    """An object that creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_refused_and_not_run(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1)}, "args": RunsOnLoading(tmp_path / "ran")}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth holds posix\.mkdir, which is more than data, and is not unpickled"):
        read_tensors(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged, truncated or not a weight file"),
        (b"<!DOCTYPE html><html><title>Google Drive - Virus scan warning", "is a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer"),
        ([1, 2], "holds list .*, not a state dict"),
        ({"epoch": 1}, r"\['epoch'\], which are not tensors; .* under state_dict"),
        ({"model": {"a": torch.ones(1)}, "student": {"a": torch.ones(1)}}, r"several state dicts \(model, student\)"),
        ({"a": torch.ones(2), "b": torch.eye(3).to_sparse()}, "1 tensors are sparse or complex, e.g. b; save"),
    ],
)
def test_files_without_exactly_one_state_dict_are_refused(tmp_path, content, message):
    path = tmp_path / "x.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=f"x.pth.*{message}"):
        read_tensors(path)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_truncated_file_is_named_in_the_error(tmp_path, ending):
    path, tensors = tmp_path / f"x.{ending}", {"a": torch.ones(1000)}
    torch.save(tensors, path) if ending == "pth" else save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(ValueError, match=f"x.{ending} .*download it again"):
        read_tensors(path)


def amiss(tensors):
    changed = {name: value for name, value in tensors.items() if name != "head.block.1.running_var"}
    return changed | {
        "head.extra.weight": torch.ones(2, 3),
        "head.block.0.weight": torch.ones(16, 640, 1, 1),
        "head.psp.conv1.1.bias": torch.full((80,), float("nan")),
        "head.psp.conv2.1.bias": torch.ones(80, dtype=torch.int32),
    }


def backbone_of(tensors):
    return {name: value for name, value in tensors.items() if name.startswith("pretrained.")}


ALL_THAT_IS_AMISS = (
    r"1 unknown tensors \(head.extra.weight 2x3\).*1 missing tensors \(head.block.1.running_var 16\).*"
    r"1 misshapen tensors \(head.block.0.weight 16x640x1x1 instead of 16x640x3x3\).*"
    r"1 wrongly typed tensors \(head.psp.conv2.1.bias torch.int32 instead of torch.float32\).*"
    r"1 not finite tensors \(head.psp.conv1.1.bias\)"
)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (amiss, {}, ALL_THAT_IS_AMISS),
        (dict, {"network": "deeplabv3_mobilenetv2"}, f"The file is a {SMALL}: give --network {SMALL}"),
        (backbone_of, {}, "convert a backbone's ImageNet weights with --backbone_only"),
        (dict, {"dataset": "camvid"}, f"x.pth as {SMALL} has 19 classes, not 11 .camvid.; .*19: cityscapes"),
        (dict, {"dataset": None, "classes": ["a", "b"]}, "has 19 classes, not 2 .the names given."),
        (None, {}, "No checkpoint at .*absent.pth"),
        (None, {"network": "pspnet_resnet52"}, "Unknown released network 'pspnet_resnet52'. Close: .*Known: deeplab"),
        (None, {"dataset": "citiscapes"}, "Close: cityscapes"),
        (None, {"classes": ["a"]}, "not both"),
        (None, {"dataset": None, "classes": ["a", "b", "a"]}, "class_names has a more than once"),
        (None, {"published": "afdcd/pspnet-r18-voc"}, "is a pspnet_resnet18 for voc, not a pspnet_mobilenetv2"),
    ],
)
def test_mismatched_tensors_are_listed_and_no_files_are_left(tmp_path, small_file, change, options, message):
    file = tmp_path / ("x.pth" if change else "absent.pth")  # invalid arguments are refused before the file is read
    if change:
        torch.save(change(small_file[1]), file)
    before, options = os.listdir(tmp_path), {"network": SMALL, "dataset": "cityscapes", **options}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert_checkpoint(file, output=tmp_path / "out", **options)
    assert os.listdir(tmp_path) == before


def test_a_folder_with_files_is_refused_an_empty_one_is_filled_and_the_command_says_what_to_do_next(
    tmp_path, small_file, capsys
):
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("my own words")
    command = ["convert", "--checkpoint", str(small_file[0]), "--network", SMALL, "--output_dir", str(out)]
    command += ["--dataset", "cityscapes"]
    assert "out is not an empty folder; give another --output_dir" in answer(capsys, *command)
    assert os.listdir(out) == ["README.md"]
    (out / "README.md").unlink()
    assert main(command) == 0 and f"{out} is ready for from_pretrained" in capsys.readouterr().out
    assert (out / "model.safetensors").is_file() and (out / "README.md").is_file()


def test_a_conversion_that_fails_at_the_end_leaves_no_files(tmp_path, small_file, monkeypatch):
    monkeypatch.setattr(conversion, "load_model", lambda path: torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="reads back differently"):
        convert_checkpoint(small_file[0], SMALL, tmp_path / "out", dataset="cityscapes")
    assert os.listdir(tmp_path) == []


def test_a_released_backbone_becomes_the_pretrained_backbone_of_a_recipe(tmp_path):
    backbone = backbone_of(released_file(tmp_path / "whole.pth", "deeplabv3_resnet18", width=16))
    torch.save({name.removeprefix("pretrained."): value for name, value in backbone.items()}, tmp_path / "r18.pth")
    file = convert_backbone(tmp_path / "r18.pth", "resnet18", tmp_path / "weights/r18.safetensors")
    network = RELEASED_NETWORKS["deeplabv3_resnet18"]
    model = AfDcdForSemanticSegmentation.from_backbone(
        network.backbone, backbone_kwargs=network.backbone_kwargs, pretrained_backbone=file
    ).eval()
    pixel_values = images(1, 3, 41, 57)
    _, expected = Released(backbone, "deeplabv3_resnet18").resnet(pixel_values)
    with torch.no_grad():
        found = model.backbone(pixel_values)[-1]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def flat(name):
    """The released name of a tensor of torchvision's MobileNetV2."""
    module, _, tensor = name.removeprefix("features.").rpartition(".")
    return f"features.{FLAT[module]}.{tensor}" if module in FLAT else name


def test_torchvisions_mobilenet_becomes_timms_with_its_classifier(tmp_path):
    source = torchvision.models.mobilenet_v2(num_classes=9).eval()
    torch.save({f"module.{flat(name)}": value for name, value in source.state_dict().items()}, tmp_path / "m.pth")
    file = convert_backbone(tmp_path / "m.pth", "mobilenetv2", tmp_path / "m.safetensors")
    model = timm.create_model("mobilenetv2_100", num_classes=9).eval()
    model.load_state_dict(load_file(file))
    pixel_values = images(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values), source(pixel_values), rtol=1e-4, atol=1e-5)


def test_a_backbone_with_wrong_tensors_or_a_bad_output_is_refused(tmp_path, small_file):
    (tmp_path / "there.safetensors").write_bytes(b"mine")
    backbone = backbone_of(small_file[1])
    backbone.pop("pretrained.net.features.3.conv.0.weight")
    torch.save(backbone, tmp_path / "m.pth")
    for source, network, output, message in (
        (small_file[0], "mobilenetv2", "x.safetensors", "338 unknown tensors .*network: leave out --backbone_only"),
        ("m.pth", "mobilenetv2", "x.safetensors", r"1 missing tensors \(features.3.conv.0.weight 144x24x1x1\)"),
        ("m.pth", "resnet18", "there.safetensors", "exists; give another"),
        ("m.pth", "resnet18", "folder", "one file: give --output X.safetensors"),
        ("m.pth", "resnet51", "x.safetensors", "Unknown backbone 'resnet51'. Close: .*resnet101"),
    ):
        with pytest.raises((ValueError, FileExistsError), match=message):
            convert_backbone(tmp_path / source, network, tmp_path / output)
    assert sorted(os.listdir(tmp_path)) == ["m.pth", "there.safetensors"]


def test_class_names_are_read_one_per_line(tmp_path):
    (tmp_path / "names.txt").write_text("\ufeffroad\n\n traffic light \r\n", encoding="utf-8")
    assert read_class_names(tmp_path / "names.txt") == ["road", "traffic light"]
