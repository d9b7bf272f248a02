from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerImageProcessor

from afdcd_hf.data.normalisation import PixelTable, run_processor
from afdcd_hf.data.transforms import PAPER_SCALES, RandomScaleCropFlip
from afdcd_hf.models.image_processing_afdcd import AfDcdImageProcessor

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def processor():
    return SegformerImageProcessor(do_resize=False, do_reduce_labels=False)


def street(height=30, width=40, seed=0):
    """Random image and label."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels), Image.fromarray(rng.integers(0, 11, (height, width), dtype=np.uint8))


def normalised(pixels):
    return torch.from_numpy(((pixels / 255 - MEAN) / STD).astype(np.float32)).permute(2, 0, 1)


def bilinear_by_hand(pixels, size):
    """Half-pixel centres, two taps a direction, edges repeated: what cv2.INTER_LINEAR computes before rounding."""
    result = pixels.astype(np.float64)
    for axis, target in enumerate(size):
        source = pixels.shape[axis]
        position = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        low = np.floor(position).astype(int)
        weight = (position - low).reshape([-1 if a == axis else 1 for a in range(3)])
        high = np.minimum(low + 1, source - 1)
        result = result.take(low, axis) * (1 - weight) + result.take(high, axis) * weight
    return result


def test_without_scale_crop_and_flip_the_image_is_only_normalised(processor):
    image, label = street()
    sample = RandomScaleCropFlip(processor, (30, 40), (1.0,), 0.0)(image, label, np.random.default_rng(0))
    torch.testing.assert_close(sample["pixel_values"], normalised(np.asarray(image)), atol=1e-5, rtol=0)
    assert torch.equal(sample["labels"], torch.from_numpy(np.array(label)).long())
    assert sample["pixel_values"].dtype == torch.float32 and sample["labels"].dtype == torch.int64


@pytest.mark.parametrize("scale", [0.5, 0.7, 1.3, 2.0])
def test_the_image_is_resized_bilinearly_and_the_label_by_nearest_neighbour(processor, scale):
    image, label = street()
    size = (round(30 * scale), round(40 * scale))
    sample = RandomScaleCropFlip(processor, size, (scale,), 0.0)(image, label, np.random.default_rng(0))
    pixels = sample["pixel_values"].permute(1, 2, 0).numpy() * STD * 255 + MEAN * 255
    assert np.abs(pixels - bilinear_by_hand(np.asarray(image), size)).max() < 1.01  # rounding to uint8, in fixed point
    ids = torch.from_numpy(np.array(label))[None, None]
    expected = torch.nn.functional.interpolate(ids, size=size, mode="nearest")
    assert torch.equal(sample["labels"], expected[0, 0].long())


def test_a_small_image_is_padded_at_the_right_and_the_bottom(processor):
    image, label = street()
    sample = RandomScaleCropFlip(processor, (50, 64), (1.0,), 0.0)(image, label, np.random.default_rng(0))
    assert sample["pixel_values"].shape == (3, 50, 64) and sample["labels"].shape == (50, 64)
    assert (sample["pixel_values"][:, 30:] == 0).all() and (sample["pixel_values"][:, :, 40:] == 0).all()
    assert (sample["labels"][30:] == 255).all() and (sample["labels"][:, 40:] == 255).all()
    assert torch.equal(sample["labels"][:30, :40], torch.from_numpy(np.array(label)).long())
    torch.testing.assert_close(sample["pixel_values"][:, :30, :40], normalised(np.asarray(image)), atol=1e-5, rtol=0)


def test_the_flip_comes_after_the_padding_and_takes_the_label_along(processor):
    image, label = street()
    plain, flipped = (
        RandomScaleCropFlip(processor, (20, 64), (1.0,), probability)(image, label, np.random.default_rng(3))
        for probability in (0.0, 1.0)
    )
    assert (flipped["labels"][:, :24] == 255).all()
    for key in plain:
        assert torch.equal(flipped[key], plain[key].flip(-1))


def coordinates(height, width):
    """Image and label that both hold the pixel's position, so that a crop shows where it comes from."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([rows, columns, rows], -1)), Image.fromarray(rows * width + columns)


