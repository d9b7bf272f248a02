"""The cost of a model: parameters and multiply-accumulates are counted, time and memory are measured."""

from __future__ import annotations

import copy
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from itertools import accumulate
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ..inference.segment import PRECISIONS, height_and_width
from ..model_utils import check_device, device_of, dtype_of, evaluating
from ..models.loading import load_model
from .machine import device_name, load_average, versions

SIZES = ((512, 512), (512, 1024), (1024, 2048))
HEADER = (
    f"{'input':>11}{'batch':>7}{'GMACs':>9}{'median ms':>11}{'p95 ms':>10}{'images/s':>10}{'peak MiB':>10}{'passes':>8}"
)
_MIN_PASSES = 3  # even if the time limit is exceeded


def count_parameters(model: nn.Module) -> int:
    """Count the numbers in a model's state dict, including running statistics and counters; shared tensors once."""
    state = model.state_dict(keep_vars=True).values()  # the tensors themselves, distinguished by identity
    return sum({id(tensor): tensor.numel() for tensor in state if isinstance(tensor, Tensor)}.values())


def count_macs(model: nn.Module, size: tuple[int, int], channels: int = 3) -> int:
    """Count the multiply-accumulates (MACs) of one image's forward pass; 1 MAC = 2 floating-point operations.

    Convolutions (including grouped and transposed ones), matrix products and attention are counted from the shapes
    that PyTorch runs; everything else, including biases, counts 0. The model runs once in evaluation mode on an image
    of zeros, on its own device and in its own dtype; layers that are active only in training are not counted.

    Args:
        model: called as `model(pixel_values=image)`; the mode of every module is restored.
        size: `(height, width)` of the image in pixels; a ValueError unless these are positive whole numbers.
        channels: channels of the image.
    """
    height_and_width("size", size)
    image = torch.zeros(1, channels, *size, device=device_of(model), dtype=dtype_of(model))
    counter = FlopCounterMode(display=False)
    # PyTorch has no formula for fused attention on CPUs; as plain matrix products it is counted on every device.
    with evaluating(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(pixel_values=image)
    return counter.get_total_flops() // 2


def count_macs_at(model: nn.Module, sizes: Iterable[tuple[int, int]]) -> list[int]:
    """Count MACs as `count_macs` does, for one RGB image at each `(height, width)`, from shapes alone if possible."""
    shapes = copy.deepcopy(model).to("meta")
    for module in shapes.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.ReLU)):
            vars(module)["forward"] = lambda input: input  # counts 0, and takes most of the time on the meta device
    sizes = list(sizes)
    try:
        return [count_macs(shapes, size) for size in sizes]
    except RuntimeError:  # the model reads values, as EoMT does, or fails on a size, which the next line reports
        return [count_macs(model, size) for size in sizes]


@dataclass(frozen=True)
class ProfileSettings:
    """How to measure; a ValueError if a number is too small or the precision is unknown."""

    batch_size: int = 1  # images in a forward pass
    precision: str = "fp32"  # as in inference: "fp32" (the type of the weights), or "bf16" or "fp16" (autocast)
    channels_last: bool = False  # memory format of weights and images
    compile: bool = False  # use `torch.compile`, separately for each size
    warmup: int = 10  # untimed passes
    repeats: int = 40  # timed passes
    max_seconds: float = 30.0  # limit for the timed passes at each size; there are always at least three
    memory: bool = True  # measure peak memory, in an extra pass

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("warmup", 0), ("repeats", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r}: expected a whole number of at least {least}.")
        if not 0 < self.max_seconds < math.inf:
            raise ValueError(f"max_seconds={self.max_seconds!r}: expected a positive number of seconds.")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r} is unknown; expected one of {', '.join(PRECISIONS)}.")


