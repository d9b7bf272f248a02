"""The Triton backend against the reference: on a GPU, if there is one, else in Triton's interpreter (conftest.py)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import paths
import pytest
import test_backends
import torch

from afdcd_hf.ops import omni_contrast

contrast_triton = pytest.importorskip("afdcd_hf.ops.contrast_triton", exc_type=ImportError)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []

OMNI = {"patch_size": 2, "channel_groups": 3, "temperature": 0.5, "distance": "l1", "negatives": "other_groups"}
# map, patch size, groups, negatives, distance; V vectors of K channels are padded to 16, 32 or a multiple of 64
CASES = {
    "V=12 K=2, several images, rows and columns": ((2, 6, 4, 6), 2, 3, "other_groups", "l1"),
    "the same, l2": ((2, 6, 4, 6), 2, 3, "other_groups", "l2"),
    "V=27 K=17, an image of one patch": ((1, 51, 3, 3), 3, 3, "other_groups", "l2"),
    "V=64 K=1, a whole tile": ((1, 1, 8, 8), 8, 1, "all", "l2"),
    "omni against all": ((1, 20, 3, 3), 3, 4, "all", "l1"),
    "spatial, K=70": ((1, 70, 2, 4), 2, 1, "all", "l1"),
    # 81 positions in each of two groups: some tiles hold only excluded pairs
    "V=162, a group wider than a tile": ((1, 2, 9, 9), 9, 2, "other_groups", "l1"),
}


def random_maps(shape=(1, 6, 2, 4)):
    return test_backends.maps_of(shape, backend="triton")


value_and_gradient = partial(test_backends.value_and_gradient, omni_contrast, backend="triton")


def assert_equal(actual, expected, rtol=1e-4):
    """Compare the value to 1e-5, and each gradient to 1e-4, or to 1e-5 of the largest if terms cancel."""
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(actual[1], expected[1], rtol=rtol, atol=1e-5 * expected[1].abs().max().item())


def assert_equals_reference(*maps, **settings):
    actual = value_and_gradient(*maps, **settings)
    assert actual[0].shape == () and actual[0].dtype == torch.float32
    assert_equal(actual, value_and_gradient(*maps, **settings, backend="reference"))


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_equal_the_reference(case):
    shape, patch_size, groups, negatives, distance = CASES[case]
    settings = {"patch_size": patch_size, "channel_groups": groups, "negatives": negatives}
    settings |= {"temperature": 0.5, "distance": distance, "upstream": -2.5}
    assert_equals_reference(*random_maps(shape), **settings)


@pytest.mark.parametrize(
    ("dtype", "teachers", "rounding"),
    [
        (torch.bfloat16, torch.bfloat16, 2**-8),
        (torch.float16, torch.float16, 2**-11),
        (torch.float32, torch.bfloat16, 0.0),
    ],
)
def test_half_precision_maps_are_converted_to_float32(dtype, teachers, rounding):
    student, teacher = random_maps()
    student, teacher = student.to(dtype), teacher.to(teachers)
    value, gradient = value_and_gradient(student, teacher, upstream=64.0, **OMNI)
    expected = value_and_gradient(student.float(), teacher.float(), backend="reference", upstream=64.0, **OMNI)
    assert value.dtype == torch.float32 and gradient.dtype == dtype
    assert_equal((value, gradient.float()), expected, rtol=rounding + 1e-4)


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_equal_and_far_vectors_give_exact_gradients(distance):
    settings, student_and_teacher = {**OMNI, "distance": distance}, [each.detach() for each in random_maps()]
    ones = torch.ones(1, 6, 2, 2, device=DEVICE)
    value, gradient = value_and_gradient(ones, ones, **settings)  # counts the negatives
    torch.testing.assert_close(value, 3 * torch.tensor(1.0 + 8, device=DEVICE).log())
    assert torch.equal(gradient, torch.zeros_like(gradient))
    # half of the numbers are 0 in both: their difference has the sign zero
    assert_equals_reference(*(each.relu() for each in student_and_teacher), **settings)
    # the weights are 0 or 1 here, so that the rounding of similarities around 1e4 does not show
    far, settings["temperature"] = [1e3 * each for each in student_and_teacher], 0.07
    value, gradient = value_and_gradient(*far, **settings)
    expected = value_and_gradient(*(each.double() for each in far), backend="reference", **settings)
    assert_equal((value.double(), gradient.double()), expected)


def test_every_tile_gives_equal_bits(monkeypatch):
    maps = random_maps((1, 325 if DEVICE == "cuda" else 10, 4, 4))
    every_choice, runs = contrast_triton.tile_choices, []
    for index in range(3):
        contrast_triton._tuned.cache_clear()
        one_choice = lambda *sizes, index=index: every_choice(*sizes)[index:][:1] or every_choice(*sizes)[:1]  # noqa: E731
        monkeypatch.setattr(contrast_triton, "tile_choices", one_choice)
        runs.append(value_and_gradient(*maps, **{**OMNI, "patch_size": 4, "channel_groups": 5}))
    contrast_triton._tuned.cache_clear()
    for value, gradient in runs[1:]:
        assert torch.equal(value, runs[0][0]) and torch.equal(gradient, runs[0][1])


@pytest.mark.parametrize(
    ("limit", "shape", "sizes", "portion"),  # anchors and patches of a portion
    [
        (3 * 16 * 16, (2, 6, 2, 4), {}, (16, 3)),
        (1, (1, 9, 4, 4), {"patch_size": 4, "channel_groups": 9}, (128, 1)),  # V = 144
    ],
)
def test_portions_of_patches_and_of_anchors_do_not_change_the_value(limit, shape, sizes, portion, monkeypatch):
    settings = {**OMNI, **sizes}
    monkeypatch.setattr(contrast_triton, "PORTION_NUMBERS", limit)
    cut = contrast_triton.Cut(shape, settings["patch_size"], settings["channel_groups"])
    assert (cut.anchors, cut.portion) == portion
    assert_equals_reference(*random_maps(shape), **settings)


@pytest.mark.parametrize(
    ("shape", "patch_size"), [((16, 2048, 44, 44), 4), ((16, 2048, 512, 512), 1), ((1, 2048, 64, 64), 64)]
)
def test_the_buffers_of_any_size_are_bounded(shape, patch_size):
    cut, most = contrast_triton.Cut(shape, patch_size, 16), contrast_triton.PORTION_NUMBERS
    assert cut.portion * cut.padded_vectors * max(cut.anchors, cut.padded_channels) <= most
    assert cut.portion <= contrast_triton.MAX_PATCHES and cut.anchors % min(cut.padded_vectors, 128) == 0
    assert cut.positions == shape[0] * shape[2] * shape[3]


def test_unsupported_maps_are_rejected_with_a_reason(monkeypatch):
    student, teacher = (tensor.detach().cpu() for tensor in random_maps())
    for maps in ((student.double(), teacher), (student, teacher.double())):
        with pytest.raises(ValueError, match="cannot run: its arithmetic is float32.*torch.float64.*backend='torch'"):
            omni_contrast(*maps, **OMNI, backend="triton")
    monkeypatch.setattr(contrast_triton, "INTERPRETED", False)
    with pytest.raises(ValueError, match="the maps are on the device 'cpu', and Triton needs a CUDA GPU"):
        omni_contrast(student, teacher, **OMNI, backend="triton")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ValueError, match="cannot run: Triton is not installed; pip install triton"):
        omni_contrast(student, teacher, **OMNI, backend="triton")


@pytest.mark.parametrize("kernel", ["compare_vectors", "sum_gradient"])
def test_the_inner_loops_compile_for_hopper_without_exchanges_between_threads(kernel, tmp_path):
    compiling = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(paths.ROOT)}
    command = [sys.executable, "-W", "ignore", str(Path(paths.__file__).with_name("hopper.py")), kernel]
    code = subprocess.run(command, env={**os.environ, **compiling}, capture_output=True, text=True, check=True).stdout
    layouts = dict(re.findall(r"^(#\w+) = (#ttg.*)$", code, flags=re.MULTILINE))
    bodies = re.findall(r"scf\.for .*?scf\.yield", code, flags=re.DOTALL)
    loops = [re.sub(r"#blocked\d*\b", lambda name: layouts[name[0]], body) for body in bodies]
    assert loops and not any("ttg.convert_layout" in loop or "ttg.local" in loop for loop in loops)
    assert all("sizePerThread = [4, 4]" in loop for loop in loops)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(16, 2048, 44, 44), (16, 2048, 16, 32), (16, 256, 16, 32)])
def test_memory_is_bounded_and_the_speed_is_printed(shape, capsys):
    settings = {**OMNI, "patch_size": 4, "channel_groups": 16, "temperature": 0.07}
    student, teacher = random_maps(shape)
    one_map = student.numel() * 4
    value_and_gradient(student, teacher, **settings)  # compiles and tunes
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, started = torch.cuda.memory_allocated(), time.perf_counter()
    for _ in range(5):
        value_and_gradient(student, teacher, **settings)
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / 5
    extra = torch.cuda.max_memory_allocated() - before
    triples = student.numel() * 16 * 16
    with capsys.disabled():
        print(
            f"\n{shape}: {1e3 * seconds:.2f} ms, {triples / seconds / 1e12:.2f}e12 (s, t, channel)/s, {extra >> 20} MiB"
        )
    assert extra <= 2 * one_map + 2**28 + 2**24  # the stored and the scaled gradient, one portion, small buffers
