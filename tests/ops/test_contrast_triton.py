"""The Triton backend against the reference, on a GPU where there is one and in Triton's interpreter elsewhere.

The interpreter must be chosen before Triton is imported, which other tests may do, so it gets a process of its own: a
test at the end runs this file again with TRITON_INTERPRET=1, and the tests marked "cpu" are skipped until then.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import paths
import pytest
import torch

from afdcd_hf.ops import omni_contrast

contrast_triton = pytest.importorskip("afdcd_hf.ops.contrast_triton", exc_type=ImportError)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
without_interpreter = pytest.mark.skipif(INTERPRETED, reason="not for Triton's interpreter")
on_gpu = pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs a CUDA device")

OMNI = {"patch_size": 2, "channel_groups": 3, "temperature": 0.5, "distance": "l1", "negatives": "other_groups"}
# map, patch size, groups, negatives, distance; V vectors of K channels are padded to 16, 32 or a multiple of 64
CASES = {
    "V=12 K=2, several images, rows and columns": ((2, 6, 4, 6), 2, 3, "other_groups", "l1"),
    "the same, l2": ((2, 6, 4, 6), 2, 3, "other_groups", "l2"),
    "V=27 K=17, an image of one patch": ((1, 51, 3, 3), 3, 3, "other_groups", "l2"),
    "V=64 K=1, a whole tile": ((1, 1, 8, 8), 8, 1, "all", "l2"),
    "omni against all": ((1, 20, 3, 3), 3, 4, "all", "l1"),
    "spatial, K=70": ((1, 70, 2, 4), 2, 1, "all", "l1"),
    # 81 positions in each of two groups: whole tiles hold nothing but excluded pairs
    "V=162, a group wider than a tile": ((1, 2, 9, 9), 9, 2, "other_groups", "l1"),
}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Both devices, each where the kernels can run on it."""
    if request.param == "cpu" and not INTERPRETED:
        pytest.skip("runs in Triton's interpreter, see the last test")
    if request.param == "cuda" and (INTERPRETED or not torch.cuda.is_available()):
        pytest.skip("needs a CUDA device")
    return request.param


def random_maps(shape=(1, 6, 2, 4), device="cpu", dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()
    return student, torch.randn(shape, generator=generator).to(device, dtype)


def value_and_gradient(student, teacher, backend="triton", upstream=1.0, **settings):
    student = student.detach().requires_grad_()
    value = omni_contrast(student, teacher, backend=backend, **settings)
    (upstream * value).backward()
    return value.detach(), student.grad


def assert_equal(actual, expected, rtol=1e-4):
    """The value within 1e-5; each number of the gradient within 1e-4, or 1e-5 of the largest where terms cancel."""
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(actual[1], expected[1], rtol=rtol, atol=1e-5 * expected[1].abs().max().item())


def assert_equals_reference(*maps, **settings):
    actual = value_and_gradient(*maps, **settings)
    assert actual[0].shape == () and actual[0].dtype == torch.float32
    assert_equal(actual, value_and_gradient(*maps, **settings, backend="reference"))


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_equal_the_reference(case, device):
    shape, patch_size, groups, negatives, distance = CASES[case]
    settings = {"patch_size": patch_size, "channel_groups": groups, "negatives": negatives}
    settings |= {"temperature": 0.5, "distance": distance, "upstream": -2.5}
    assert_equals_reference(*random_maps(shape, device), **settings)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_halves_are_computed_in_float32(dtype, rounding, device):
    student, teacher = random_maps(device=device, dtype=dtype)
    value, gradient = value_and_gradient(student, teacher, upstream=64.0, **OMNI)
    expected = value_and_gradient(student.float(), teacher.float(), "reference", upstream=64.0, **OMNI)
    assert value.dtype == torch.float32 and gradient.dtype == dtype
    assert_equal((value, gradient.float()), expected, rtol=rounding + 1e-4)


def strided(kind, tensor):
    if kind == "channels last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if kind == "cropped":
        larger = tensor.new_full((*tensor.shape[:2], tensor.shape[2] + 1, tensor.shape[3] + 3), torch.nan)
        larger[..., :-1, :-3] = tensor
        return larger[..., :-1, :-3]
    return tensor.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)


@pytest.mark.parametrize("kinds", [("channels last", "cropped"), ("cropped", "permuted")])
def test_strides_and_a_teacher_of_another_dtype_do_not_matter(kinds, device):
    student, teacher = (tensor.detach() for tensor in random_maps((2, 6, 2, 4), device))
    teacher = teacher.bfloat16()
    expected = value_and_gradient(student, teacher.float(), "reference", **OMNI)
    maps = [strided(kind, tensor) for kind, tensor in zip(kinds, (student, teacher), strict=True)]
    assert not any(tensor.is_contiguous() for tensor in maps)
    assert_equal(value_and_gradient(*maps, **OMNI), expected)


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_equal_vectors_count_the_negatives_and_give_a_zero_gradient(distance, device):
    ones = torch.ones(1, 6, 2, 2, device=device)
    value, gradient = value_and_gradient(ones, ones, **{**OMNI, "distance": distance})
    torch.testing.assert_close(value, 3 * torch.tensor(1.0 + 8, device=device).log())
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_numbers_that_both_maps_share_have_the_sign_zero(distance, device):
    student, teacher = (tensor.detach().relu() for tensor in random_maps(device=device))  # half of the numbers are 0
    assert_equals_reference(student, teacher, **{**OMNI, "distance": distance})


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_large_distances_do_not_overflow(distance, device):
    student, teacher = (1e3 * tensor.detach() for tensor in random_maps(device=device))
    settings = {**OMNI, "temperature": 0.07, "distance": distance}
    value, gradient = value_and_gradient(student, teacher, **settings)
    # the weights are 0 or 1 here, so that the rounding of similarities around 1e4 does not show
    expected = value_and_gradient(student.double(), teacher.double(), "reference", **settings)
    assert_equal((value.double(), gradient.double()), expected)


