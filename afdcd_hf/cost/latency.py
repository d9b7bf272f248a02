"""Measures what a model costs on the device at hand: `profile_model`."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..atomic_io import written_whole
from ..inference.segment import PRECISIONS
from ..model_utils import device_of, dtype_of
from .counting import count_macs_at, count_parameters
from .machine import convolves_in_tf32, device_name, load_average, versions
from .memory import MIB, peak_allocated, weight_bytes

SIZES = ((512, 512), (512, 1024), (1024, 2048))
FEWEST_PASSES = 3  # of a measurement that its time limit cuts short
HEADER = (
    f"{'input':>11}{'batch':>7}{'GMACs':>9}{'median ms':>11}{'p95 ms':>10}{'images/s':>10}{'peak MiB':>10}{'passes':>8}"
)


@dataclass(frozen=True)
class ProfileSettings:
    """How to measure.

    Attributes:
        batch_size: images in a forward pass.
        precision: as in inference: "fp32" (the type of the weights), or "bf16" or "fp16" (autocast).
        channels_last: lay out weights and images with the channels last.
        compile: compile the model with `torch.compile`, anew for each size.
        warmup: passes before those that count.
        repeats: passes that count.
        max_seconds: time limit for the passes of each size that count, after which fewer have to do; at least three.
        memory: measure peak memory, in one more pass.

    Raises:
        ValueError: a number is not positive or the precision is unknown.
    """

    batch_size: int = 1
    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    warmup: int = 10
    repeats: int = 40
    max_seconds: float = 30.0
    memory: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_size", "warmup", "repeats"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: expected a positive whole number.")
        if not (math.isfinite(self.max_seconds) and self.max_seconds > 0):
            raise ValueError(f"max_seconds={self.max_seconds!r}: expected a positive number of seconds.")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r} is unknown; expected one of {', '.join(PRECISIONS)}.")


@dataclass(frozen=True)
class ProfileRow:
    """The cost of a model at one size of input.

    Attributes:
        num_parameters: every number that the model stores, as `count_parameters` counts.
        macs: multiply-accumulates of one image, as `count_macs` counts.
        height, width, batch_size: of the input.
        device: the GPU, or the processor and its number of threads.
        setting: precision and what else was asked for, such as "fp32, channels last".
        median_seconds, p95_seconds: of the forward pass of a batch.
        images_per_second: images of all passes that count, by the time these took.
        peak_memory_mb: MiB that weights, input, maps and workspaces take at most, by PyTorch's allocator; not Python,
            libraries, or what the allocator keeps in reserve. None where it was not measured.
        warmup, repeats: passes before those that count, and passes that count.
        load_average: programs that wanted a core during the minute before; None where it is not known.
        versions: of torch, and of CUDA, cuDNN and driver on a GPU.
        date: day of the measurement, as 2026-01-31.
    """

    num_parameters: int
    macs: int
    height: int
    width: int
    batch_size: int
    device: str
    setting: str
    median_seconds: float
    p95_seconds: float
    images_per_second: float
    peak_memory_mb: float | None
    warmup: int
    repeats: int
    load_average: float | None
    versions: str
    date: str

    def describe(self) -> str:
        """What the row was measured on, and how."""
        return (
            f"{self.num_parameters / 1e6:.2f} M parameters; {self.device}; {self.setting}; {self.versions}; measured "
            f"{self.date}"
        )

    def format(self) -> str:
        """One line under `HEADER`; "-" stands for not measured."""
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
) -> list[ProfileRow]:
    """Measure time and memory of a model's forward pass, and count its parameters and multiply-accumulates.

    The model runs in evaluation mode, without gradients, on noise that lies on the device already. Its logits have
    their own resolution: reading images, preprocessing and stretching the logits are not included.

    Args:
        model: called as `model(pixel_values=images)`; or the folder or Hub id of a saved one.
        sizes: `(height, width)` of the inputs, in pixels.
        settings: how to measure.
        device: where to run. By default where the model is; a saved one on a GPU where there is one.

    Returns:
        A row per size. The model that was given stays as and where it was: a copy is measured.

    Raises:
        ValueError: a size, a setting or the device cannot be, the model cannot take such an input, it does not fit
            into memory, or cannot be compiled.
        OSError: there is no such folder or repository.
    """
    return list(profile_rows(model, sizes, settings=settings, device=device))


def profile_rows(
    model: nn.Module | str | Path,
    sizes: Sequence[tuple[int, int]] = SIZES,
    *,
    settings: ProfileSettings | None = None,
    device: str | torch.device | None = None,
) -> Iterator[ProfileRow]:
    """As `profile_model`, with each row as soon as it is measured."""
    settings = settings or ProfileSettings()
    sizes = [_checked_size(size) for size in sizes]
    if not sizes:
        raise ValueError("sizes is empty: give at least one (height, width).")
    where = _checked_device(device)  # before a model is loaded
    network = _measured_model(model, where, settings)
    return (_profile_row(network, size, settings) for size in sizes)


def write_profile(path: str | Path, model: str, rows: Sequence[ProfileRow]) -> None:
    """Write rows as JSON: `{"model": ..., "rows": [...]}` with the fields of `ProfileRow`, replacing the file."""
    with written_whole(Path(path)) as part:
        found = {"model": model, "rows": [asdict(row) for row in rows]}
        part.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size,)
    if len(sides) != 2 or any(not isinstance(side, int) or side < 1 for side in sides):
        raise ValueError(f"size={size!r}: expected (height, width), two positive whole numbers of pixels.")
    return sides


def _checked_device(device: str | torch.device | None) -> torch.device | None:
    if device is None:
        return None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an assertion where torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device={str(device)!r} cannot be used here; expected e.g. cpu or cuda. ({reason})"
        ) from error
    if torch.device(device).type == "meta":
        raise ValueError("device='meta' computes nothing, so that there is nothing to measure; expected e.g. cpu.")
    return torch.device(device)


def _measured_model(model: nn.Module | str | Path, device: torch.device | None, settings: ProfileSettings) -> nn.Module:
    if isinstance(model, nn.Module):
        measured = copy.deepcopy(model)
        device = device or device_of(model)
    else:
        from ..models.loading import load_model

        measured = load_model(str(model))
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if PRECISIONS[settings.precision] is not None and dtype_of(measured) == torch.float64:
        raise ValueError(f"precision={settings.precision!r}: autocast leaves float64 weights alone; cast the model.")
    layout = torch.channels_last if settings.channels_last else torch.preserve_format
    return measured.to(device, memory_format=layout).eval()  # type: ignore[call-overload]  # torch lists no such pair


def _profile_row(model: nn.Module, size: tuple[int, int], settings: ProfileSettings) -> ProfileRow:
    device, load = device_of(model), load_average()
    with torch.no_grad(), _explained(size, settings):
        [macs] = count_macs_at(model, [size])
        seconds, peak = _measure(model, size, settings)
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
        peak_memory_mb=None if peak is None else (weight_bytes(model) + peak) / MIB,
        warmup=settings.warmup,
        repeats=len(seconds),
        load_average=load,
        versions=versions(device),
        date=date.today().isoformat(),
    )


def _measure(model: nn.Module, size: tuple[int, int], settings: ProfileSettings) -> tuple[list[float], int | None]:
    """Seconds of each pass that counts, and bytes that one takes at most beside the weights."""
    device, run = device_of(model), _runner(model, settings)
    images = _noise(model, size, settings)
    for _ in range(settings.warmup):
        run(images)
    seconds: list[float] = []
    while len(seconds) < settings.repeats and (len(seconds) < FEWEST_PASSES or sum(seconds) < settings.max_seconds):
        seconds.append(_seconds(partial(run, images), device))
    del images
    # this pass makes its input itself, so that the allocator sees it come
    peak = peak_allocated(lambda: run(_noise(model, size, settings)), device) if settings.memory else None
    return seconds, peak


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Of one call, with everything the device still has to do waited for before and after it."""
    _wait_for(device)
    start = perf_counter()
    call()
    _wait_for(device)
    return perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _noise(model: nn.Module, size: tuple[int, int], settings: ProfileSettings) -> Tensor:
    """Images as the model takes them; zeros would be cheaper to multiply on a GPU, which then clocks higher."""
    device, shape = device_of(model), (settings.batch_size, 3, *size)
    generator = torch.Generator(device).manual_seed(0)
    images = torch.randn(shape, device=device, dtype=dtype_of(model), generator=generator)
    return images.contiguous(memory_format=torch.channels_last) if settings.channels_last else images


