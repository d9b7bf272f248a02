"""Saved folders: exact round trips, no downloads, safetensors only, and use without the package."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from formula_weights import images
from hub_client import serving
from images import labelled_image
from mask_models import MASK_MODELS, mask_model
from safetensors.torch import load_file, save_file
from tiny import same, segmenter
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForSemanticSegmentation,
    EomtImageProcessor,
    Mask2FormerImageProcessor,
    MaskFormerImageProcessor,
    pipeline,
)

from afdcd_hf import AfDcdConfig, AfDcdForSemanticSegmentation, AfDcdImageProcessor, as_segmenter, evaluate_segmenter
from afdcd_hf.hub.push import push_folder
from afdcd_hf.inference.segment import Predictor, Sample
from afdcd_hf.models.heads import HEADS
from afdcd_hf.models.loading import class_scores, load_model, load_processor, with_logits

SWIN = {"img_size": 64, "window_size": 2, "depths": [1, 1, 2, 1]}
MODELS = {
    "resnet18": dict(backbone_kwargs={"stem_type": "deep", "stem_width": 64}, head="deeplabv3", auxiliary_head=True),
    "mobilenetv2_100": dict(head="pspnet", align_corners=False, semantic_loss_ignore_index=7, atrous_rates=(2, 5)),
    "mobilenetv3_large_100": dict(head="lraspp", output_stride=16, auxiliary_head=True, auxiliary_loss_weight=0.2),
    "tf_efficientnet_lite0": dict(head="deeplabv3", auxiliary_head=True, id2label=dict(enumerate("abcde"))),
    "efficientnet_lite0": dict(head="deeplabv3plus", output_stride=16),
    "mobilenetv4_conv_small": dict(head="fpn", output_stride=32, auxiliary_head=True),
    "convnext_atto": dict(head="segformer", output_stride=32, auxiliary_head=True),
    "swin_tiny_patch4_window7_224": dict(backbone_kwargs=SWIN, head="fcn", output_stride=32, auxiliary_head=True),
}
assert {model["head"] for model in MODELS.values()} == set(HEADS)


@pytest.fixture
def no_downloads(monkeypatch):
    """Fail the test if anything asks timm for weights, the Hub for a file, or the system for a connection."""
    asked = []

    def refuse(*args, **kwargs):
        asked.append(args[:2])
        raise OSError("nothing may be downloaded")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)
    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", refuse)
    yield
    assert not asked


def logits_of(model, pixel_values):
    with torch.no_grad():
        return model.eval()(pixel_values).logits


@pytest.mark.parametrize("backbone", MODELS)
def test_a_saved_model_loads_to_the_bit_and_downloads_nothing(backbone, tmp_path, no_downloads):
    torch.manual_seed(0)
    model = AfDcdForSemanticSegmentation.from_backbone(backbone, head_channels=16, num_labels=5, **MODELS[backbone])
    model.train()(torch.randn(2, 3, 64, 64))  # moves running statistics away from 0 and 1
    pixel_values = torch.randn(1, 3, 64, 64)
    expected = logits_of(model, pixel_values)
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).head == MODELS[backbone]["head"]
    for loader in (AfDcdForSemanticSegmentation, AutoModelForSemanticSegmentation):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is AfDcdForSemanticSegmentation and type(loaded.config) is AfDcdConfig
        assert {**loaded.config.to_dict(), "_name_or_path": ""} == model.config.to_dict()
        assert same(model.state_dict(), loaded.state_dict())
        assert torch.equal(logits_of(loaded, pixel_values), expected)


def test_a_saved_model_keeps_training_in_its_own_folder_and_half_precision_is_loaded_in_single(tmp_path):
    segmenter().to(torch.bfloat16).save_pretrained(tmp_path)
    model = load_model(str(tmp_path)).train()
    assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {torch.float32}
    model(images(2, 3, 16, 16), labels=torch.zeros(2, 16, 16, dtype=torch.int64)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_folder_holds_safetensors_configuration_and_source_only(tmp_path):
    segmenter().save_pretrained(tmp_path)
    AfDcdImageProcessor().save_pretrained(tmp_path)
    names = {"config.json", "model.safetensors", "preprocessor_config.json", "heads.py", "backbone_afdcd.py"}
    names |= {"configuration_afdcd.py", "image_modes_afdcd.py", "image_processing_afdcd.py", "modeling_afdcd.py"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_incomplete_models_are_rejected_rather_than_filled_with_random_weights(tmp_path):
    segmenter().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["head.classifier.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 of the model's weights, e.g. .*head.classifier.weight"):
        load_model(str(tmp_path))
    with pytest.raises(OSError, match="nowhere' is neither a local folder nor a Hub id"):
        load_model(str(tmp_path / "nowhere"))


WITHOUT_PACKAGE = """
import sys
sys.modules["afdcd_hf"] = None  # every import of the package now fails
import numpy, torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
repo, image, output = sys.argv[1:]
torch.set_num_threads(1)
segment = pipeline("image-segmentation", model=repo, trust_remote_code=True)
found = {entry["label"]: torch.from_numpy(numpy.array(entry["mask"])) for entry in segment(image)}
processor = AutoImageProcessor.from_pretrained(repo, trust_remote_code=True)
model = AutoModelForSemanticSegmentation.from_pretrained(repo, trust_remote_code=True).eval()
with torch.no_grad():
    found["logits"] = model(**processor(images=Image.open(image), return_tensors="pt")).logits