@dataclass(frozen=True)
class ProfileRow:
    """The cost of a model at one input size."""

    num_parameters: int  # as `count_parameters` counts
    macs: int  # of one image, as `count_macs` counts
    height: int
    width: int
    batch_size: int
    device: str  # the GPU, or the processor and its number of threads
    setting: str  # precision and other options, such as "fp32, channels last"
    median_seconds: float  # of the forward pass of a batch
    p95_seconds: float
    images_per_second: float  # images of all timed passes, divided by their total time
    # MiB of weights, input, maps and workspaces, by PyTorch's allocator; None if not measured
    peak_memory_mb: float | None
    warmup: int  # untimed passes
    repeats: int  # timed passes
    load_average: float | None  # of the minute before the measurement; None if unknown
    versions: str  # of torch, and of CUDA, cuDNN and driver on a GPU
    date: str  # of the measurement, as 2026-01-31

    def describe(self) -> str:
        """Describe the model's size, and where and how the row was measured."""
        parameters = f"{self.num_parameters / 1e6:.2f} M parameters"
        return f"{parameters}; {self.device}; {self.setting}; {self.versions}; measured {self.date}"

    def format(self) -> str:
        """Format one line under `HEADER`; "-" means not measured."""
        memory = "-" if self.peak_memory_mb is None else f"{self.peak_memory_mb:.0f}"
        return (
            f"{f'{self.height}x{self.width}':>11}{self.batch_size:>7}{self.macs / 1e9:>9.2f}"
            f"{1000 * self.median_seconds:>11.1f}{1000 * self.p95_seconds:>10.1f}{self.images_per_second:>10.2f}"
            f"{memory:>10}{self.repeats:>8}"
        )


def profile_model(
    model: nn.Module | str | Path,
    sizes: Sequence[tuple[int, int]] = SIZES,
    *,
    settings: ProfileSettings | None = None,
    device: str | torch.device | None = None,
    show: Callable[[ProfileRow], None] = lambda row: None,
) -> list[ProfileRow]:
    """Measure time and memory of a model's forward pass, and count its parameters and multiply-accumulates.

    The model runs in evaluation mode, without gradients, on noise that is already on the device. Reading images,
    preprocessing and upsampling the logits are not included.

    Args:
        model: called as `model(pixel_values=images)`, of which a copy is measured; or its folder or Hub id.
        sizes: `(height, width)` of the inputs, in pixels.
        settings: how to measure.
        device: device to run on; by default the model's, and for a saved model a GPU if there is one.
        show: called with each row as soon as it is measured.

    Returns:
        A row per size.

    Raises:
        ValueError: an invalid size or device, an input too large for model or memory, or a failing compiler.
        OSError: the folder or repository does not exist.
    """
    settings, rows = settings or ProfileSettings(), list[ProfileRow]()
    for size in sizes:
        height_and_width("size", size)
    if not sizes:
        raise ValueError("sizes is empty: give at least one (height, width).")
    check_device(device)
    if isinstance(model, nn.Module):
        measured, device = copy.deepcopy(model), device or device_of(model)
    else:
        measured, device = load_model(str(model)), device or ("cuda" if torch.cuda.is_available() else "cpu")
    if PRECISIONS[settings.precision] is not None and dtype_of(measured) == torch.float64:
        raise ValueError(f"precision={settings.precision!r}: autocast leaves float64 weights alone; cast the model.")
    layout = torch.channels_last if settings.channels_last else torch.preserve_format
    measured = measured.to(device, memory_format=layout).eval()  # type: ignore[call-overload]  # torch lists no such pair
    for size in sizes:
        rows.append(_profile_row(measured, size, settings))
        show(rows[-1])
    return rows