def _runner(model: nn.Module, settings: ProfileSettings) -> Callable[[Tensor], Any]:
    device_type, autocast = device_of(model).type, PRECISIONS[settings.precision]
    forward: Callable[..., Any] = model
    if settings.compile:
        torch.compiler.reset()  # else later sizes get the graph for any size, or none after the eighth
        forward = torch.compile(model, dynamic=False)

    def run(images: Tensor) -> Any:
        with torch.autocast(device_type, dtype=autocast, enabled=autocast is not None):
            return forward(pixel_values=images)

    return run


def _setting(model: nn.Module, settings: ProfileSettings) -> str:
    dtype = dtype_of(model)
    if settings.precision != "fp32":
        words = [f"{settings.precision} autocast"]
    else:
        words = ["fp32" if dtype == torch.float32 else str(dtype).removeprefix("torch.")]
        words += ["TF32 convolutions"] if convolves_in_tf32(device_of(model), dtype) else []
    words += ["channels last"] if settings.channels_last else []
    words += ["compiled"] if settings.compile else []
    return ", ".join(words)


@contextmanager
def _explained(size: tuple[int, int], settings: ProfileSettings) -> Iterator[None]:
    """Turn what memory, the model's own limits or a compiler say into a ValueError that names the input."""
    shown = f"{settings.batch_size} x 3 x {size[0]} x {size[1]}"
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"Input of {shown} does not fit into the GPU's memory; take fewer or smaller images."
        ) from error
    except ValueError as error:  # the model's own check
        raise ValueError(f"The model cannot take an input of {shown}: {error}") from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error):
            raise ValueError(f"Input of {shown} does not fit into memory; take fewer or smaller images.") from error
        tried = "torch.compile, or the pass after it, failed" if settings.compile else "The forward pass failed"
        advice = "measure without compiling, or another size" if settings.compile else "take another size"
        # the first line that says something; the rest of PyTorch's messages are stack frames of C++
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise ValueError(f"{tried} on an input of {shown}; {advice}. {type(error).__name__}: {reason}") from error
