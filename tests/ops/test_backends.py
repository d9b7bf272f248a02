"""The backends: agreement with the reference, no stored similarities, rules of autograd and operators; the C kernel."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import shutil
import subprocess
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from afdcd_hf.ops import contrast, contrast_native, contrast_reference
from afdcd_hf.ops.contrast import channel_contrast, omni_contrast, spatial_contrast
from afdcd_hf.ops.contrast_native import native_unavailable

GPU = torch.cuda.is_available()  # else Triton runs in its interpreter (conftest.py)
NATIVE_RUNS = native_unavailable(torch.zeros(1), torch.zeros(1)) is None
# Largest difference from the reference, relative to the largest number. float32: a distance of 100 has an error of
# 1e-5, a similarity (τ = 0.07) one of 1e-4, also in the reference; see the comparison with float64 below.
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-11}

CASES = {
    # name: function, options, shape
    "other groups": (omni_contrast, {"patch_size": 2, "channel_groups": 3}, (2, 15, 4, 6)),
    "all": (omni_contrast, {"patch_size": 3, "channel_groups": 2, "negatives": "all"}, (2, 10, 7, 9)),
    "one channel in a group": (omni_contrast, {"patch_size": 2, "channel_groups": 7}, (1, 7, 6, 2)),
    "more vectors than one panel, an odd rest": (omni_contrast, {"channel_groups": 5}, (1, 15, 4, 8)),
    "defaults": (omni_contrast, {}, (1, 48, 8, 12)),
    "spatial": (spatial_contrast, {"patch_size": 3}, (3, 5, 7, 6)),
    "spatial, more channels than one sum": (spatial_contrast, {"patch_size": 2}, (1, 130 + 128, 2, 4)),
    "channel": (channel_contrast, {"channel_groups": 5}, (2, 85, 3, 5)),
}
SMALL = {"patch_size": 2, "channel_groups": 3}


@pytest.fixture(params=["torch", "native", pytest.param("triton", marks=[pytest.mark.gpu] if GPU else [])])
def backend(request):
    if request.param == "native" and not NATIVE_RUNS:
        pytest.skip("needs a C compiler")
    if request.param == "triton":
        pytest.importorskip("triton")
    return request.param


# Triton's values are in test_contrast_triton.py: its interpreter is slow
on_cpus = pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)


def maps_of(shape, dtype=torch.float32, backend="native"):
    """Return the student's map, which requires a gradient, and the teacher's, on the backend's device."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, *shape, generator=generator, dtype=dtype)
    student, teacher = maps.to("cuda" if GPU and backend == "triton" else "cpu")
    return student.clone().requires_grad_(), teacher


def value_and_gradient(function, student, teacher, upstream=3.0, **options):
    student = student.detach().requires_grad_()
    loss = function(student, teacher, **options)
    (gradient,) = torch.autograd.grad(upstream * loss, student)
    return loss.detach(), gradient


def assert_equals_reference(function, maps, tolerance, backend, **options):
    expected = value_and_gradient(function, *maps, **options, backend="reference")
    actual = value_and_gradient(function, *maps, **options, backend=backend)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@on_cpus
@pytest.mark.parametrize("temperature", [0.07, 2.0])  # peaked: few pairs have weight; flat: all do
@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_the_reference(case, dtype, distance, temperature, backend):
    function, options, shape = CASES[case]
    options = {**options, "distance": distance, "temperature": temperature}
    assert_equals_reference(function, maps_of(shape, dtype), TOLERANCE[dtype], backend, **options)


@pytest.mark.parametrize("patches", [1, 2, 5])
@pytest.mark.parametrize(("case", "vectors", "size"), [("other groups", 12, 5), ("all", 18, 5), ("channel", 5, 17)])
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_portions_of_any_size_give_the_same(backend, case, vectors, size, patches, monkeypatch):
    function, options, shape = CASES[case]
    maps, distances, sizes = maps_of(shape, torch.float64), contrast_reference.distances, []
    expected = value_and_gradient(function, *maps, **options, backend="reference")
    monkeypatch.setattr(contrast_reference, "CPU_NUMBERS", patches * vectors**2)
    monkeypatch.setattr(contrast_reference, "BUFFER_NUMBERS", patches * vectors**2 * size)
    monkeypatch.setattr(contrast_reference, "distances", lambda *of: sizes.append(found := distances(*of)) or found)
    actual = value_and_gradient(function, *maps, **options, backend=backend)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)
    assert len(sizes) > 1 and max(found.numel() for found in sizes) <= patches * vectors**2