class Unchanged:
    """A processor that normalises nothing."""

    def __call__(self, images, return_tensors, do_resize):
        assert images.dtype == torch.uint8 and return_tensors == "pt" and do_resize is False
        return {"pixel_values": images[None].float()}


def test_crops_are_contiguous_aligned_and_equally_likely_at_every_position():
    image, label = coordinates(4, 5)
    transform = RandomScaleCropFlip(Unchanged(), (3, 3), (1.0,), 0.0)
    times = np.zeros((2, 3), int)
    rng = np.random.default_rng(0)
    for _ in range(600):
        sample = transform(image, label, rng)
        y, x = (int(value) for value in sample["pixel_values"][:2, 0, 0])
        assert torch.equal(sample["labels"], torch.from_numpy(np.array(label))[y : y + 3, x : x + 3].long())
        assert torch.equal(sample["labels"], (sample["pixel_values"][0] * 5 + sample["pixel_values"][1]).long())
        times[y, x] += 1
    assert times.min() > 60 and times.max() < 140


def test_scales_and_flips_occur_as_often_as_asked():
    image, label = coordinates(4, 4)
    transform = RandomScaleCropFlip(Unchanged(), (8, 8), (0.5, 1.0, 2.0), 0.25)
    rng = np.random.default_rng(0)
    widths, flips = [], 0
    for _ in range(600):
        kept = transform(image, label, rng)["labels"][0] != 255
        widths.append(int(kept.sum()))
        flips += int(not kept[0])  # padding moved to the left; not visible at scale 2
    assert all(150 < widths.count(width) < 250 for width in (2, 4, 8))
    assert 60 < flips < 140  # a quarter of 400


def test_the_paper_scales_go_from_a_half_to_two_in_tenths():
    assert PAPER_SCALES == tuple(k / 10 for k in range(5, 21))