def _profile_row(model: nn.Module, size: tuple[int, int], settings: ProfileSettings) -> ProfileRow:
    device, load = device_of(model), load_average()
    with torch.no_grad(), _readable_errors(size, settings):
        [macs] = count_macs_at(model, [size])
        seconds, peak = _measure(model, size, settings)
    weights = {id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    return ProfileRow(
        num_parameters=count_parameters(model),
        macs=macs,
        height=size[0],
        width=size[1],
        batch_size=settings.batch_size,
        device=device_name(device),
        setting=_setting(model, settings),
        median_seconds=float(np.median(seconds)),
        p95_seconds=float(np.percentile(seconds, 95)),
        images_per_second=settings.batch_size * len(seconds) / sum(seconds),
        peak_memory_mb=None if peak is None else (sum(weights.values()) + peak) / 2**20,
        warmup=settings.warmup,
        repeats=len(seconds),
        load_average=load,
        versions=versions(device),
        date=date.today().isoformat(),
    )


def _measure(model: nn.Module, size: tuple[int, int], settings: ProfileSettings) -> tuple[list[float], int | None]:
    """Return the seconds of each timed pass, and a pass's peak memory in bytes without the weights."""
    device, autocast = device_of(model), PRECISIONS[settings.precision]
    forward: Callable[..., Any] = model
    if settings.compile:
        torch.compiler.reset()  # otherwise later sizes reuse a dynamic graph, or none after the eighth
        forward = torch.compile(model, dynamic=False)

    def noise() -> Tensor:  # with zeros a GPU would need less power and clock higher
        generator = torch.Generator(device).manual_seed(0)
        shape = (settings.batch_size, 3, *size)
        images = torch.randn(shape, device=device, dtype=dtype_of(model), generator=generator)
        return images.contiguous(memory_format=torch.channels_last) if settings.channels_last else images

    def run(images: Tensor) -> None:
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            forward(pixel_values=images)

    def now() -> float:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return perf_counter()

    images = noise()
    for _ in range(settings.warmup):
        run(images)
    seconds: list[float] = []
    while len(seconds) < settings.repeats and (len(seconds) < _MIN_PASSES or sum(seconds) < settings.max_seconds):
        start = now()
        run(images)
        seconds.append(now() - start)
    del images
    # this pass creates its own input, so that the allocator counts it
    return seconds, peak_allocated(lambda: run(noise()), device) if settings.memory else None


def peak_allocated(run: Callable[[], Any], device: torch.device) -> int | None:
    """Measure the peak memory of tensors during one call, in bytes beyond that before it; None on unknown devices.

    The CPU allocator keeps no count, so PyTorch's profiler records every allocation and release.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    # read at the profiler's first run; otherwise it logs its start and end, and a missing GPU as an error
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as noted:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        noted.export_chrome_trace(str(trace))  # the only public way to get individual allocations
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    return max(accumulate(size for _, size in sorted(changes)), default=0)


def _setting(model: nn.Module, settings: ProfileSettings) -> str:
    device, dtype = device_of(model), dtype_of(model)
    words = [str(dtype).removeprefix("torch.") if dtype != torch.float32 else "fp32"]
    if settings.precision != "fp32":
        words = [f"{settings.precision} autocast"]
    elif dtype == torch.float32 and device.type == "cuda" and not torch.version.hip:
        if torch.backends.cudnn.allow_tf32 and torch.cuda.get_device_capability(device) >= (8, 0):
            words.append("TF32 convolutions")  # PyTorch's default
    return ", ".join([*words, *["channels last"] * settings.channels_last, *["compiled"] * settings.compile])


@contextmanager
def _readable_errors(size: tuple[int, int], settings: ProfileSettings) -> Iterator[None]:
    """Convert errors about memory, the model's limits or compilation to a ValueError that names the input."""
    shown = f"{settings.batch_size} x 3 x {size[0]} x {size[1]}"
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):  # GPU, CPU
            raise ValueError(f"Input of {shown} does not fit into memory; use fewer or smaller images.") from error
        compiling = settings.compile
        tried = "torch.compile, or the pass after it, failed" if compiling else "The forward pass failed"
        advice = "measure without compiling, or another size" if compiling else "use another size"
        reason = str(error).strip().partition("\n")[0]  # the rest of PyTorch's messages are stack frames of C++
        raise ValueError(f"{tried} on an input of {shown}; {advice}. {type(error).__name__}: {reason}") from error