@on_cpus
@pytest.mark.parametrize("kind", ["normal", "rectified", "close to the teacher", "far from zero"])
def test_float32_is_as_close_to_float64_as_the_reference(kind, backend):
    student, teacher = (maps.detach() for maps in maps_of((1, 512, 8, 8)))
    student, teacher = {
        "normal": (student, teacher),
        "rectified": (student.relu(), teacher.relu()),
        "close to the teacher": (teacher + 1e-3 * student, teacher),
        "far from zero": (student + 10, teacher + 10),
    }[kind]
    # a temperature of 0.5 with 32 channels: distances differ by a few times that, so many pairs have weight
    options = {"temperature": 0.5 if kind != "close to the teacher" else 5.0}
    _, exact = value_and_gradient(omni_contrast, student.double(), teacher.double(), **options, backend="reference")
    reference, actual = (
        value_and_gradient(omni_contrast, student, teacher, **options, backend=each)[1].double()
        for each in ("reference", backend)
    )
    assert (actual - exact).norm() < 4 * (reference - exact).norm() + 1e-7 * exact.norm()


LAYOUTS = {
    "channels last": lambda maps: maps.to(memory_format=torch.channels_last),
    "cropped": lambda maps: F.pad(maps, (0, 3, 0, 1), value=torch.nan)[..., :-1, :-3],
    "permuted": lambda maps: maps.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "transposed": lambda maps: maps.mT.contiguous().mT,
    "strided": lambda maps: maps.repeat_interleave(2, 1).repeat_interleave(2, 3)[:, ::2, :, 1::2],
    "expanded": lambda maps: maps[:1].expand(2, -1, -1, -1),
    "negated": lambda maps: torch.view_as_complex(torch.stack([maps, maps], -1)).conj().imag,
}


@pytest.mark.parametrize(("layout", "teachers"), list(itertools.pairwise([*LAYOUTS, "channels last"])))
def test_maps_of_any_strides_are_read_in_place(layout, teachers, backend):
    student, teacher = maps_of((2, 6, 4, 4), backend=backend)
    maps = LAYOUTS[layout](student.detach()), LAYOUTS[teachers](teacher)
    assert not any(each.is_contiguous() for each in maps)
    assert_equals_reference(omni_contrast, maps, 1e-5, backend, **SMALL, temperature=0.5)


@on_cpus
@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("negatives", ["other_groups", "all"])
def test_nan_and_infinities_spread_as_in_the_reference(negatives, distance, backend):
    options = {"patch_size": 4, "channel_groups": 6, "negatives": negatives, "distance": distance}
    spoilt = itertools.product([(0,), (1,), (0, 1)], [torch.nan, torch.inf, -torch.inf], [0.07, 5.0])
    for which, value, options["temperature"] in spoilt:
        maps = [each.detach().clone() for each in maps_of((2, 60, 4, 8))]
        for index in which:
            maps[index][0, 7, 1, 2] = value
        expected = value_and_gradient(omni_contrast, *maps, **options, backend="reference")
        actual = value_and_gradient(omni_contrast, *maps, **options, backend=backend)
        assert not expected[0].isfinite() and expected[1].isfinite().any()
        torch.testing.assert_close(actual, expected, rtol=2e-3, atol=1e-4, equal_nan=True)


def test_no_similarity_is_kept_for_the_backward_pass(backend):
    student, teacher = maps_of((1, 6, 8, 8), backend=backend)  # 384 numbers; four patches with 48² similarities each
    kept = {backend: 0, "reference": 0}
    for each in kept:
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: None):
            omni_contrast(student, teacher, patch_size=4, channel_groups=3, backend=each)
        kept[each] = sum(tensor.numel() for tensor in saved)
    assert kept[backend] <= 384 and kept["reference"] > 4 * 48**2  # so the hook does see them


