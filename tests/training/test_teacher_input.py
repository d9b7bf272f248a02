"""Teacher and student of different normalisation see the same image."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from images import labelled_image
from tiny import distilling, segmenter
from transformers import MobileViTImageProcessor, TimmWrapperImageProcessor

from afdcd_hf import AfDcdImageProcessor
from afdcd_hf.models.image_processing_afdcd import RELEASED_INPUT
from afdcd_hf.training.teacher_input import with_own_input

IMAGE = labelled_image(0, 4, 32, 48)["image"]
PROCESSORS = {
    "imagenet": AfDcdImageProcessor(),
    "released": AfDcdImageProcessor(**RELEASED_INPUT),  # BGR, 0..255, mean subtracted
    "halves": AfDcdImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3, do_flip_channels=True),
    "mobilevit": MobileViTImageProcessor(do_resize=False, do_center_crop=False),  # BGR, 0..1
    "timm": TimmWrapperImageProcessor(
        {"input_size": (3, 32, 48), "crop_pct": 1.0, "mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3)}
    ),
}


def prepared(processor):
    return processor(IMAGE, return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("theirs", PROCESSORS)
@pytest.mark.parametrize("own", ["imagenet", "released"])
def test_pixel_values_become_what_the_teachers_processor_makes_of_the_image(own, theirs):
    teacher = torch.nn.Identity()
    seeing = with_own_input(teacher, PROCESSORS[own], PROCESSORS[theirs])
    assert (seeing is teacher) == (own == theirs)
    expected = prepared(PROCESSORS[theirs])
    torch.testing.assert_close(seeing(prepared(PROCESSORS[own])), expected, atol=2e-5, rtol=1e-5)
    assert torch.equal(teacher(expected), expected)  # the one given is left as it is


def test_the_trainers_teacher_gets_its_own_input_and_shares_its_weights(tmp_path):
    teacher, seen = segmenter(1, channels=48), []
    parts = {"processing_class": PROCESSORS["released"], "teacher_processor": PROCESSORS["imagenet"]}
    trainer = distilling(tmp_path, teacher=teacher, **parts)
    trainer.teacher.register_forward_pre_hook(lambda *call: seen.append(call[2]["pixel_values"]), with_kwargs=True)
    taught = trainer._teach(prepared(PROCESSORS["released"]))
    torch.testing.assert_close(seen[0], prepared(PROCESSORS["imagenet"]), atol=2e-5, rtol=1e-5)
    with torch.no_grad():
        expected = teacher.eval()(pixel_values=prepared(PROCESSORS["imagenet"])).logits
    torch.testing.assert_close(taught.logits, expected, atol=1e-4, rtol=1e-4)
    assert all(map(lambda one, other: one is other, trainer.teacher.parameters(), teacher.parameters()))


def test_a_teacher_given_by_its_folder_brings_its_processor(tmp_path):
    segmenter(1, channels=48).save_pretrained(tmp_path / "teacher")
    PROCESSORS["released"].save_pretrained(tmp_path / "teacher")
    trainer = distilling(tmp_path / "run", teacher=str(tmp_path / "teacher"), processing_class=PROCESSORS["imagenet"])
    seen = []
    trainer.teacher.register_forward_pre_hook(lambda *call: seen.append(call[2]["pixel_values"]), with_kwargs=True)
    trainer._teach(prepared(PROCESSORS["imagenet"]))
    torch.testing.assert_close(seen[0], prepared(PROCESSORS["released"]), atol=2e-5, rtol=1e-5)


def test_processors_that_say_too_little_are_refused(tmp_path):
    with pytest.raises(ValueError, match="SimpleNamespace has no do_rescale, .* give an image processor"):
        with_own_input(torch.nn.Identity(), PROCESSORS["imagenet"], SimpleNamespace())
    with pytest.raises(ValueError, match="teacher_processor needs processing_class"):
        distilling(tmp_path, processing_class=None, teacher_processor=PROCESSORS["imagenet"])
