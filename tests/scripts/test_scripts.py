"""The scripts: benchmarks, GPU check, jobs, faults, kernels, and pairs of teacher and student."""

from __future__ import annotations

import argparse
import re
import sys
import time

import benchmark
import gpu_check
import kernel_folder
import measuring
import pytest
import step_case
import torch
from inject_faults import FAULTS, Faults, main
from kernels import get_local_kernel
from paths import ROOT
from tiny import segmenter, without_batch_effects
from try_pairs import TEACHERS, outcome, saved_teacher

from afdcd_hf import __version__, omni_contrast
from afdcd_hf.ops.contrast_native import native_unavailable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NO_KERNEL = native_unavailable(torch.zeros(1), torch.zeros(1))
NEEDS_KERNEL = pytest.mark.skipif(NO_KERNEL is not None, reason=f"{NO_KERNEL}")

# The benchmark of contrast, step and mean IoU: both versions agree, or it stops

SMALL = {"device": torch.device("cpu"), "batch": 2, "repeats": 1, "small": True}
ARGS = argparse.Namespace(**SMALL, dtype="fp32", step_dtype="fp32", compile_step=False)


@NEEDS_KERNEL
@pytest.mark.parametrize("cases", [benchmark.contrast_cases, benchmark.metric_cases])
def test_ours_and_the_released_computation_agree_and_both_are_measured(cases):
    for result in cases(ARGS):
        assert result["difference"] < 1e-5
        for way in ("ours", "released"):
            assert 0 < result[way]["fastest"] <= result[way]["seconds"] <= result[way]["slowest"]


def test_the_trainers_step_and_the_released_one_agree_before_and_after_an_update(monkeypatch):
    def model(backbone, auxiliary_head=False):
        return without_batch_effects(segmenter(int(auxiliary_head), 48 - 16 * auxiliary_head, 11,
                                               auxiliary_head=auxiliary_head))  # fmt: skip

    monkeypatch.setattr(step_case, "model", model)
    results = list(step_case.step_cases(ARGS))
    assert ["plain projector" in result["case"] for result in results] == [True, False]
    for result in results:
        assert result["difference"] < 1e-4
        assert {"teacher", "student", "loss", "backward"} <= set(result["parts_of_ours"])
        assert f"{result['case']} |" in benchmark.row(result)


def test_a_difference_stops_the_benchmark(monkeypatch):
    monkeypatch.setattr(benchmark, "omni_contrast", lambda student, teacher, backend: (student - teacher).sum())
    with pytest.raises(RuntimeError, match=r"contrast, maps \(2, 64, 9, 8\), native: the results differ by .*timed"):
        list(benchmark.contrast_cases(ARGS))
    with pytest.raises(RuntimeError, match="differ by nan"):
        measuring.check_equal("case", float("nan"), 1.0)


def test_peak_memory_is_of_the_call_alone():
    memory = measuring.PeakMemory(torch.device("cpu"))
    kept = torch.ones(16 * 2**20)  # 64 MiB before
    memory.start()
    torch.ones(8 * 2**20).sum()  # 32 MiB, freed
    assert 30 < memory.stop() < 45 and kept.sum() > 0


# The GPU check: a part that fails or takes too long is reported, and the others continue


@pytest.fixture
def check():
    return gpu_check.Check(torch.device("cpu"), rehearse=True)


def test_a_part_that_fails_or_runs_out_of_time_is_reported(check, monkeypatch):
    check.run("broken", lambda _: torch.ones(2) @ torch.ones(3))
    check.run("whole", lambda _: {"speed": 3})
    page = gpu_check.page({"date": "2026-11-29", "commit": "abc", "parts": check.parts})
    assert "1 of 2 parts passed." in page and "| speed | 3 |" in page
    assert "**Failed.** RuntimeError: " in page and "Traceback (most recent call last)" in page
    monkeypatch.setattr(gpu_check, "SECONDS", 0)
    check.run("slow", lambda _: time.sleep(60))
    assert check.parts["slow"]["seconds"] < 20 and "no time left" in check.parts["slow"]["error"]


def test_the_error_of_a_failed_command_has_its_output(check):
    assert check.command("-c", "print('fine')") == "fine\n"
    with pytest.raises(RuntimeError, match="ended with 3: .*told"):
        check.command("-c", "import sys; print('told', file=sys.stderr); sys.exit(3)")


@NEEDS_KERNEL
def test_the_kernels_are_compared_with_the_reference(check, monkeypatch):
    assert len(gpu_check.kernels(check)) == 12
    right = gpu_check.omni_contrast
    wrong = lambda *maps, **options: right(*maps, **options) * (1 if options["backend"] == "reference" else 2)  # noqa: E731
    monkeypatch.setattr(gpu_check, "omni_contrast", wrong)
    with pytest.raises(AssertionError, match="differs from the reference by"):
        gpu_check.kernels(check)


# Jobs, faults, kernels, pairs


@pytest.mark.parametrize("name", ["train", "distill"])
def test_a_script_names_this_versions_wheel_by_a_path_that_also_works_in_a_job(name):
    (header,) = re.findall(r"^# /// script\n(.*?)^# ///$", (ROOT / "scripts" / f"{name}.py").read_text(), re.M | re.S)
    found = tomllib.loads("".join(line[2:] for line in header.splitlines(keepends=True)))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (found["dependencies"], found["requires-python"]) == ([project["name"]], project["requires-python"])
    wheel = found["tool"]["uv"]["sources"][project["name"]]["path"]
    assert wheel == f"../dist/afdcd_hf-{__version__}-py3-none-any.whl"
    assert found["tool"]["hf-jobs"] == {"volumes": ["./dist:/dist"]}  # a job has its script in /data, beside it


def test_a_mistyped_fault_is_refused_before_training_and_every_listed_fault_exists(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["inject_faults.py", "--only", "readonly"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "invalid choice: 'readonly'" in (said := capsys.readouterr().err) and "read_only" in said
    assert all(callable(getattr(Faults, name)) for name in FAULTS)


def test_kernels_loads_the_kernel_folder_which_computes_the_same_as_the_package(tmp_path, monkeypatch, capsys):
    kernel_folder.write(tmp_path)
    kernel = get_local_kernel(tmp_path, backend="cpu")
    student, teacher = torch.randn(2, 2, 32, 8, 12, generator=torch.Generator().manual_seed(0)).unbind()
    gradients = []
    for contrast in (omni_contrast, kernel.omni_contrast):
        own = student.clone().requires_grad_()
        loss = contrast(own, teacher, channel_groups=4, backend="torch")
        loss.backward()
        gradients.append((loss, own.grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    assert kernel.omni_contrast.__module__ not in ("afdcd_hf.ops.contrast", "ops.contrast")
    assert all((tmp_path / "build" / f"torch-{backend}" / "metadata.json").is_file() for backend in ("cpu", "cuda"))
    monkeypatch.setattr(sys, "argv", ["kernel_folder.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="1"):
        kernel_folder.main()
    assert "is not empty" in capsys.readouterr().err


def test_a_pair_trains_or_the_reason_is_reported(tmp_path):
    """The whole table of `scripts/try_pairs.py` takes many minutes."""
    for title, expected in (("SegFormer", "ok"), ("DINOv2 (no logits)", "The teacher, a Dinov2Model, has")):
        make, layer = TEACHERS[title]
        teacher = saved_teacher(make, tmp_path / title)
        assert outcome(teacher, layer, "fcn", "kd", tmp_path / f"{title} run").startswith(expected)