def test_every_tile_gives_equal_bits(device, monkeypatch):
    maps = random_maps((1, 5 * 65, 4, 4), device) if device == "cuda" else random_maps((1, 10, 4, 4), device)
    settings = {**OMNI, "patch_size": 4, "channel_groups": 5}
    every_choice, runs = contrast_triton.tile_choices, []
    for index in range(3):
        contrast_triton._tuned.cache_clear()
        one_choice = lambda *sizes, index=index: every_choice(*sizes)[index:][:1] or every_choice(*sizes)[:1]  # noqa: E731
        monkeypatch.setattr(contrast_triton, "tile_choices", one_choice)
        runs.append(value_and_gradient(*maps, **settings))
    contrast_triton._tuned.cache_clear()
    for value, gradient in runs[1:]:
        assert torch.equal(value, runs[0][0]) and torch.equal(gradient, runs[0][1])


def test_portions_of_patches_and_of_anchors_do_not_change_the_value(device, monkeypatch):
    cases = {
        # limit: (maps, settings, anchors and patches of a portion)
        3 * 16 * 16: (random_maps((2, 6, 2, 4), device), OMNI, (16, 3)),
        1: (random_maps((1, 9, 4, 4), device), {**OMNI, "patch_size": 4, "channel_groups": 9}, (128, 1)),  # V = 144
    }
    for limit, (maps, settings, portion) in cases.items():
        monkeypatch.setattr(contrast_triton, "PORTION_NUMBERS", limit)
        cut = contrast_triton.Cut(maps[0].shape, settings["patch_size"], settings["channel_groups"])
        assert (cut.anchors, cut.portion) == portion
        assert_equals_reference(*maps, **settings)


@without_interpreter
def test_the_buffers_of_any_size_are_bounded():
    for shape, patch_size, groups in [
        ((16, 2048, 44, 44), 4, 16),
        ((16, 2048, 512, 512), 1, 16),
        ((1, 2048, 64, 64), 64, 16),
    ]:
        cut = contrast_triton.Cut(torch.Size(shape), patch_size, groups)
        assert (
            cut.portion * cut.padded_vectors * max(cut.anchors, cut.padded_channels) <= contrast_triton.PORTION_NUMBERS
        )
        assert cut.portion <= contrast_triton.MOST_PATCHES and cut.anchors % min(cut.padded_vectors, 128) == 0
        assert cut.positions == shape[0] * shape[2] * shape[3]


@pytest.mark.parametrize("index", [0, 1])
def test_float64_is_refused_with_a_reason(index):
    maps = [tensor.detach() for tensor in random_maps()]
    maps[index] = maps[index].double()
    with pytest.raises(ValueError, match="cannot run: its arithmetic is float32.*torch.float64.*use backend='torch'"):
        omni_contrast(*maps, **OMNI, backend="triton")


@without_interpreter
def test_a_cpu_is_refused_with_a_reason():
    with pytest.raises(ValueError, match="cannot run: the maps are on the device 'cpu', and Triton needs a CUDA GPU"):
        omni_contrast(*random_maps(), **OMNI, backend="triton")


def test_a_missing_triton_is_a_reason_and_no_import_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ValueError, match="cannot run: Triton is not installed; pip install triton"):
        omni_contrast(*random_maps(), **OMNI, backend="triton")


@without_interpreter
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")  # Triton 3.9 announces a default; the kernels say fma
@pytest.mark.parametrize("kernel", ["compare_vectors", "sum_gradient"])
def test_the_inner_loops_compile_for_hopper_without_exchanges_between_threads(kernel, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    loops = inner_loops(compiled(kernel).asm["ttgir"])
    assert loops and not any("ttg.convert_layout" in loop or "ttg.local" in loop for loop in loops)
    assert all("sizePerThread = [4, 4]" in loop for loop in loops)


def compiled(name):
    """A kernel for the method's defaults and an H200, which needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(contrast_triton, name)
    constants = {"PATCH_SIZE": 4, "VECTORS": 256, "CHANNELS": 128, "GROUP_SIZE": 16, "SQUARED": False, "UNROLL": 4}
    constants |= {"BLOCK_A": 64, "BLOCK_V": 64, "BLOCK_C": 64}
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    types = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in kernel.arg_names}
    types |= {"inverse_temperature": "fp32"} if "inverse_temperature" in types else {}
    types |= dict.fromkeys(constants, "constexpr")
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if name.endswith("_ptr") or name in ("anchors", "first_anchor")
    }
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})


def inner_loops(ttgir):
    """The bodies of the loops, with the layouts that they name written out."""
    layouts = dict(re.findall(r"^(#\w+) = (#ttg.*)$", ttgir, flags=re.MULTILINE))
    bodies = re.findall(r"scf\.for .*?scf\.yield", ttgir, flags=re.DOTALL)
    return [re.sub(r"#blocked\d*\b", lambda name: layouts[name[0]], body) for body in bodies]


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("shape", [(16, 2048, 44, 44), (16, 2048, 16, 32), (16, 256, 16, 32)])
def test_memory_is_bounded_and_the_speed_is_printed(shape, capsys):
    settings = {**OMNI, "patch_size": 4, "channel_groups": 16, "temperature": 0.07}
    student, teacher = random_maps(shape, "cuda")
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
    assert extra <= 2 * one_map + 2**28 + 2**24  # the kept and the scaled gradient, one portion, small things


@without_interpreter
def test_all_of_this_passes_in_tritons_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__))]
    root = paths.ROOT
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed and int(passed[1]) > 18, run.stdout[-2000:]  # not skipped