def test_the_same_generator_state_gives_the_same_sample(processor):
    image, label = street()
    transform = RandomScaleCropFlip(processor, (24, 24))
    first, second, other = (transform(image, label, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["pixel_values"], other["pixel_values"])


def test_results_are_contiguous_so_that_batches_have_one_layout(processor):
    image, label = street()
    for scale, crop in ((1.0, (30, 40)), (1.5, (20, 20)), (0.5, (64, 64))):
        sample = RandomScaleCropFlip(processor, crop, (scale,), 0.0)(image, label, np.random.default_rng(0))
        assert sample["pixel_values"].is_contiguous() and sample["labels"].is_contiguous()


def test_grey_images_and_palette_labels_are_read_as_colours_and_ids(processor):
    label = Image.new("P", (6, 4), 7)
    label.putpalette([value for colour in range(256) for value in (255 - colour, 0, 0)])
    sample = RandomScaleCropFlip(processor, (4, 6), (1.0,))(Image.new("L", (6, 4), 9), label, np.random.default_rng(0))
    assert (sample["labels"] == 7).all()
    torch.testing.assert_close(sample["pixel_values"], normalised(np.full((4, 6, 3), 9)), atol=1e-5, rtol=0)


def test_a_tiny_image_keeps_at_least_a_pixel(processor):
    image, label = street(1, 1)
    sample = RandomScaleCropFlip(processor, (2, 2), (0.1,), 0.0)(image, label, np.random.default_rng(0))
    assert (sample["labels"] != 255).sum() == 1


def test_image_and_label_of_different_size_are_refused(processor):
    with pytest.raises(ValueError, match=r"30x40 pixels and its label 30x39 \(height x width\)"):
        RandomScaleCropFlip(processor, (20, 20))(street()[0], street(30, 39)[1], np.random.default_rng(0))


def test_a_processor_that_changes_the_size_is_refused():
    def cropping(images, return_tensors, do_resize):
        return {"pixel_values": images[None, :, 1:].float()}

    with pytest.raises(ValueError, match=r"turned a \(3, 20, 20\) crop into \(3, 19, 20\)"):
        RandomScaleCropFlip(cropping, (20, 20), (1.0,))(*street(), np.random.default_rng(0))


BGR = {"do_rescale": False, "image_mean": [104.00698793, 116.66876762, 122.67891434], "image_std": [1, 1, 1]}


@pytest.mark.parametrize(
    "real",
    [
        AfDcdImageProcessor(),
        AfDcdImageProcessor(do_flip_channels=True, **BGR),
        SegformerImageProcessor(do_resize=False),
        Unchanged(),
    ],
    ids=["rgb", "bgr", "segformer", "unchanged"],
)
def test_the_table_gives_the_processor_s_own_bits(real):
    table = PixelTable.of(real, (16, 20))
    pixels = np.random.default_rng(5).integers(0, 256, (33, 21, 3), dtype=np.uint8)
    assert np.array_equal(table(pixels), run_processor(real, pixels).numpy())


def test_the_table_finds_the_order_of_the_channels():
    assert PixelTable.of(AfDcdImageProcessor(do_flip_channels=True, **BGR), (16, 16)).channels == (2, 1, 0)


def stretched(images, return_tensors, do_resize):
    pixels = images[None].float()
    return {"pixel_values": (pixels - pixels.min()) / (pixels.max() - pixels.min()).clamp(min=1)}


def mixed_with_neighbours(images, return_tensors, do_resize):
    return {"pixel_values": images[None].float() + images[None].float().roll(1, -1)}


def grey(images, return_tensors, do_resize):
    return {"pixel_values": images[None].float().mean(1, keepdim=True).expand(1, 3, -1, -1)}


def darker_towards_the_bottom(images, return_tensors, do_resize):
    return {"pixel_values": images[None] * torch.linspace(1, 0.5, images.shape[1])[:, None]}


@pytest.mark.parametrize("custom", [stretched, mixed_with_neighbours, grey, darker_towards_the_bottom])
def test_a_processor_that_no_table_can_replace_is_called_on_the_crop(custom):
    assert PixelTable.of(custom, (16, 16)) is None
    image, label = street()
    sample = RandomScaleCropFlip(custom, (30, 40), (1.0,), 1.0)(image, label, np.random.default_rng(0))
    mirrored = torch.from_numpy(np.array(image)).permute(2, 0, 1).flip(-1)
    assert torch.equal(sample["pixel_values"], custom(mirrored, "pt", False)["pixel_values"][0])


@pytest.mark.parametrize("crop", [(20, 24), (64, 80)])
def test_samples_are_those_of_resizing_all_of_the_image_then_cropping(processor, crop):
    image, label = street(37, 53)
    pixels, ids = (torch.from_numpy(np.array(array)) for array in (image, label))
    transform = RandomScaleCropFlip(processor, crop)
    exact = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    for seed in range(40):
        sample = transform(image, label, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        scale = PAPER_SCALES[rng.integers(16)]
        size = (round(37 * scale), round(53 * scale))
        top, left = (int(rng.integers(max(side - length, 0) + 1)) for side, length in zip(size, crop, strict=True))
        kept = (slice(top, top + crop[0]), slice(left, left + crop[1]))
        resized = torch.nn.functional.interpolate(pixels.permute(2, 0, 1)[None], size=size, mode="bilinear")[0]
        normal = processor(images=resized[(..., *kept)], return_tensors="pt")
        missing = (0, crop[1] - min(size[1], crop[1]), 0, crop[0] - min(size[0], crop[0]))
        expected = torch.nn.functional.pad(normal["pixel_values"][0], missing)
        nearest = torch.nn.functional.interpolate(ids[None, None], size=size, mode="nearest")[(0, 0, *kept)]
        labels = torch.nn.functional.pad(nearest, missing, value=255)
        if rng.random() < 0.5:
            expected, labels = expected.flip(-1), labels.flip(-1)
        assert torch.equal(sample["labels"], labels.long())
        torch.testing.assert_close(sample["pixel_values"], expected, atol=0 if exact else 0.02, rtol=0)


def test_the_transform_survives_pickling(processor):
    image, label = street()
    transform = RandomScaleCropFlip(processor, (24, 24))
    first, second = (
        t(image, label, np.random.default_rng(1)) for t in (transform, pickle.loads(pickle.dumps(transform)))
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    "bad",
    [
        {"crop_size": (0, 10)},
        {"crop_size": (10,)},
        {"crop_size": (1.5, 10)},
        {"scales": ()},
        {"scales": (1.0, 0.0)},
        {"scales": (float("nan"),)},
        {"flip_probability": 1.1},
    ],
)
def test_bad_settings_are_refused_by_name(processor, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        RandomScaleCropFlip(processor, **{"crop_size": (10, 10), **bad})