def test_gradients_of_two_passes_add_up_and_a_second_derivative_is_rejected(backend):
    student, teacher = maps_of((1, 12, 4, 4), backend=backend)
    loss = omni_contrast(student, teacher, **SMALL, backend=backend)
    loss.backward(retain_graph=True)
    once = student.grad.clone()
    loss.backward(retain_graph=True)
    assert torch.equal(student.grad, 2 * once)
    (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative; use backend='reference'"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_gradient", [True, False])
def test_the_operator_follows_pytorchs_rules(with_gradient, dtype, backend):
    student, teacher = (maps.detach().to(dtype) for maps in maps_of((1, 12, 4, 4), backend=backend))
    student.requires_grad_(with_gradient)
    arguments = (student, teacher, 2, 3, 0.5, "l1", "other_groups", backend, with_gradient)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(contrast._with_gradient, arguments, test_utils=tests)


@pytest.mark.parametrize(("device", "preferred"), [("cpu", "native"), ("cuda", "triton")])
def test_auto_uses_the_fastest_backend_that_runs_or_says_why_not(device, preferred, monkeypatch, caplog):
    somewhere = SimpleNamespace(dtype=torch.float32, device=torch.device(device))
    contrast._log_choice.cache_clear()
    with caplog.at_level(logging.INFO, logger="afdcd_hf.ops.contrast"):
        for reason, expected in ((None, preferred), ("it is Tuesday", "torch"), ("it is Tuesday", "torch")):
            faked = contrast.BACKENDS[preferred]._replace(unavailable=lambda *_, reason=reason: reason)
            monkeypatch.setitem(contrast.BACKENDS, preferred, faked)
            assert contrast._automatic(somewhere, somewhere) == expected
    assert [record.getMessage() for record in caplog.records] == [  # once each
        f"contrast backend on {device}: {preferred} (chosen by backend='auto')",
        f"contrast backend on {device}: torch (chosen by backend='auto'; {preferred} cannot run: it is Tuesday)",
    ]
    contrast._log_choice.cache_clear()


def test_maps_on_another_device_are_a_reason_not_to_run_the_c_kernel():
    for maps in itertools.permutations([torch.zeros(1, 6, 4, 4), torch.zeros(1, 6, 4, 4, device="meta")]):
        assert native_unavailable(*maps) == "a map is on the device 'meta', and the C kernel runs on a CPU"


# Compilation, caching and threads of the C kernel


needs_a_compiler = pytest.mark.skipif(not NATIVE_RUNS, reason="needs a C compiler")


