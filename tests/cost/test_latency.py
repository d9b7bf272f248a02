"""`afdcd_hf.cost`: times, memory, rows and the command `afdcd profile`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from functools import partial

import pytest
import torch
from tiny import segmenter
from torch import nn

from afdcd_hf.cli import main
from afdcd_hf.cost import count_macs, count_parameters, format_profile, profile_model, profile_rows, timing
from afdcd_hf.cost.memory import peak_allocated, weight_bytes
from afdcd_hf.cost.timing import time_calls
from afdcd_hf.hub.card_facts import LatencyRow

CPU = torch.device("cpu")
QUICK = {"warmup": 1, "repeats": 3}
MIB = 2**20


class Scale(nn.Module):
    """What it returns is of no interest."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, pixel_values):
        return pixel_values * self.weight


class Recorder(Scale):
    """Notes how it is called."""

    calls: list[tuple] = []

    def __init__(self) -> None:
        super().__init__()
        self.calls.clear()

    def forward(self, pixel_values):
        if pixel_values.device.type != "meta":  # counting of MACs
            channels_last = pixel_values.is_contiguous(memory_format=torch.channels_last)
            half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
            self.calls.append((tuple(pixel_values.shape), channels_last, half, self.training, torch.is_grad_enabled()))
        return super().forward(pixel_values)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves where a test moves it."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(timing, "perf_counter", lambda: Clock.now)
    return Clock


def calls_of(clock, durations):
    """A function whose calls take these times, the last one for good."""
    left = list(durations)

    def run():
        clock.now += left.pop(0) if len(left) > 1 else left[0]

    return run


# Times


def test_only_calls_after_the_warm_up_count(clock):
    run = calls_of(clock, [9.0, 5.0, 1.0, 2.0, 3.0, 4.0])
    assert time_calls(run, CPU, warmup=2, repeats=4, max_seconds=1000) == ([1.0, 2.0, 3.0, 4.0], 2)


def test_a_time_limit_ends_warming_up_and_measuring_but_three_calls_always_count(clock):
    found = time_calls(calls_of(clock, [1.0]), CPU, warmup=10, repeats=40, max_seconds=8)
    assert found == ([1.0] * 8, 1 + 2)  # a quarter of 8 seconds, after the first call
    found = time_calls(calls_of(clock, [100.0]), CPU, warmup=10, repeats=40, max_seconds=8)
    assert found == ([100.0] * 3, 1 + 1)
    assert len(time_calls(calls_of(clock, [100.0]), CPU, warmup=1, repeats=2, max_seconds=8).seconds) == 2


def test_the_first_call_may_take_long_without_shortening_the_rest(clock):
    found = time_calls(calls_of(clock, [500.0, 1.0]), CPU, warmup=3, repeats=5, max_seconds=20)
    assert found == ([1.0] * 5, 3)


def test_a_row_has_median_95th_percentile_and_images_of_all_passes_by_their_time(clock):
    model = Recorder()
    seconds = [7.0, *[0.1] * 18, 0.2, 1.0]  # the warm-up, then twenty

    def forward(_, inputs):
        if inputs[0].device.type != "meta":
            clock.now += seconds.pop(0)

    model.register_forward_pre_hook(
        lambda module, args, kwargs: forward(module, [kwargs["pixel_values"]]), with_kwargs=True
    )
    [row] = profile_model(model, [(4, 6)], warmup=1, repeats=20, batch_size=5, memory=False)
    assert row.median_seconds == pytest.approx(0.1)
    assert row.p95_seconds == pytest.approx(0.2 + 0.05 * 0.8)  # 19 gaps: 0.95 of them is 18.05
    assert row.images_per_second == pytest.approx(5 * 20 / 3.0)
    assert (row.warmup, row.repeats, row.peak_memory_mb) == (1, 20, None)


# Memory