save_file({name: tensor.contiguous() for name, tensor in found.items()}, output)
print(*(type(part).__module__ for part in (segment.model, segment.image_processor, model, processor)))
"""


@pytest.mark.slow
def test_a_pushed_model_works_with_pipeline_where_the_package_is_not_installed(tmp_path):
    model = segmenter(3, head="deeplabv3", auxiliary_head=True, id2label=dict(enumerate("abcd"))).eval()
    processor = AfDcdImageProcessor(do_flip_channels=True)
    image = labelled_image(0, 4, 32, 48)["image"]
    pixel_values = processor(images=image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():  # otherwise one class would win everywhere
        model.head.classifier.bias -= model(pixel_values).logits.mean(dim=(0, 2, 3))
    for part in (model, processor):
        part.save_pretrained(tmp_path / "run")
    image.save(tmp_path / "image.png")
    with serving(tmp_path) as hub:
        push_folder(tmp_path / "run", "street/tiny")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
        environment = kept | hub.client_settings(token=None) | {"HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", WITHOUT_PACKAGE, "street/tiny", "image.png", "found.safetensors"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout.count("transformers_modules.") == 4
    there = load_file(tmp_path / "found.safetensors")
    assert torch.equal(there.pop("logits"), logits_of(model, pixel_values))
    here = pipeline("image-segmentation", model=model, image_processor=processor)(image)
    assert there.keys() == {entry["label"] for entry in here} and len(there) > 1
    assert all(np.array_equal(there[entry["label"]], entry["mask"]) for entry in here)


# EoMT, Mask2Former and MaskFormer as segmenters: compared with their own post-processing


IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
# their processors resize masks to a fixed size first, which these masks already have
PROCESSORS = {
    "eomt": (EomtImageProcessor(), 8, {"size": {"shortest_edge": 8, "longest_edge": 8}, "target_sizes": [(8, 8)] * 2}),
    "mask2former": (Mask2FormerImageProcessor(), 384, {}),
    "maskformer": (MaskFormerImageProcessor(), 8, {}),
}


@pytest.mark.parametrize("kind", MASK_MODELS)
def test_scores_and_classes_are_those_of_their_own_post_processing(kind):
    processor, size, options = PROCESSORS[kind]
    model = with_logits(mask_model(kind))
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = model(pixel_values=IMAGES)
        # a random model's classes and masks are all alike
        classes = outputs.class_queries_logits = outputs.class_queries_logits + 3 * torch.randn(2, 5, 5)
        masks = F.interpolate(outputs.masks_queries_logits + 3 * torch.randn(2, 5, 8, 8), (size, size))
        outputs.masks_queries_logits = masks
        scores = class_scores(classes, masks)
        expected = processor.post_process_semantic_segmentation(outputs, **options)
    assert scores.shape == (2, 4, size, size)
    assert torch.equal(scores.argmax(1), torch.stack(expected)) and len(scores.argmax(1).unique()) > 1


@pytest.mark.parametrize("kind", MASK_MODELS)
def test_a_saved_model_and_a_wrapped_one_give_the_logarithm_of_the_scores(kind, tmp_path):
    model = mask_model(kind)
    model.save_pretrained(tmp_path)
    loaded, wrapped = load_model(tmp_path).eval(), as_segmenter(model).eval()
    with torch.no_grad():
        outputs, logits = with_logits(loaded)(pixel_values=IMAGES), wrapped(pixel_values=IMAGES).logits
        assert torch.equal(as_segmenter(loaded)(pixel_values=IMAGES).logits, outputs.logits)  # of the same weights
    scores = class_scores(outputs.class_queries_logits, outputs.masks_queries_logits)
    torch.testing.assert_close(logits.softmax(1), scores / scores.sum(1, keepdim=True))
    torch.testing.assert_close(logits, outputs.logits)  # weights at other addresses may be rounded differently
    assert wrapped.config.id2label == model.config.id2label
    if kind == "eomt":  # the others take longer
        torch.testing.assert_close(torch.compile(loaded, backend="eager")(pixel_values=IMAGES).logits, logits)


def test_logits_stay_finite_if_no_mask_is_left():
    model = with_logits(mask_model("eomt"))
    (hook,) = [one for one in model._forward_hooks.values() if one.__name__ == "_add_logits"]
    outputs = type("Outputs", (dict,), {})()
    outputs.class_queries_logits, outputs.masks_queries_logits = torch.zeros(1, 2, 5), torch.full((1, 2, 4, 4), -1e4)
    assert hook(model, (), outputs)["logits"].isfinite().all()


def test_a_saved_model_is_scored_and_its_processor_leaves_splitting_to_windows(tmp_path):
    mask_model("eomt").save_pretrained(tmp_path)
    own = EomtImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}, do_split_image=True)
    own.save_pretrained(tmp_path)  # an image of 32x48 keeps its size, and is wider than the model accepts
    processor = load_processor(tmp_path)
    assert not processor.do_split_image
    scores = evaluate_segmenter(load_model(tmp_path), [labelled_image(0, 4, 32, 48)], processor=processor)
    assert scores["num_labelled"] == 1 and scores["protocol"]["window"] == [32, 32]


def test_images_smaller_than_eomts_are_padded_with_zeros():
    model, small = with_logits(mask_model("eomt", image_size=40)), torch.randn(3, 20, 28)
    [(_, found)] = Predictor(model).label_maps([[Sample("a", small, (20, 28))]])
    logits = logits_of(model, F.pad(small, (0, 12, 0, 20))[None])
    stretched = F.interpolate(logits, size=(40, 40), mode="bilinear")
    assert torch.equal(found, stretched.argmax(1)[0, :20, :28].to(found.dtype))
