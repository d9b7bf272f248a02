"""The image processor by hand, and the pipeline that uses it."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from images import labelled_image
from PIL import Image
from tiny import segmenter
from transformers import AutoImageProcessor, pipeline

from afdcd_hf import AfDcdImageProcessor, AfDcdOutput
from afdcd_hf.inference.segment import segment_image
from afdcd_hf.models.image_modes_afdcd import as_rgb

RELEASED_MEAN = [104.00698793, 116.66876762, 122.67891434]  # blue, green, red
RELEASED = dict(do_flip_channels=True, do_rescale=False, image_mean=RELEASED_MEAN, image_std=[1.0, 1.0, 1.0])


PIXELS = np.random.default_rng(0).integers(0, 256, (7, 11, 3), dtype=np.uint8)
IMAGE = Image.fromarray(PIXELS)
LABELS = np.random.default_rng(1).integers(0, 4, (7, 11), dtype=np.uint8)
LABELS[2] = 255


def pixel_values(processor, image=IMAGE, **kwargs):
    return processor(images=image, return_tensors="pt", **kwargs)["pixel_values"]


# Preprocessing


def test_by_default_an_image_is_normalised_as_for_imagenet():
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((PIXELS / 255 - mean) / std).transpose(2, 0, 1)
    values = pixel_values(AfDcdImageProcessor())
    assert values.shape == (1, 3, 7, 11) and values.dtype == torch.float32
    np.testing.assert_allclose(values[0].numpy(), expected, atol=2e-6)


def test_the_released_models_get_bgr_minus_the_mean_exactly():
    expected = PIXELS[:, :, ::-1].astype(np.float32) - np.array(RELEASED_MEAN, dtype=np.float32)
    assert np.array_equal(pixel_values(AfDcdImageProcessor(**RELEASED))[0].numpy(), expected.transpose(2, 0, 1))


def test_options_of_one_call_win_and_a_tensor_gives_the_same_as_its_image():
    processor, released = AfDcdImageProcessor(), AfDcdImageProcessor(**RELEASED)
    assert torch.equal(pixel_values(processor, **RELEASED), pixel_values(released))
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    for one in (processor, released):
        assert torch.equal(pixel_values(one, tensor), pixel_values(one))


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_three_channels_by_one_rule(mode):
    deep = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
    image = deep if mode == "I;16" else IMAGE.convert(mode)
    assert torch.equal(pixel_values(AfDcdImageProcessor(), image), pixel_values(AfDcdImageProcessor(), as_rgb(image)))


def test_transparency_of_an_array_is_dropped_as_that_of_an_image():
    rgba = np.dstack([PIXELS, np.full((7, 11), 99, np.uint8)])
    for image in (Image.fromarray(rgba), rgba, rgba.transpose(2, 0, 1)):
        assert torch.equal(pixel_values(AfDcdImageProcessor(), image), pixel_values(AfDcdImageProcessor()))


def test_pixels_of_unknown_range_are_rejected():
    for image, message in (
        (IMAGE.convert("F"), "mode F: its pixels are floating-point numbers"),
        (np.zeros((3, 4, 5), np.uint16), "array of .*int.*; expected uint8"),
        (torch.zeros(3, 4, 5, dtype=torch.int32), "array of .*int.*; expected uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            AfDcdImageProcessor()(images=image)


@pytest.mark.parametrize("options", [{}, RELEASED, {"do_resize": True, "size": {"height": 14, "width": 22}}])
def test_label_maps_are_neither_normalised_nor_flipped_keep_255_and_are_resized_by_repeating(options):
    labels = Image.fromarray(LABELS)
    batch = AfDcdImageProcessor(**options)(images=IMAGE, segmentation_maps=labels, return_tensors="pt")
    repeats = 2 if options.get("do_resize") else 1
    assert batch["labels"].dtype == torch.int64 and batch["pixel_values"].shape[-2:] == batch["labels"].shape[-2:]
    assert np.array_equal(batch["labels"][0].numpy(), LABELS.repeat(repeats, axis=0).repeat(repeats, axis=1))


def test_images_of_different_sizes_come_as_a_list():
    both = [IMAGE, IMAGE.resize((5, 4))]
    values = AfDcdImageProcessor()(images=both)["pixel_values"]
    assert [tuple(value.shape) for value in values] == [(3, 7, 11), (3, 4, 5)]
    with pytest.raises(ValueError):
        AfDcdImageProcessor()(images=both, return_tensors="pt")


@pytest.mark.parametrize("options", [{}, RELEASED, {"align_corners": False}])
def test_a_saved_processor_loads_with_its_options(tmp_path, options):
    processor = AfDcdImageProcessor(**options)
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is AfDcdImageProcessor
    for name, value in options.items():
        assert np.array_equal(getattr(loaded, name), value)
    assert torch.equal(pixel_values(loaded), pixel_values(processor))


# Post-processing


OUTPUTS = AfDcdOutput(logits=torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("align_corners", [True, False])
def test_label_maps_are_the_arg_max_of_upsampled_logits_at_each_images_size(align_corners):
    sizes = [(17, 30), (9, 8)]
    expected, others = (
        [
            F.interpolate(logits[None], size, mode="bilinear", align_corners=aligned)[0].argmax(0)
            for logits, size in zip(OUTPUTS.logits, sizes, strict=True)
        ]
        for aligned in (align_corners, not align_corners)
    )
    post_process = AfDcdImageProcessor(align_corners=align_corners).post_process_semantic_segmentation
    for given in (sizes, torch.tensor(sizes)) if align_corners else (sizes,):  # transformers' own takes no tensor
        assert all(map(torch.equal, post_process(OUTPUTS, target_sizes=given), expected))
    assert not torch.equal(expected[0], others[0])  # otherwise the test could not tell the two apart
    assert torch.equal(torch.stack(list(post_process(OUTPUTS))), OUTPUTS.logits.argmax(1))
    for count in (1, 3):
        with pytest.raises(ValueError, match=f"{count} target_sizes .* 2 images" if align_corners else "target"):
            post_process(OUTPUTS, target_sizes=[(8, 8)] * count)


# Pipeline


@pytest.mark.parametrize("align_corners", [True, False])
def test_a_pipeline_asks_nothing_and_crops_the_padding_of_mixed_batches(tmp_path, align_corners, monkeypatch):
    monkeypatch.setattr(builtins, "input", lambda prompt="": pytest.fail(f"the pipeline asked: {prompt}"))
    names = ["road", "car", "sky", "tree"]
    model = segmenter(6, head="fcn", align_corners=align_corners, id2label=dict(enumerate(names))).eval()
    model.save_pretrained(tmp_path)
    plain = AfDcdImageProcessor(align_corners=align_corners)
    plain.save_pretrained(tmp_path)
    padded = AutoImageProcessor.from_pretrained(tmp_path, do_pad=True, pad_size={"height": 40, "width": 50})
    pictures = [labelled_image(index, 4, *size)["image"] for index, size in enumerate([(30, 44), (40, 31), (9, 50)])]
    segment = pipeline("image-segmentation", model=str(tmp_path), image_processor=padded, device="cpu")
    unpadded = pipeline("image-segmentation", model=str(tmp_path), device="cpu")
    for picture, found in zip(pictures, segment(pictures, batch_size=2), strict=True):
        values = F.pad(pixel_values(plain, picture), (0, 50 - picture.width, 0, 40 - picture.height))  # zero: the mean
        with torch.no_grad():
            scores = F.interpolate(model(values).logits, (40, 50), mode="bilinear", align_corners=align_corners)
        label_map = scores[0].argmax(0)[: picture.height, : picture.width].numpy()
        own = segment_image(model, plain, picture)
        assert np.array_equal(segment_image(model, padded, picture), own)  # one image needs no padding
        for masks, expected in ((found, label_map), (unpadded(picture), own)):
            assert {one["label"] for one in masks} == {names[label] for label in np.unique(expected)}
            assert len(masks) > 1  # a single class would agree with anything
            for one in masks:
                assert np.array_equal(np.asarray(one["mask"]) > 0, expected == names.index(one["label"]))


def test_labels_are_padded_with_255_and_padding_without_a_size_is_rejected():
    padded = AfDcdImageProcessor(do_pad=True, pad_size={"height": 9, "width": 12})
    batch = padded(images=IMAGE, segmentation_maps=Image.fromarray(LABELS), return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 9, 12) and (batch["labels"][0, 7:] == 255).all()
    assert np.array_equal(batch["labels"][0, :7, :11].numpy(), LABELS)
    with pytest.raises(ValueError, match=r"do_pad=True needs pad_size=.* and no do_resize"):
        AfDcdImageProcessor(do_pad=True)(images=IMAGE)
