"""Label maps: windows, scales, flip and precision, against a slow, independent implementation."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from images import labelled_image
from tiny import segmenter
from torch import nn
from torch.nn import functional as F
from transformers import MobileViTImageProcessor

from afdcd_hf import AfDcdImageProcessor
from afdcd_hf.data.transforms import run_processor
from afdcd_hf.inference.segment import (
    WHOLE_IMAGE,
    InferenceSettings,
    Predictor,
    Sample,
    best_classes,
    make_sample,
    segment_image,
)

NUM_LABELS = 5


class Strided(nn.Module):
    """A model with context, a quarter of the resolution, and a difference between left and right."""

    def __init__(self, align_corners: bool | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.Conv2d(8, NUM_LABELS, 3, 2, padding=1)
        if align_corners is not None:
            self.config = SimpleNamespace(align_corners=align_corners)
        self.seen = []  # input shape and logits dtype of each call

    def forward(self, pixel_values):
        logits = self.second(self.first(pixel_values).relu())
        self.seen.append((tuple(pixel_values.shape), logits.dtype))
        return SimpleNamespace(logits=logits)


def noise(height: int, width: int, size: tuple[int, int] | None = None, seed: int = 0) -> Sample:
    """Make a random input; its label map has `size`, or by default its own size."""
    pixel_values = torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))
    return Sample(f"{height}x{width}", pixel_values, size or (height, width))


def predict(model: nn.Module, sample: Sample, settings: InferenceSettings = WHOLE_IMAGE) -> np.ndarray:
    [(given, label_map)] = Predictor(model, settings).label_maps([[sample]])
    assert given is sample and tuple(label_map.shape) == sample.size
    return label_map.numpy()


# The slow implementation, in float64: interpolation as matrices, windows as in mmsegmentation's formula


def interpolation_matrix(old: int, new: int, align_corners: bool) -> np.ndarray:
    matrix = np.zeros((new, old))
    for row in range(new):
        if align_corners:
            place = row * (old - 1) / (new - 1) if new > 1 else 0.0
        else:
            place = max((row + 0.5) * old / new - 0.5, 0.0)
        left = min(int(place), old - 1)
        matrix[row, left] += 1 - (place - left)
        matrix[row, min(left + 1, old - 1)] += place - left
    return matrix


def stretched(maps: np.ndarray, size, align_corners: bool) -> np.ndarray:
    rows, columns = (
        interpolation_matrix(old, new, align_corners) for old, new in zip(maps.shape[1:], size, strict=True)
    )
    return np.stack([rows @ one @ columns.T for one in maps])


@torch.no_grad()
def logits_of(model: nn.Module, pixels: np.ndarray) -> np.ndarray:
    double = copy.deepcopy(model).double()
    return double(pixel_values=torch.from_numpy(pixels.copy())[None]).logits[0].numpy()


def slide(model: nn.Module, pixels: np.ndarray, window, stride, align_corners: bool) -> np.ndarray:
    height, width = pixels.shape[1:]
    total, times = np.zeros((NUM_LABELS, height, width)), np.zeros((height, width))
    grid = [max(side - w + s - 1, 0) // s + 1 for side, w, s in zip((height, width), window, stride, strict=True)]
    for i in range(grid[0]):
        for j in range(grid[1]):
            bottom, right = min(i * stride[0] + window[0], height), min(j * stride[1] + window[1], width)
            top, left = max(bottom - window[0], 0), max(right - window[1], 0)
            crop = pixels[:, top:bottom, left:right]
            total[:, top:bottom, left:right] += stretched(logits_of(model, crop), crop.shape[1:], align_corners)
            times[top:bottom, left:right] += 1
    return total / times


def slow_probabilities(model: nn.Module, sample: Sample, settings: InferenceSettings) -> np.ndarray:
    align_corners = model.config.align_corners if hasattr(model, "config") else False
    pixels, results = sample.pixel_values.numpy().astype(np.float64), []
    for scale in settings.scales:
        size = [round(side * scale) for side in pixels.shape[1:]]
        scaled = stretched(pixels, size, align_corners=False)
        for step in (1, -1) if settings.flip else (1,):
            view = scaled[:, :, ::step]
            if settings.window is None:
                logits = logits_of(model, view)
            else:
                logits = slide(model, view, settings.window, settings.stride, align_corners)
            powers = np.exp(stretched(logits, sample.size, align_corners))[:, :, ::step]
            results.append(powers / powers.sum(axis=0))
    return np.mean(results, axis=0)


SETTINGS = {
    "whole": {},
    "window": {"window": (8, 12), "stride": (5, 7)},
    "window longer than one side": {"window": (40, 9), "stride": (3, 4)},
    "default stride": {"window": (9, 9)},
    "windows side by side": {"window": (4, 6), "stride": (4, 6)},
    "one scale": {"scales": (0.6,)},
    "scales": {"scales": (0.5, 1.0, 1.75)},
    "flip": {"flip": True},
    "everything": {"scales": (0.75, 1.4), "flip": True, "window": (10, 8), "stride": (7, 3)},
}


@pytest.mark.parametrize("align_corners", [None, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_label_maps_equal_those_of_the_slow_implementation_on_odd_sizes(name, align_corners):
    model, settings = Strided(align_corners), InferenceSettings(**SETTINGS[name])
    for sample in (noise(17, 31), noise(23, 14, size=(19, 27), seed=1)):
        probabilities = slow_probabilities(model, sample, settings)
        first, second = np.sort(probabilities, axis=0)[-2:][::-1]
        clear = first - second > 1e-5  # elsewhere, float32 may choose another class
        assert clear.mean() > 0.99
        assert np.array_equal(predict(model, sample, settings)[clear], probabilities.argmax(0)[clear])


def test_one_window_that_covers_everything_equals_the_whole_image():
    model, sample = Strided(True), noise(17, 31, size=(40, 50))
    windowed = predict(model, sample, InferenceSettings(window=(17, 64)))
    assert np.array_equal(windowed, predict(model, sample)) and {shape for shape, _ in model.seen} == {(1, 3, 17, 31)}


@pytest.mark.parametrize("name", ["whole", "everything"])
def test_a_batch_of_mixed_sizes_gives_what_single_images_give(name):
    # In float64, because another batch may round float32's last bit differently, and change a pixel's class.
    model, settings = Strided(True).double(), InferenceSettings(**SETTINGS[name])
    sizes = ((17, 31), (20, 20), (17, 31), (9, 40), (20, 20), (17, 31))
    batch = [noise(*size, size=(size[0] + index, size[1]), seed=index) for index, size in enumerate(sizes)]
    together = {id(sample): label_map for sample, label_map in Predictor(model, settings).label_maps([batch])}
    assert together.keys() == {id(sample) for sample in batch}
    for sample in batch:
        assert np.array_equal(together[id(sample)].numpy(), predict(model, sample, settings))


def test_a_forward_pass_takes_one_window_per_image_of_the_batch():
    model = Strided()
    settings = InferenceSettings(window=(8, 8), stride=(8, 8))
    batch = [noise(16, 16), noise(8, 40), noise(16, 16, seed=1)]  # 8 windows of one size, then 5
    assert len(list(Predictor(model, settings).label_maps([batch]))) == 3
    assert [shape[0] for shape, _ in model.seen] == [3, 3, 2, 3, 2]


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_mixed_precision_runs_under_autocast_and_leaves_the_weights_alone(precision, dtype):
    model, sample = Strided(True), noise(33, 47)
    full = predict(model, sample)
    mixed = predict(model, sample, InferenceSettings(precision=precision))
    assert [seen for _, seen in model.seen] == [torch.float32, dtype]
    assert 0.9 < (mixed == full).mean() and model.first.weight.dtype == torch.float32
    with torch.autocast("cpu", dtype):  # of the caller
        assert np.array_equal(predict(model, sample), full)
    with pytest.raises(ValueError, match=f"precision='{precision}': autocast leaves float64 weights alone"):
        predict(Strided().double(), sample, InferenceSettings(precision=precision))


@pytest.mark.parametrize("align_corners", [True, False])
def test_an_image_is_segmented_at_its_own_size_as_the_configuration_says(align_corners):
    model, image = segmenter(align_corners=align_corners).eval(), labelled_image(3, 4, 17, 31)["image"]
    settings = InferenceSettings(scales=(1.0, 1.5), flip=True)
    sample = make_sample(AfDcdImageProcessor(), image)
    assert sample.size == (17, 31) and sample.label is None
    label_map = segment_image(model, AfDcdImageProcessor(), image, settings)
    expected = slow_probabilities(model, sample, settings).argmax(0)
    assert label_map.dtype == np.uint8 and (label_map == expected).mean() > 0.99
    assert segment_image(segmenter(num_labels=300), AfDcdImageProcessor(), image).dtype == np.uint16


def test_an_image_is_seen_whole_by_a_processor_that_crops_by_default():
    image = labelled_image(3, 4, 30, 50)["image"]
    cropping, whole = (MobileViTImageProcessor(do_resize=False, do_center_crop=crops) for crops in (True, False))
    expected = whole(images=image, return_tensors="pt")["pixel_values"][0]
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    for found in (make_sample(cropping, image).pixel_values, run_processor(cropping, pixels)):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("num_labels", "size"), [(2, (1031, 1033)), (11, (45, 61)), (300, (71, 129))])
def test_classes_chosen_one_by_one_equal_those_of_the_whole_score_map_to_the_bit(num_labels, size, align_corners):
    logits = torch.randn(num_labels, 5, 6, generator=torch.Generator().manual_seed(0)).mul(4).round()  # with ties
    scores = F.interpolate(logits[None], size, mode="bilinear", align_corners=align_corners)[0]
    assert (scores.numel() > 2**21) == (num_labels != 11)
    chosen = best_classes(logits, size, align_corners)
    assert torch.equal(chosen.long(), scores.max(0).indices)
    assert chosen.dtype == (torch.uint8 if num_labels <= 256 else torch.int32)


class Picky(Strided):
    """Rejects inputs whose sides it cannot divide, as models with skip connections do."""

    def __init__(self, multiple: int):
        super().__init__(False)
        self.multiple = multiple

    def forward(self, pixel_values):
        if pixel_values.shape[-1] % self.multiple or pixel_values.shape[-2] % self.multiple:
            raise RuntimeError("The size of tensor a (12) must match the size of tensor b (11)")
        return super().forward(pixel_values)


@pytest.mark.parametrize("multiple", [32, 64])
def test_inputs_are_padded_for_a_model_that_needs_multiples(multiple, caplog):
    predictor, sample = Predictor(Picky(multiple)), noise(90, 120)
    [(_, label_map)] = predictor.label_maps([[sample]])
    padded = F.pad(sample.pixel_values, (0, 128 - 120, 0, (96 if multiple == 32 else 128) - 90))
    [(_, whole)] = Predictor(Strided(False)).label_maps([[Sample("", padded, tuple(padded.shape[-2:]))]])
    assert torch.equal(label_map, whole[:90, :120]) and predictor.multiple == multiple
    assert "takes no input of 90x120: padded to multiples" in caplog.text
    list(predictor.label_maps([[noise(64, 128)]]))
    assert predictor.model.seen[-1][0] == (1, 3, 64, 128)  # no needless padding


def test_a_model_for_one_size_is_rejected_with_a_suggestion():
    with pytest.raises(ValueError, match="failed on an input of 17x31 pixels: .*must match.*--window HEIGHT WIDTH"):
        predict(Picky(48), noise(17, 31))


def test_running_out_of_memory_is_reported_unchanged():
    model = Strided()
    model.forward = lambda pixel_values: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(torch.OutOfMemoryError):
        predict(model, noise(9, 9))


@pytest.mark.parametrize(("name", "value"), [("whole", float("inf")), ("everything", float("nan"))])
def test_scores_that_are_not_finite_give_no_label_map(name, value):
    model = Strided()
    with torch.no_grad():
        model.second.bias[NUM_LABELS - 1] = value
    with pytest.raises(ValueError, match="17x31: the model's scores are not finite"):
        predict(model, noise(17, 31), InferenceSettings(**SETTINGS[name]))


def test_settings_survive_json():
    settings = InferenceSettings(scales=[0.5, 1], flip=True, window=[64, 96], precision="bf16")
    assert settings.stride == (43, 64) and settings.scales == (0.5, 1.0)
    told = json.loads(json.dumps(settings.describe()))
    assert told.keys() == {"scales", "flip", "window", "stride", "precision"}
    assert InferenceSettings(**told) == settings and hash(settings)


def test_settings_that_make_no_sense_are_refused():
    for options, message in (
        ({"scales": ()}, r"scales=\(\): expected one or more positive factors"),
        ({"scales": (1.0, 0.0)}, r"scales=\(1\.0, 0\.0\)"),
        ({"window": (0, 8)}, r"window=\(0, 8\): expected \(height, width\), two positive whole numbers"),
        ({"window": 512}, "window=512"),
        ({"stride": (4, 4)}, r"stride=\(4, 4\) without a window"),
        ({"window": (8, 8), "stride": (8, 9)}, r"stride=\(8, 9\) exceeds window=\(8, 8\)"),
        ({"precision": "float16"}, "precision='float16' is unknown; expected one of fp32, bf16, fp16"),
    ):
        with pytest.raises(ValueError, match=message):
            InferenceSettings(**options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SETTINGS)
def test_label_maps_on_a_gpu_are_those_of_the_cpu(name):
    settings, sample = InferenceSettings(**SETTINGS[name]), noise(17, 31)
    [(_, label_map)] = Predictor(Strided(True).cuda(), settings).label_maps([[sample]])
    assert label_map.is_cuda and label_map.dtype == torch.uint8
    # TF32 rounds inputs of convolutions to ten bits
    assert (label_map.cpu().numpy() == predict(Strided(True), sample, settings)).mean() > 0.98
