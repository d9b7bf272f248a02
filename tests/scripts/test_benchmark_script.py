"""The benchmark of contrast, projector and step: what it compares is equal; it stops where that is not the case."""

from __future__ import annotations

import argparse

import benchmark
import measuring
import pytest
import step_case
import torch
from tiny import segmenter, without_batch_effects

from afdcd_hf.ops.contrast_native import native_unavailable

NO_KERNEL = native_unavailable(torch.zeros(1), torch.zeros(1))
ARGS = argparse.Namespace(
    device=torch.device("cpu"),
    batch=2,
    dtype="fp32",
    step_dtype="fp32",
    compile_step=False,
    repeats=1,
    small=True,
)


@pytest.mark.skipif(NO_KERNEL is not None, reason=f"{NO_KERNEL}")
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
    with pytest.raises(RuntimeError, match=r"contrast, maps \(2, 64, 9, 8\), native: the ways differ by .*nothing to"):
        list(benchmark.contrast_cases(ARGS))
    with pytest.raises(RuntimeError, match="differ by nan"):
        measuring.check_equal("case", float("nan"), 1.0)


def test_peak_memory_is_that_of_the_call_alone():
    memory = measuring.PeakMemory(torch.device("cpu"))
    kept = torch.ones(16 * 2**20)  # 64 MiB before
    memory.start()
    torch.ones(8 * 2**20).sum()  # 32 MiB, given back
    assert 30 < memory.stop() < 45
    assert kept.sum() > 0
