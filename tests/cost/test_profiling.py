"""Parameters and MACs against sums by hand; times, memory, rows and the command `afdcd profile`."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from functools import partial
from unittest.mock import Mock

import pytest
import torch
from tiny import same, saved, segmenter, weights
from torch import nn

from afdcd_hf.cli import main
from afdcd_hf.cost import (
    ProfileRow,
    ProfileSettings,
    count_macs,
    count_macs_at,
    count_parameters,
    profile_model,
    profiling,
)

MIB = 2**20


class SmallNet(nn.Module):
    """Plain, grouped and strided, depth-wise and dilated, and 1x1 convolutions, then a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4, bias=False)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16, bias=False)
        self.pointwise = nn.Conv2d(16, 5, 1)
        self.linear = nn.Linear(5, 2)
        self.training_only = nn.Conv2d(8, 100, 3)
        self.calls: list[tuple] = []

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self.calls.append((tuple(pixel_values.shape), pixel_values.dtype, torch.is_grad_enabled()))
        first = self.norm(self.plain(pixel_values)).relu()
        if self.training:
            self.training_only(first)
        last = self.pointwise(self.depthwise(self.grouped(first)))
        return self.linear(last.mean((2, 3)))


# On 6 x 10 pixels; the strided convolution leaves 3 x 5.
MACS = [6 * 10 * 8 * 3 * 9, 3 * 5 * 16 * (8 // 4) * 9, 3 * 5 * 16 * 1 * 9, 3 * 5 * 5 * 16, 5 * 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_macs_equal_a_sum_by_hand_and_the_model_is_not_changed(dtype):
    model = SmallNet().to(dtype).train()
    model.norm.eval()
    before, random_state = weights(model), torch.get_rng_state()
    assert count_macs(model, (6, 10)) == sum(MACS) == 12960 + 4320 + 2160 + 1200 + 10
    assert model.calls == [((1, 3, 6, 10), dtype, False)]
    assert count_macs_at(model, [(6, 10), (12, 20)]) == [sum(MACS), 4 * sum(MACS[:4]) + MACS[4]]
    with pytest.raises(RuntimeError):
        count_macs(model, (6, 10), channels=7)
    assert model.training and model.plain.training and not model.norm.training
    assert same(weights(model), before) and torch.equal(torch.get_rng_state(), random_state)


def test_macs_of_a_model_that_reads_values_are_counted_on_its_own_device():
    class Reading(SmallNet):
        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            assert pixel_values.sum().item() == 0
            return super().forward(pixel_values)

    assert count_macs_at(Reading(), iter([(6, 10)])) == [sum(MACS)]


class Attention(nn.Linear):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        tokens = pixel_values.flatten(2).mT[:, None]  # (1, 1, pixels, channels)
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_counts_as_two_matrix_products_and_a_transposed_convolution_per_input_pixel(device):
    pairs = (6 * 10) ** 2  # of queries and keys, of weights and values
    assert count_macs(Attention(1, 1).to(device), (6, 10), channels=8) == 2 * pairs * 8
    up = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2).to(device)
    up.forward = lambda pixel_values: nn.ConvTranspose2d.forward(up, pixel_values)
    assert count_macs(up, (5, 7), channels=4) == 5 * 7 * 4 * (6 // 2) * 4


def test_parameters_count_every_stored_tensor_once():
    convolutions = (8 * 3 * 9 + 8) + 16 * 2 * 9 + 16 * 9 + (5 * 16 + 5) + (100 * 8 * 9 + 100)
    learnt = convolutions + (5 * 2 + 2) + 2 * 8
    assert count_parameters(SmallNet()) == learnt + 2 * 8 + 1  # running mean and variance, step counter
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert count_parameters(model) == 16


def profile(model, sizes, device=None, **options):
    """Profile with three timed passes after a warm-up pass."""
    settings = ProfileSettings(**{"warmup": 1, "repeats": 3, **options})
    return profile_model(model, sizes, settings=settings, device=device)


class Scale(nn.Linear):
    def forward(self, pixel_values):
        return pixel_values * self.weight


class Recorder(nn.Module):
    """Records calls of itself and its copies; passes take the given `seconds` in turn, the last value repeatedly."""

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


def test_a_row_has_median_95th_percentile_and_images_per_second_from_at_least_three_passes(monkeypatch):
    monkeypatch.setattr(profiling, "perf_counter", lambda: Recorder.now)
    model = Recorder(7.0, 9.0, *[0.1] * 18, 0.2, 1.0)  # the warm-up, then twenty
    [row] = profile(model, [(4, 6)], warmup=2, repeats=20, batch_size=5, memory=False)
    assert row.median_seconds == pytest.approx(0.1)
    assert row.p95_seconds == pytest.approx(0.2 + 0.05 * 0.8)  # 19 gaps: 0.95 of them is 18.05
    assert row.images_per_second == pytest.approx(5 * 20 / 3.0)
    assert (row.warmup, row.repeats, row.peak_memory_mb) == (2, 20, None)
    for seconds, repeats, counted in ((1.0, 40, 8), (100.0, 40, 3), (100.0, 2, 2)):
        [row] = profile(Recorder(seconds), [(4, 6)], repeats=repeats, max_seconds=8, memory=False)
        assert row.repeats == counted


def test_peak_memory_on_a_cpu_is_the_largest_sum_of_live_tensors():
    def run():
        first = torch.ones(MIB // 4)  # 1 MiB
        second = torch.ones(2 * MIB // 4)
        del first
        third = torch.ones(4 * MIB // 4)  # 2 + 4 are the peak
        del second
        return torch.ones(MIB // 4) + third[: MIB // 4].sum()

    cpu = torch.device("cpu")
    assert profiling.peak_allocated(run, cpu) == pytest.approx(6 * MIB, rel=0.001)  # the 8 MiB are never alive at once
    kept = [torch.ones(MIB)]  # allocated before the call
    assert profiling.peak_allocated(kept.clear, cpu) == 0
    for batch_size in (1, 2):  # weights, input and maps
        [row] = profile(Recorder(), [(256, 512)], batch_size=batch_size)
        expected = batch_size * 2 * 3 * 256 * 512 * 4 / MIB + 12 / MIB
        assert row.peak_memory_mb == pytest.approx(expected, rel=1e-3)


def test_a_row_per_size_agrees_with_the_counters_and_the_model_is_not_changed():
    model = segmenter().train()
    before, random_state = weights(model), torch.get_rng_state()
    rows = profile(model, [(32, 48), (64, 64)], batch_size=2, channels_last=True)
    assert [(row.height, row.width, row.batch_size) for row in rows] == [(32, 48, 2), (64, 64, 2)]
    assert [row.macs for row in rows] == [count_macs(model, (32, 48)), count_macs(model, (64, 64))]
    for row in rows:
        assert row.num_parameters == count_parameters(model)
        assert 0 < row.median_seconds <= row.p95_seconds and row.images_per_second > 0 and row.peak_memory_mb > 0
        assert f"{torch.get_num_threads()} thread" in row.device and torch.__version__ in row.versions
    assert model.training and same(weights(model), before)
    assert all(tensor.is_contiguous() for tensor in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_model_runs_with_the_given_settings_without_gradients_in_evaluation_mode():
    profile(Recorder(), [(8, 12)], batch_size=3, memory=False)
    assert Recorder.calls == 4 * [((3, 3, 8, 12), False, False, False, False)]
    [row] = profile(Recorder(), [(8, 12)], channels_last=True, precision="bf16", memory=False)
    assert set(Recorder.calls) == {((1, 3, 8, 12), True, torch.bfloat16, False, False)}
    assert row.setting == "bf16 autocast, channels last"
    [row] = profile(Recorder().to(torch.bfloat16), [(8, 8)], memory=False)
    assert row.setting == "bfloat16"


def test_a_model_is_compiled_separately_for_each_size(monkeypatch):
    compiled, real = [], torch.compile

    def backend(graph, inputs):  # replaces the real one, which takes half a minute
        compiled.append([tuple(tensor.shape) for tensor in inputs if tensor.dim() == 4])
        return graph.forward

    def no_compiler(graph, inputs):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", partial(real, backend=backend))
    sizes = [(4, 4 + step) for step in range(10)]  # more sizes than torch.compile keeps graphs for
    rows = profile(Scale(1, 1), sizes, compile=True, memory=False)
    assert {row.setting for row in rows} == {"fp32, compiled"}
    assert compiled == [[(1, 3, *size)] for size in sizes]
    monkeypatch.setattr(torch, "compile", partial(real, backend=no_compiler))
    with pytest.raises(ValueError, match="torch.compile, .* failed on an input of 1 x 3 x 8 x 8; measure without"):
        profile(Scale(1, 1), [(8, 8)], compile=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_memory_is_from_the_allocator_and_the_device_is_named():
    [row] = profile(segmenter(), [(64, 64)], device="cuda")
    assert row.device == torch.cuda.get_device_name() and "CUDA" in row.versions
    assert row.peak_memory_mb > 4 * count_parameters(segmenter()) / MIB


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": [(0, 8)]}, r"size=.*: expected \(height, width\)"),
        ({"sizes": []}, "sizes is empty"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"max_seconds": math.nan}, "max_seconds=nan"),
        ({"precision": "int8"}, "expected one of fp32, bf16, fp16"),
        ({"device": "toaster"}, "device 'toaster' cannot be used here"),
    ],
)
def test_invalid_settings_are_refused_before_anything_runs(options, message):
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
    ],
)
def test_a_failing_pass_names_the_input_and_what_to_do(error, message):
    model = Recorder()
    model.register_forward_pre_hook(Mock(side_effect=error))
    with pytest.raises(ValueError, match=message):
        profile(model, [(8, 16)])


@pytest.fixture
def command(tmp_path, capsys):
    """Run the command on a saved model; return its exit status and output."""
    folder = saved(tmp_path / "tiny", segmenter())

    def run(*more):
        return main(
            ["profile", str(folder), "--warmup=0", "--repeats=3", "--device=cpu", *map(str, more)]
        ), *capsys.readouterr()

    return run


def test_the_command_prints_a_row_per_size_and_writes_them(command, tmp_path):
    out = tmp_path / "deep" / "profile.json"
    options = ("--size", 32, 48, "--size", 64, 64, "--batch-size", 2, "--no_memory", "--output", out)
    status, printed, _ = command(*options)
    assert status == 0 and all(words in printed for words in ("32x48", "64x64", "thread", "1 MAC = 2 FLOPs"))
    assert printed.splitlines()[2].split()[-2:] == ["-", "3"]  # "-": not measured
    found = json.loads(out.read_text())
    assert found["model"] == str(tmp_path / "tiny") and [row["height"] for row in found["rows"]] == [32, 64]
    assert list(found["rows"][0]) == [field.name for field in fields(ProfileRow)]
    status, _, error = command(*options)
    assert status == 2 and "--overwrite" in error and json.loads(out.read_text()) == found
    status, printed, _ = command("--size", 32, 32, "--output", out, "--overwrite", "--json")
    assert status == 0 and json.loads(printed) == (found := json.loads(out.read_text()))
    assert found["rows"][0]["width"] == 32


def test_rows_measured_before_a_failure_are_kept_and_a_busy_machine_is_reported(command, tmp_path, monkeypatch):
    measure = profiling._measure

    def failing(network, size, settings):
        if size == (64, 64):
            raise torch.OutOfMemoryError("out of memory")
        return measure(network, size, settings)

    monkeypatch.setattr(profiling, "_measure", failing)
    for load, note in ((100000.0, True), (None, False)):
        monkeypatch.setattr(profiling, "load_average", lambda load=load: load)
        out = tmp_path / f"{note}.json"
        status, printed, error = command("--size", 32, 32, "--size", 64, 64, "--output", out)
        assert status == 2 and "32x32" in printed and "does not fit" in error
        assert [row["height"] for row in json.loads(out.read_text())["rows"]] == [32]
        assert ("times are too long" in command("--size", 32, 32)[1]) is note