def test_peak_memory_on_a_cpu_is_the_highest_sum_of_what_lives_at_once():
    def run():
        first = torch.ones(MIB // 4)  # 1 MiB
        second = torch.ones(2 * MIB // 4)
        del first
        third = torch.ones(4 * MIB // 4)  # 2 + 4 are the peak
        del second
        return torch.ones(MIB // 4) + third[: MIB // 4].sum()

    assert peak_allocated(run, CPU) == pytest.approx(6 * MIB, rel=0.001)  # never all 8 at once


def test_memory_from_before_the_call_does_not_count():
    kept = [torch.ones(MIB)]
    assert peak_allocated(kept.clear, CPU) == 0


def test_weights_count_once_and_buffers_too():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    model[1].weight = model[0].weight
    assert weight_bytes(model) == 4 * (16 + 4 * 4) + 8  # a step counter of eight bytes


def test_the_peak_of_a_row_has_weights_input_and_maps():
    [row] = profile_model(Recorder(), [(256, 512)], **QUICK)
    assert row.peak_memory_mb == pytest.approx(2 * 3 * 256 * 512 * 4 / MIB + 12 / MIB, rel=1e-3)
    [double] = profile_model(Recorder(), [(256, 512)], batch_size=2, **QUICK)
    assert double.peak_memory_mb == pytest.approx(2 * row.peak_memory_mb, rel=1e-3)


# Rows


def test_a_row_per_size_counts_as_the_counters_do_and_holds_what_a_card_needs():
    model = segmenter()
    rows = profile_model(model, [(32, 48), (64, 64)], batch_size=2, **QUICK)
    assert [(row.height, row.width, row.batch_size) for row in rows] == [(32, 48, 2), (64, 64, 2)]
    assert [row.macs for row in rows] == [count_macs(model, (32, 48)), count_macs(model, (64, 64))]
    assert {row.num_parameters for row in rows} == {count_parameters(model)}
    for row in rows:
        assert 0 < row.median_seconds <= row.p95_seconds and row.images_per_second > 0 and row.peak_memory_mb > 0
        assert f"{torch.get_num_threads()} thread" in row.device and torch.__version__ in row.versions
        card = LatencyRow(**{name: getattr(row, name) for name in LatencyRow.__dataclass_fields__})
        assert card.setting == "fp32" and len(card.date) == 10


def test_the_network_runs_as_asked_for_without_gradients_in_evaluation_mode():
    profile_model(Recorder(), [(8, 12)], batch_size=3, memory=False, **QUICK)
    assert set(Recorder.calls) == {((3, 3, 8, 12), False, False, False, False)} and len(Recorder.calls) == 4
    [row] = profile_model(Recorder(), [(8, 12)], channels_last=True, precision="bf16", memory=False, **QUICK)
    assert set(Recorder.calls) == {((1, 3, 8, 12), True, torch.bfloat16, False, False)}
    assert row.setting == "bf16 autocast, channels last"


def test_the_network_that_was_given_stays_as_it_was():
    model = segmenter().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    profile_model(model, [(32, 32)], channels_last=True, **QUICK)
    assert model.training and all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.state_dict().keys() == before.keys() and torch.equal(torch.get_rng_state(), random_state)
    kernels = [tensor for tensor in model.parameters() if tensor.dim() == 4]
    assert all(tensor.is_contiguous() for tensor in kernels)


def test_half_precision_weights_are_named_and_get_input_of_their_type():
    [row] = profile_model(Recorder().to(torch.bfloat16), [(8, 8)], memory=False, **QUICK)
    assert row.setting == "bfloat16"


def test_the_passes_really_happen_one_after_the_other_for_each_size():
    rows = profile_rows(Recorder(), [(4, 4), (8, 8)])
    next(rows)
    assert {call[0] for call in Recorder.calls} == {(1, 3, 4, 4)}
    assert len(Recorder.calls) == 10 + 40 + 1


def test_a_network_is_compiled_anew_for_each_size_with_that_very_size(monkeypatch):
    compiled = []

    def backend(graph, inputs):  # stands in for the real one, which takes half a minute
        compiled.append([tuple(tensor.shape) for tensor in inputs if tensor.dim() == 4])
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    sizes = [(4, 4 + step) for step in range(10)]  # more than torch.compile keeps graphs of
    rows = profile_model(Scale(), sizes, compile=True, memory=False, **QUICK)
    assert {row.setting for row in rows} == {"fp32, compiled"}
    assert compiled == [[(1, 3, *size)] for size in sizes]


def test_what_cannot_be_compiled_is_said_with_what_to_do(monkeypatch):
    def backend(graph, inputs):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with pytest.raises(ValueError, match="torch.compile, .* failed on an input of 1 x 3 x 8 x 8; measure without"):
        profile_model(Scale(), [(8, 8)], compile=True, **QUICK)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_memory_is_the_allocators_and_the_device_is_named():
    [row] = profile_model(segmenter(), [(64, 64)], device="cuda", **QUICK)
    assert row.device == torch.cuda.get_device_name() and "CUDA" in row.versions
    assert row.peak_memory_mb > weight_bytes(segmenter()) / MIB


# Errors


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
        ({"device": "meta"}, "computes nothing"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(options, message):
    model = Recorder()
    with pytest.raises(ValueError, match=message):
        profile_model(model, **{"sizes": [(8, 8)], **options})
    assert not Recorder.calls


def test_autocast_of_float64_weights_is_refused():
    with pytest.raises(ValueError, match="float64"):
        profile_model(Recorder().double(), [(8, 8)], precision="bf16")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "1 x 3 x 8 x 16 does not fit into the GPU's memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "does not fit into memory"),
        (ValueError("at least 33 pixels"), "cannot take an input of 1 x 3 x 8 x 16: at least 33 pixels"),
        (RuntimeError("\nsizes do not match\nframe 1"), "8 x 16; take another size. RuntimeError: sizes do not match$"),
    ],
)
def test_a_failing_pass_names_the_input_and_what_to_do(error, message):
    def fail(*_):
        raise error

    model = Recorder()
    model.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match=message):
        profile_model(model, [(8, 16)], **QUICK)


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
    assert quick_command(saved, "--size", 32, 48, "--size", 64, 64, "--batch-size", 2, "--json", out) == 0
    printed = capsys.readouterr().out
    assert "32x48" in printed and "64x64" in printed and "thread" in printed and "1 MAC = 2 FLOPs" in printed
    found = json.loads(out.read_text())
    assert found["model"] == str(saved) and [row["height"] for row in found["rows"]] == [32, 64]
    assert found["rows"][0]["macs"] == count_macs(segmenter(), (32, 48))


def test_json_holds_every_field_of_a_row_and_the_table_says_where_nothing_was_measured(saved, tmp_path, capsys):
    assert quick_command(saved, "--size", 32, 32, "--no-memory", "--json", tmp_path / "p.json") == 0
    [found] = json.loads((tmp_path / "p.json").read_text())["rows"]
    [row] = profile_model(saved, [(32, 32)], device="cpu", memory=False, **QUICK)
    assert list(found) == [field.name for field in fields(row)]
    same = ("num_parameters", "macs", "device", "setting", "versions", "repeats", "peak_memory_mb")
    assert {name: found[name] for name in same} == {name: asdict(row)[name] for name in same}
    assert format_profile([row]).splitlines()[-1].split()[-2:] == ["-", "3"]


def test_rows_measured_before_a_failure_are_kept(saved, tmp_path, capsys, monkeypatch):
    from afdcd_hf.cost import latency

    measure = latency._measure

    def failing(network, size, settings):
        if size == (64, 64):
            raise torch.OutOfMemoryError("out of memory")
        return measure(network, size, settings)

    monkeypatch.setattr(latency, "_measure", failing)
    out = tmp_path / "profile.json"
    assert quick_command(saved, "--size", 32, 32, "--size", 64, 64, "--json", out) == 2
    captured = capsys.readouterr()
    assert "32x32" in captured.out and "does not fit" in captured.err
    assert [row["height"] for row in json.loads(out.read_text())["rows"]] == [32]


def test_a_file_that_is_there_is_only_replaced_on_request(saved, tmp_path, capsys):
    out = tmp_path / "profile.json"
    out.write_text("mine")
    assert quick_command(saved, "--size", 32, 32, "--json", out) == 2
    assert out.read_text() == "mine" and "--overwrite" in capsys.readouterr().err
    assert quick_command(saved, "--size", 32, 32, "--json", out, "--overwrite") == 0
    assert "rows" in json.loads(out.read_text())
    assert quick_command(saved, "--overwrite") == 2


@pytest.mark.parametrize(("load", "note"), [(100000.0, True), (0.0, False), (None, False)])
def test_a_busy_machine_is_said_to_be_busy(saved, capsys, monkeypatch, load, note):
    from afdcd_hf.cost import latency

    monkeypatch.setattr(latency, "load_average", lambda: load)
    assert quick_command(saved, "--size", 32, 32) == 0
    assert ("times are too long" in capsys.readouterr().out) is note
