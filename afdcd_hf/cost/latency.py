"""Measures what a network costs on the device at hand: `profile_model`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..inference.segment import PRECISIONS
from ..model_utils import device_of, dtype_of
from .counting import count_macs_at, count_parameters
from .failures import explained
from .machine import convolves_in_tf32, device_name, load_average, versions
from .memory import MIB, peak_allocated, weight_bytes
from .timing import Timing, time_calls

SIZES = ((512, 512), (512, 1024), (1024, 2048))


@dataclass(frozen=True)
class ProfileSettings:
    """How to measure.

    Attributes:
        batch_size: Images in a forward pass.
        precision: As in inference: "fp32" (the type of the weights), or "bf16" or "fp16" (autocast).
        channels_last: Lay weights and images out with the channels last.
        compile: Compile the network with `torch.compile`, anew for each size.
        warmup: Passes before those that count.
        repeats: Passes that count.
        max_seconds: Time limit for each size, after which fewer passes have to do; at least three count.
        memory: Measure peak memory, in one more pass.

    Raises:
        ValueError: If a number is not positive or the precision is unknown.
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
    """The cost of a network at one size of input.

    Attributes:
        num_parameters: Every number that the network stores, as `count_parameters` counts.
        macs: Multiply-accumulates of one image, as `count_macs` counts.
        height, width, batch_size: Of the input.
        device: The GPU, or the processor and its number of threads.
        setting: Precision and what else was asked for, such as "fp32, channels last".
        median_seconds, p95_seconds: Of the forward pass of a batch.
        images_per_second: Images of all passes that count, by the time these took.
        peak_memory_mb: MiB that weights, input, maps and workspaces take at most, by PyTorch's allocator; not Python,
            libraries, or what the allocator keeps in reserve. None where it was not measured.
        warmup, repeats: Passes before those that count, and passes that count.
        load_average: Programs that wanted a core during the minute before; None where it is not known.
        versions: Of torch, and of CUDA, cuDNN and driver on a GPU.
        date: Day of the measurement, as 2026-01-31.
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


def profile_model(
    model: nn.Module | str | Path,
    sizes: Sequence[tuple[int, int]] = SIZES,
    *,
    device: str | torch.device | None = None,
    **settings,
) -> list[ProfileRow]:
    """Measures time and memory of a network's forward pass, and counts its parameters and multiply-accumulates.

    The network runs in evaluation mode, without gradients, on noise that lies on the device already. Its logits have
    its own resolution: reading pictures, preprocessing and stretching the logits are not in.

    Args:
        model: A network that is called as `model(pixel_values=images)`; or the folder or Hub id of a saved one.
        sizes: `(height, width)` of the inputs, in pixels.
        device: Where to run. By default where the network is; a saved one on a GPU where there is one.
        **settings: As in `ProfileSettings`.

    Returns:
        A row per size. The network that was given stays as it was and where it was: a copy is measured.

    Raises:
        ValueError: If a size, a setting or the device cannot be, the network cannot take such an input, it does not
            fit into memory, or cannot be compiled.
        OSError: If there is no such folder or repository.
    """
    return list(profile_rows(model, sizes, ProfileSettings(**settings), device))


def profile_rows(
    model: nn.Module | str | Path,
    sizes: Sequence[tuple[int, int]] = SIZES,
    settings: ProfileSettings | None = None,
    device: str | torch.device | None = None,
) -> Iterator[ProfileRow]:
    """As `profile_model`, a row as soon as it is measured."""
    settings = settings or ProfileSettings()
    sizes = [_checked_size(size) for size in sizes]
    if not sizes:
        raise ValueError("sizes is empty: give at least one (height, width).")
    device = _checked_device(device)  # before a network is loaded
    network = _measured_network(model, device, settings)
    for size in sizes:
        yield _profile_row(network, size, settings)


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


def _measured_network(
    model: nn.Module | str | Path, device: torch.device | None, settings: ProfileSettings
) -> nn.Module:
    if isinstance(model, nn.Module):
        network = copy.deepcopy(model)
        device = device or device_of(model)
    else:
        from ..models.loading import load_model

        network = load_model(str(model))
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if PRECISIONS[settings.precision] is not None and dtype_of(network) == torch.float64:
        raise ValueError(f"precision={settings.precision!r}: autocast leaves float64 weights alone; cast the network.")
    return network.to(device, memory_format=_memory_format(settings)).eval()


def _memory_format(settings: ProfileSettings) -> torch.memory_format:
    return torch.channels_last if settings.channels_last else torch.preserve_format


def _profile_row(network: nn.Module, size: tuple[int, int], settings: ProfileSettings) -> ProfileRow:
    device, load = device_of(network), load_average()
    with torch.no_grad(), explained(size, settings.batch_size, settings.compile):
        [macs] = count_macs_at(network, [size])
        timing, peak = _measure(network, size, settings)
    return ProfileRow(
        num_parameters=count_parameters(network),
        macs=macs,
        height=size[0],
        width=size[1],
        batch_size=settings.batch_size,
        device=device_name(device),
        setting=_setting(network, settings),
        **_statistics(timing, settings.batch_size),
        peak_memory_mb=None if peak is None else (weight_bytes(network) + peak) / MIB,
        load_average=load,
        versions=versions(device),
        date=date.today().isoformat(),
    )


def _measure(network: nn.Module, size: tuple[int, int], settings: ProfileSettings) -> tuple[Timing, int | None]:
    """Times of the passes, and bytes that one takes at most beside the weights."""
    device = device_of(network)
    run = _runner(network, settings)
    images = _noise(network, size, settings)
    limits = {name: getattr(settings, name) for name in ("warmup", "repeats", "max_seconds")}
    timing = time_calls(partial(run, images), device, **limits)
    del images
    # this pass makes its input itself, so that the allocator sees it come
    peak = peak_allocated(lambda: run(_noise(network, size, settings)), device) if settings.memory else None
    return timing, peak


def _noise(network: nn.Module, size: tuple[int, int], settings: ProfileSettings) -> Tensor:
    """Images as the network takes them; zeros would be cheaper to multiply on a GPU, which then clocks higher."""
    device, shape = device_of(network), (settings.batch_size, 3, *size)
    generator = torch.Generator(device).manual_seed(0)
    images = torch.randn(shape, device=device, dtype=dtype_of(network), generator=generator)
    return images.contiguous(memory_format=torch.channels_last) if settings.channels_last else images


def _runner(network: nn.Module, settings: ProfileSettings) -> Callable[[Tensor], object]:
    """What runs the network on a batch."""
    device_type, autocast = device_of(network).type, PRECISIONS[settings.precision]
    if settings.compile:
        torch.compiler.reset()  # else later sizes get the graph for any size, or none after the eighth
        network = torch.compile(network, dynamic=False)

    def run(images: Tensor) -> object:
        with torch.autocast(device_type, dtype=autocast, enabled=autocast is not None):
            return network(pixel_values=images)

    return run


def _setting(network: nn.Module, settings: ProfileSettings) -> str:
    dtype = dtype_of(network)
    if settings.precision != "fp32":
        words = [f"{settings.precision} autocast"]
    else:
        words = ["fp32" if dtype == torch.float32 else str(dtype).removeprefix("torch.")]
        words += ["TF32 convolutions"] if convolves_in_tf32(device_of(network), dtype) else []
    words += ["channels last"] if settings.channels_last else []
    words += ["compiled"] if settings.compile else []
    return ", ".join(words)


def _statistics(timing: Timing, batch_size: int) -> dict[str, float]:
    seconds = np.array(timing.seconds)
    return {
        "median_seconds": float(np.median(seconds)),
        "p95_seconds": float(np.percentile(seconds, 95)),
        "images_per_second": batch_size * len(seconds) / float(seconds.sum()),
        "warmup": timing.warmup,
        "repeats": len(seconds),
    }
