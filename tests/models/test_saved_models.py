"""Saved folders: exact round trips, no downloads, safetensors only, and use without the package."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation

from afdcd_hf import AfDcdConfig, AfDcdForSemanticSegmentation, AfDcdImageProcessor
from afdcd_hf.models.heads import HEADS
from afdcd_hf.models.loading import load_model

SWIN = {"img_size": 64, "window_size": 2, "depths": [1, 1, 2, 1]}
NETWORKS = {
    "resnet18": dict(backbone_kwargs={"stem_type": "deep", "stem_width": 64}, head="deeplabv3", auxiliary_head=True),
    "mobilenetv2_100": dict(head="pspnet"),
    "mobilenetv3_large_100": dict(head="lraspp", output_stride=16, auxiliary_head=True),
    "tf_efficientnet_lite0": dict(head="deeplabv3", auxiliary_head=True),
    "efficientnet_lite0": dict(head="deeplabv3plus", output_stride=16),
    "mobilenetv4_conv_small": dict(head="fpn", output_stride=32, auxiliary_head=True),
    "convnext_atto": dict(head="segformer", output_stride=32, auxiliary_head=True),
    "swin_tiny_patch4_window7_224": dict(backbone_kwargs=SWIN, head="fcn", output_stride=32, auxiliary_head=True),
}
SIZE = (64, 64)


@pytest.fixture
def no_downloads(monkeypatch):
    """Fails the test if anything asks timm for weights, the Hub for a file or the system for a connection."""
    asked = []

    def refuse(name):
        def call(*args, **kwargs):
            asked.append((name, args[:2]))
            raise OSError(f"{name} was called")

        return call

    monkeypatch.setattr(socket.socket, "connect", refuse("socket.connect"))
    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse("timm load_pretrained"))
    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse("timm hf_hub_download"))
    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", refuse("transformers hf_hub_download"))
    yield
    assert not asked


def trained_a_little(backbone):
    """A random network whose running statistics have moved away from 0 and 1."""
    torch.manual_seed(0)
    model = AfDcdForSemanticSegmentation.from_backbone(backbone, head_channels=16, num_labels=5, **NETWORKS[backbone])
    with torch.no_grad():
        model.train()(torch.randn(2, 3, *SIZE))
    return model.eval()


def logits_of(model, pixel_values):
    with torch.no_grad():
        return model.eval()(pixel_values).logits


@pytest.mark.parametrize("backbone", NETWORKS)
def test_a_saved_network_loads_to_the_bit_and_downloads_nothing(backbone, tmp_path, no_downloads):
    model, pixel_values = trained_a_little(backbone), torch.randn(1, 3, *SIZE)
    expected = logits_of(model, pixel_values)
    model.save_pretrained(tmp_path)
    for loader in (AfDcdForSemanticSegmentation, AutoModelForSemanticSegmentation):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is AfDcdForSemanticSegmentation
        assert {**loaded.config.to_dict(), "_name_or_path": ""} == model.config.to_dict()
        states = model.state_dict(), loaded.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        assert torch.equal(logits_of(loaded, pixel_values), expected)


def test_all_heads_and_the_auxiliary_head_are_among_the_networks_saved():
    assert {network["head"] for network in NETWORKS.values()} == set(HEADS)
    assert any(network.get("auxiliary_head") for network in NETWORKS.values())


def test_a_saved_network_keeps_training_in_its_own_folder(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model = AfDcdForSemanticSegmentation.from_pretrained(tmp_path).train()
    model(torch.randn(2, 3, 16, 16), labels=torch.zeros(2, 16, 16, dtype=torch.int64)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_folder_holds_safetensors_configuration_and_source_only(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    AfDcdImageProcessor().save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "backbone_afdcd.py",
        "configuration_afdcd.py",
        "heads.py",
        "image_modes_afdcd.py",
        "upload_afdcd.py",
        "image_processing_afdcd.py",
        "modeling_afdcd.py",
    }


def test_auto_config_knows_the_model_type(tiny_model, tmp_path):
    tiny_model(head="pspnet").save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is AfDcdConfig and config.head == "pspnet"


def test_a_folder_without_some_weights_is_refused_rather_than_filled_at_random(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["head.classifier.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 of the model's weights, e.g. .*head.classifier.weight"):
        load_model(str(tmp_path))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        load_model(str(tmp_path / "nowhere"))


def test_weights_stored_in_half_precision_are_loaded_in_single(tiny_model, tmp_path):
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {torch.float32}


WITHOUT_PACKAGE = """
import sys
sys.modules["afdcd_hf"] = None  # every import of the package now fails
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
folder, picture, output = sys.argv[1:]
torch.set_num_threads(1)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True).eval()
pixel_values = processor(images=Image.open(picture), return_tensors="pt")["pixel_values"]
with torch.no_grad():
    logits = model(pixel_values).logits
save_file({"pixel_values": pixel_values.contiguous(), "logits": logits.contiguous()}, output)
print(type(model).__module__, type(processor).__module__)
"""


def test_a_saved_folder_works_where_the_package_is_not_installed(tiny_model, labelled_images, tmp_path):
    folder, picture, output = tmp_path / "folder", tmp_path / "picture.png", tmp_path / "output.safetensors"
    model = tiny_model(head="deeplabv3", auxiliary_head=True)
    model.save_pretrained(folder)
    AfDcdImageProcessor(do_flip_channels=True).save_pretrained(folder)
    labelled_images()[0]["image"].save(picture)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGE, folder, picture, output],
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("transformers_modules.") == 2
    there = load_file(output)
    processor = AutoImageProcessor.from_pretrained(folder)
    here = processor(images=Image.open(picture), return_tensors="pt")["pixel_values"]
    assert torch.equal(there["pixel_values"], here)
    assert torch.equal(there["logits"], logits_of(model, here))
