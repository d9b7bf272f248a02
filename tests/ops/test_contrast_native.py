"""How the C kernel is compiled, kept and spread over threads, and what happens where that fails."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys

import pytest
import torch
from test_backends import CASES, NATIVE_RUNS, SMALL, TOLERANCE, assert_equals_reference, maps_of, value_and_gradient

from afdcd_hf.ops import contrast, contrast_native, omni_contrast

needs_a_compiler = pytest.mark.skipif(not NATIVE_RUNS, reason="needs a C compiler")
FIRST_USE = """
import sys
sys.modules["triton"] = None  # importing the functions needs none
import torch
from afdcd_hf.ops import omni_contrast
print(omni_contrast(*torch.ones(2, 1, 6, 2, 2), patch_size=2, channel_groups=3, backend="native").item())
"""


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty cache folder, and a process that has not loaded the kernel."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    contrast_native._library.cache_clear()
    contrast._log_choice.cache_clear()
    yield tmp_path / "cache" / "afdcd_hf"
    contrast_native._library.cache_clear()
    contrast._log_choice.cache_clear()


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A kernel compiled for float."""
    target = tmp_path_factory.mktemp("compiled") / "kernel.so"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    subprocess.run([compiler, *contrast_native.FLAGS, contrast_native.SOURCE, "-o", target, "-lm"], check=True)
    return target


@pytest.fixture
def compiler(library, tmp_path, monkeypatch):
    """A stand-in for a compiler, that copies and counts; the file with a line for each call."""
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
    (kept,) = fresh.iterdir()  # whole: no part of a file is left
    assert kept.name.startswith("contrast-")
    contrast_native._library.cache_clear()  # as in another process
    assert torch.equal(some_loss(), expected)
    (call,) = compiler.read_text().splitlines()
    assert call.startswith("--some-flag -std=gnu11 -O3") and "fast-math" not in call
    changed = tmp_path / "contrast_kernel.c"
    changed.write_text(contrast_native.SOURCE.read_text() + "/* changed */\n")
    for change in (
        lambda: monkeypatch.setattr(contrast_native, "SOURCE", changed),
        lambda: monkeypatch.setenv("CC", os.environ["CC"] + " --another-flag"),
        lambda: monkeypatch.setattr(contrast_native.platform, "machine", lambda: "another"),
    ):
        contrast_native._library.cache_clear()
        change()
        some_loss()
    assert len(list(fresh.iterdir())) == len(compiler.read_text().splitlines()) == 4


@needs_a_compiler
@pytest.mark.parametrize(
    "damage", [lambda whole: whole[: len(whole) // 3], lambda whole: whole[:-1] + b"x", lambda _: b""]
)
def test_a_damaged_library_is_compiled_again(damage, fresh, compiler):  # loading a torn one is a bus error
    some_loss()
    (kept,) = fresh.iterdir()
    whole = kept.read_bytes()
    contrast_native._library.cache_clear()
    kept.write_bytes(damage(whole))
    some_loss()
    assert kept.read_bytes() == whole and len(compiler.read_text().splitlines()) == 2


@needs_a_compiler
def test_a_cache_that_cannot_be_written_costs_a_compilation_a_process(fresh, compiler, caplog):
    fresh.parent.write_text("a file where the folder should be")
    with caplog.at_level(logging.INFO, logger="afdcd_hf.ops.contrast_native"):
        assert some_loss() == some_loss()
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("the compiled contrast is not kept for other processes:")
    assert len(compiler.read_text().splitlines()) == 1


@needs_a_compiler
def test_two_processes_may_compile_at_once_and_import_no_triton(fresh, compiler):
    environment = {**os.environ, "SLOW": "2", "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FIRST_USE]
    runs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    results = [run.communicate(timeout=240)[0] for run in runs]
    assert results[0] == results[1] and float(results[0]) == pytest.approx(3 * torch.tensor(9.0).log().item())
    assert len(list(fresh.iterdir())) == 1


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
def test_threads_change_no_bit():
    maps = maps_of((2, 256, 16, 16))
    before, results = torch.get_num_threads(), []
    try:
        for number in (1, 3, 64):  # 64: more than patches
            torch.set_num_threads(number)
            results.append(value_and_gradient(omni_contrast, *maps, backend="native"))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)
    for value, gradient in results[1:]:
        assert torch.equal(value, results[0][0]) and torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("threads", [1, 3])
def test_missing_memory_in_any_thread_is_an_error(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    seen = []

    def function(task, first, last):
        seen.append((first.value, last.value))
        return int(first.value <= 7 < last.value)

    with pytest.raises(MemoryError, match="no memory for one patch of the contrast"):
        contrast_native._run(function, contrast_native.Task(), 20)
    assert sorted(place for first, last in seen for place in range(first, last)) == list(range(20))
