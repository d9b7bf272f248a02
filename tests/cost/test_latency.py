"""`afdcd_hf.cost`: times, memory, rows and the command `afdcd profile`."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from functools import partial

import pytest
import torch
from tiny import segmenter
from torch import nn

from afdcd_hf.cli import main
from afdcd_hf.cost import ProfileRow, ProfileSettings, count_macs, count_parameters, latency, profile_model
from afdcd_hf.cost.latency import peak_allocated, profile_rows
from afdcd_hf.hub.card_facts import LatencyRow

MIB = 2**20


def profile(model, sizes, device=None, **options):
    """Three passes after one that does not count."""
    settings = ProfileSettings(**{"warmup": 1, "repeats": 3, **options})
    return profile_model(model, sizes, settings=settings, device=device)


class Recorder(nn.Module):
    """Notes how it and its copies are called; a pass takes the next of `seconds`, the last one for good."""

    calls: list[tuple] = []
    seconds: list[float] = []
    now = 0.0

    def __init__(self, *seconds: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 1, 1))
        Recorder.calls, Recorder.seconds = [], list(seconds) or [0.0]

    def forward(self, pixel_values):
        if pixel_values.device.type != "meta":  # counting of MACs
            channels_last = pixel_values.is_contiguous(memory_format=torch.channels_last)
            half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
            self.calls.append((tuple(pixel_values.shape), channels_last, half, self.training, torch.is_grad_enabled()))
            Recorder.now += self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]
        return pixel_values * self.weight


@pytest.mark.parametrize(("seconds", "repeats", "counted"), [(1.0, 40, 8), (100.0, 40, 3), (100.0, 2, 2)])
def test_a_time_limit_ends_measuring_but_three_passes_always_count(monkeypatch, seconds, repeats, counted):
    monkeypatch.setattr(latency, "perf_counter", lambda: Recorder.now)
    [row] = profile(Recorder(seconds), [(4, 6)], repeats=repeats, max_seconds=8, memory=False)
    assert row.repeats == counted


def test_a_row_has_median_95th_percentile_and_images_of_all_passes_by_their_time(monkeypatch):
    monkeypatch.setattr(latency, "perf_counter", lambda: Recorder.now)
    model = Recorder(7.0, 9.0, *[0.1] * 18, 0.2, 1.0)  # the warm-up, then twenty
    [row] = profile(model, [(4, 6)], warmup=2, repeats=20, batch_size=5, memory=False)
    assert row.median_seconds == pytest.approx(0.1)
    assert row.p95_seconds == pytest.approx(0.2 + 0.05 * 0.8)  # 19 gaps: 0.95 of them is 18.05
    assert row.images_per_second == pytest.approx(5 * 20 / 3.0)
    assert (row.warmup, row.repeats, row.peak_memory_mb) == (2, 20, None)


def test_peak_memory_on_a_cpu_is_the_highest_sum_of_what_lives_at_once():
    def run():
        first = torch.ones(MIB // 4)  # 1 MiB
        second = torch.ones(2 * MIB // 4)
        del first
        third = torch.ones(4 * MIB // 4)  # 2 + 4 are the peak
        del second
        return torch.ones(MIB // 4) + third[: MIB // 4].sum()

    cpu = torch.device("cpu")
    assert peak_allocated(run, cpu) == pytest.approx(6 * MIB, rel=0.001)  # never all 8 at once
    kept = [torch.ones(MIB)]  # from before the call
    assert peak_allocated(kept.clear, cpu) == 0
    for batch_size in (1, 2):  # weights, input and maps
        [row] = profile(Recorder(), [(256, 512)], batch_size=batch_size)
        expected = batch_size * 2 * 3 * 256 * 512 * 4 / MIB + 12 / MIB
        assert row.peak_memory_mb == pytest.approx(expected, rel=1e-3)


def test_a_row_per_size_counts_as_the_counters_do_and_the_model_stays_as_it_was():
    model = segmenter().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    rows = profile(model, [(32, 48), (64, 64)], batch_size=2, channels_last=True)
    assert [(row.height, row.width, row.batch_size) for row in rows] == [(32, 48, 2), (64, 64, 2)]
    assert [row.macs for row in rows] == [count_macs(model, (32, 48)), count_macs(model, (64, 64))]
    for row in rows:
        assert row.num_parameters == count_parameters(model)
        assert 0 < row.median_seconds <= row.p95_seconds and row.images_per_second > 0 and row.peak_memory_mb > 0
        assert f"{torch.get_num_threads()} thread" in row.device and torch.__version__ in row.versions
        card = LatencyRow(**{name: getattr(row, name) for name in LatencyRow.__dataclass_fields__})
        assert card.setting == "fp32, channels last" and len(card.date) == 10
    assert model.training and all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(tensor.is_contiguous() for tensor in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_network_runs_as_asked_for_without_gradients_in_evaluation_mode():
    profile(Recorder(), [(8, 12)], batch_size=3, memory=False)
    assert Recorder.calls == 4 * [((3, 3, 8, 12), False, False, False, False)]
    [row] = profile(Recorder(), [(8, 12)], channels_last=True, precision="bf16", memory=False)
    assert set(Recorder.calls) == {((1, 3, 8, 12), True, torch.bfloat16, False, False)}
    assert row.setting == "bf16 autocast, channels last"
    [row] = profile(Recorder().to(torch.bfloat16), [(8, 8)], memory=False)
    assert row.setting == "bfloat16"
    rows = profile_rows(Recorder(), [(4, 4), (8, 8)])
    next(rows)  # one size after the other
    assert {call[0] for call in Recorder.calls} == {(1, 3, 4, 4)} and len(Recorder.calls) == 10 + 40 + 1


def test_a_network_is_compiled_anew_for_each_size_with_that_very_size(monkeypatch):
    class Scale(nn.Linear):
        def forward(self, pixel_values):
            return pixel_values * self.weight

    compiled, real = [], torch.compile

    def backend(graph, inputs):  # stands in for the real one, which takes half a minute
        compiled.append([tuple(tensor.shape) for tensor in inputs if tensor.dim() == 4])
        return graph.forward

    def no_compiler(graph, inputs):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", partial(real, backend=backend))
    sizes = [(4, 4 + step) for step in range(10)]  # more than torch.compile keeps graphs of
    rows = profile(Scale(1, 1), sizes, compile=True, memory=False)
    assert {row.setting for row in rows} == {"fp32, compiled"}
    assert compiled == [[(1, 3, *size)] for size in sizes]
    monkeypatch.setattr(torch, "compile", partial(real, backend=no_compiler))
    with pytest.raises(ValueError, match="torch.compile, .* failed on an input of 1 x 3 x 8 x 8; measure without"):
        profile(Scale(1, 1), [(8, 8)], compile=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_memory_is_the_allocators_and_the_device_is_named():
    [row] = profile(segmenter(), [(64, 64)], device="cuda")
    assert row.device == torch.cuda.get_device_name() and "CUDA" in row.versions
    assert row.peak_memory_mb > 4 * count_parameters(segmenter()) / MIB


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": [(0, 8)]}, r"size=\(0, 8\): expected \(height, width\)"),
        ({"sizes": [8]}, "size=8"),
        ({"sizes": []}, "sizes is empty"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"repeats": 2.5}, "repeats=2.5"),
        ({"max_seconds": math.nan}, "max_seconds=nan"),
        ({"precision": "int8"}, "expected one of fp32, bf16, fp16"),
        ({"device": "toaster"}, "device='toaster' cannot be used here"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(options, message):
    model = Recorder()
    with pytest.raises(ValueError, match=message):
        profile(model, **{"sizes": [(8, 8)], **options})
    with pytest.raises(ValueError, match="float64"):
        profile(model.double(), [(8, 8)], precision="bf16")
    assert not Recorder.calls


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "1 x 3 x 8 x 16 does not fit into memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "does not fit into memory"),
        (ValueError("at least 33 pixels"), "failed on an input of 1 x 3 x 8 x 16; .*: at least 33 pixels"),
        (RuntimeError("\nsizes do not match\nframe 1"), "8 x 16; take another size. RuntimeError: sizes do not match$"),
    ],
)
def test_a_failing_pass_names_the_input_and_what_to_do(error, message):
    def fail(*_):
        raise error

    model = Recorder()
    model.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match=message):
        profile(model, [(8, 16)])


# Command


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    segmenter().save_pretrained(folder)
    return folder


def quick_command(saved, *more):
    return main(["profile", str(saved), "--warmup", "1", "--repeats", "3", "--device", "cpu", *map(str, more)])


def test_the_command_prints_a_row_per_size_and_writes_them(saved, tmp_path, capsys):
    out = tmp_path / "deep" / "profile.json"
    options = ("--size", 32, 48, "--size", 64, 64, "--batch-size", 2, "--no_memory", "--output", out)
    assert quick_command(saved, *options) == 0
    printed = capsys.readouterr().out
    assert "32x48" in printed and "64x64" in printed and "thread" in printed and "1 MAC = 2 FLOPs" in printed
    assert printed.splitlines()[2].split()[-2:] == ["-", "3"]  # "-": not measured
    found = json.loads(out.read_text())
    assert found["model"] == str(saved) and [row["height"] for row in found["rows"]] == [32, 64]
    assert found["rows"][0]["macs"] == count_macs(segmenter(), (32, 48))
    assert list(found["rows"][0]) == [field.name for field in fields(ProfileRow)]
    assert quick_command(saved, *options) == 2 and "--overwrite" in capsys.readouterr().err
    assert json.loads(out.read_text()) == found
    assert quick_command(saved, "--size", 32, 32, "--output", out, "--overwrite") == 0
    assert json.loads(out.read_text())["rows"][0]["width"] == 32
    assert quick_command(saved, "--overwrite") == 2


def test_rows_measured_before_a_failure_are_kept(saved, tmp_path, capsys, monkeypatch):
    measure = latency._measure

    def failing(network, size, settings):
        if size == (64, 64):
            raise torch.OutOfMemoryError("out of memory")
        return measure(network, size, settings)

    monkeypatch.setattr(latency, "_measure", failing)
    out = tmp_path / "profile.json"
    assert quick_command(saved, "--size", 32, 32, "--size", 64, 64, "--output", out) == 2
    captured = capsys.readouterr()
    assert "32x32" in captured.out and "does not fit" in captured.err
    assert [row["height"] for row in json.loads(out.read_text())["rows"]] == [32]


@pytest.mark.parametrize(("load", "note"), [(100000.0, True), (None, False)])
def test_a_busy_machine_is_said_to_be_busy(saved, capsys, monkeypatch, load, note):
    monkeypatch.setattr(latency, "load_average", lambda: load)
    assert quick_command(saved, "--size", 32, 32) == 0
    assert ("times are too long" in capsys.readouterr().out) is note