def forget():
    """Unload the kernel, as in a new process."""
    contrast_native._library.cache_clear()
    contrast._log_choice.cache_clear()


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty cache folder, with the kernel not loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache" / "afdcd_hf"
    forget()


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A kernel compiled for float."""
    target = tmp_path_factory.mktemp("compiled") / "kernel.so"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    subprocess.run([compiler, *contrast_native.FLAGS, contrast_native.SOURCE, "-o", target, "-lm"], check=True)
    return target


@pytest.fixture
def compiler(library, tmp_path, monkeypatch):
    """A fake compiler that copies and counts; returns the file with one line per call."""
    calls, script = tmp_path / "calls", tmp_path / "fake-cc"
    script.write_text(
        f'#!/bin/sh\necho "$@" >>{calls}\nsleep ${{SLOW:-0}}\n'
        f'while [ "$1" != -o ]; do shift; done\nexec cp {library} "$2"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CC", f"{script} --some-flag")
    return calls


def some_loss(backend="native"):
    return omni_contrast(*maps_of((1, 6, 2, 4)), **SMALL, backend=backend)


def value_of_some_loss():  # in another process
    return some_loss().item()


@needs_a_compiler
@pytest.mark.parametrize("instructions", [(), ("-mavx2", "-mfma")], ids=["baseline", "avx2"])
def test_other_instruction_sets_give_the_same(instructions, fresh, monkeypatch):
    capability = torch.backends.cpu.get_cpu_capability()
    if instructions and capability not in contrast_native.INSTRUCTIONS:
        pytest.skip("needs a processor with AVX2")
    monkeypatch.setitem(contrast_native.INSTRUCTIONS, capability, instructions)
    for dtype, tolerance in TOLERANCE.items():
        for function, options, shape in CASES.values():
            for choice in ({"distance": "l1", "temperature": 2.0}, {"distance": "l2"}):
                assert_equals_reference(function, maps_of(shape, dtype), tolerance, "native", **options, **choice)
    assert len(list(fresh.iterdir())) == 2  # float and double


@needs_a_compiler
def test_it_is_compiled_once_for_all_processes_and_anew_for_another_source_or_compiler(
    fresh, compiler, tmp_path, monkeypatch
):
    expected = some_loss()
    (kept,) = fresh.iterdir()  # no partial file is left
    assert kept.name.startswith("contrast-")
    forget()
    assert torch.equal(some_loss(), expected)
    (call,) = compiler.read_text().splitlines()
    assert call.startswith("--some-flag -std=gnu11 -O3") and "fast-math" not in call
    changed = tmp_path / "contrast_kernel.c"
    changed.write_text(contrast_native.SOURCE.read_text() + "/* changed */\n")
    for patch in (
        (monkeypatch.setattr, contrast_native, "SOURCE", changed),
        (monkeypatch.setenv, "CC", os.environ["CC"] + " --another-flag"),
        (monkeypatch.setattr, contrast_native.platform, "machine", lambda: "another"),
    ):
        forget()
        patch[0](*patch[1:])
        some_loss()
    assert len(list(fresh.iterdir())) == len(compiler.read_text().splitlines()) == 4


@needs_a_compiler
def test_two_processes_may_compile_at_once(fresh, compiler, monkeypatch):
    monkeypatch.setenv("SLOW", "2")
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        first, second = (pool.submit(value_of_some_loss) for _ in range(2))
    assert first.result() == second.result() == some_loss().item()
    assert len(list(fresh.iterdir())) == 1 and len(compiler.read_text().splitlines()) == 2


@needs_a_compiler
@pytest.mark.parametrize(
    "damage", [lambda whole: whole[: len(whole) // 3], lambda whole: whole[:-1] + b"x", lambda _: b""]
)
def test_a_damaged_library_is_compiled_again(damage, fresh, compiler):  # loading a truncated one is a bus error
    some_loss()
    (kept,) = fresh.iterdir()
    whole = kept.read_bytes()
    forget()
    kept.write_bytes(damage(whole))
    some_loss()
    assert kept.read_bytes() == whole and len(compiler.read_text().splitlines()) == 2


@needs_a_compiler
def test_with_an_unwritable_cache_each_process_compiles(fresh, compiler, caplog):
    fresh.parent.write_text("a file where the folder should be")
    with caplog.at_level(logging.INFO, logger="afdcd_hf.ops.contrast_native"):
        assert some_loss() == some_loss()
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("the compiled contrast is not cached for other processes:")
    assert len(compiler.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo old compiler >&2; exit 1", "fake-cc .* failed: old compiler"),
        ('while [ "$1" != -o ]; do shift; done; echo text >"$2"', "could not be compiled or loaded: .*contrast.so"),
        (None, "could not be compiled or loaded: .*No such file.*fake-cc"),
        ("", r"no C compiler \(cc, gcc or clang\) was found"),
    ],
)
def test_a_compiler_that_fails_is_tried_once_and_named(script, reason, fresh, tmp_path, monkeypatch):
    fake, calls = tmp_path / "fake-cc", tmp_path / "calls"
    if script:
        fake.write_text(f"#!/bin/sh\necho called >>{calls}\n{script}\n")
        fake.chmod(0o755)
    monkeypatch.setenv("CC", str(fake) if script != "" else "")
    monkeypatch.setattr(contrast_native.shutil, "which", lambda name: None)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"backend='native' cannot run: .*{reason}.*; use backend='torch'"):
            some_loss()
    assert not fresh.exists()
    assert torch.equal(some_loss("auto"), some_loss("torch"))
    assert not script or calls.read_text() == "called\n"


@needs_a_compiler
def test_threads_change_no_bit(monkeypatch):
    maps, results = maps_of((2, 256, 16, 16)), []
    for number in (1, 3, 64):  # 64: more than patches
        monkeypatch.setattr(torch, "get_num_threads", lambda number=number: number)
        results.append(value_and_gradient(omni_contrast, *maps, backend="native"))
    for value, gradient in results[1:]:
        assert torch.equal(value, results[0][0]) and torch.equal(gradient, results[0][1])
