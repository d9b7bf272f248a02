"""Energy that counters in the hardware measured; no counter, no figure, and never an estimate.

GPUs of NVIDIA count since Volta (NVML); processors of Intel and AMD count where Linux shows it under `powercap` and
lets the user read it, which many systems keep to root.
"""

from __future__ import annotations

import ctypes
import logging
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

logger = logging.getLogger(__name__)

POWERCAP = Path("/sys/class/powercap")
_SECONDS_BETWEEN_READINGS = 60  # a processor's counter starts again at 0 after some 20 minutes under full load


class EnergyMeter:
    """Joules used between `start` and `stop`, by this process's GPU and by the processors of its machine.

    What else runs on the same processors or GPU is in the figures: the counters know no processes.

    Args:
        device: where the training runs.
        with_processors: read the processors' counters too; one process a machine should.
    """

    def __init__(self, device: torch.device, with_processors: bool = True):
        self._gpu = _nvidia_reader(device) if device.type == "cuda" else None
        self._domains = [_Domain(path) for path in _processor_domains()] if with_processors else []
        self._with_processors = with_processors
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._gpu_at_start: float | None = None

    def start(self) -> EnergyMeter:
        """Begin to count; a thread reads the processors' counters now and then."""
        self._gpu_at_start = self._gpu() if self._gpu else None
        for domain in self._domains:
            domain.update()
        if self._domains:
            self._thread = threading.Thread(target=self._watch, daemon=True, name="energy")
            self._thread.start()
        return self

    def stop(self) -> dict[str, float]:
        """Joules of "GPU" and "processor", each only where every counter could be read all the time."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        gpu = self._gpu() if self._gpu else None
        used = {"GPU": None if gpu is None or self._gpu_at_start is None else gpu - self._gpu_at_start}
        used["processor"] = self._processor_joules()
        return {part: joules for part, joules in used.items() if joules is not None}

    def _processor_joules(self) -> float | None:
        if not self._with_processors:
            return 0.0
        for domain in self._domains:
            domain.update()
        joules = [domain.joules for domain in self._domains]
        return sum(joules) if joules and None not in joules else None

    def _watch(self) -> None:
        while not self._done.wait(_SECONDS_BETWEEN_READINGS):
            for domain in self._domains:
                domain.update()


def energy_of_all(mine: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    """The sum over all processes; a part that any of them could not measure is left out. Every process calls this."""
    parts = ("GPU", "processor")
    values = torch.tensor([[mine.get(part, math.nan) for part in parts]], device=accelerator.device)
    sums = accelerator.gather(values).double().sum(0).tolist()
    return {part: joules for part, joules in zip(parts, sums, strict=True) if not math.isnan(joules)}


class _Domain:
    """One counter of processors: microjoules that start again at 0 behind a known limit."""

    def __init__(self, path: Path):
        self._path = path
        self._limit = int((path / "max_energy_range_uj").read_text())
        self._last: int | None = None
        self._used = 0
        self._failed = False

    def update(self) -> None:
        try:
            value = int((self._path / "energy_uj").read_text())
        except (OSError, ValueError) as error:
            logger.debug("%s: %s", self._path, error)
            self._failed = True
            return
        if self._last is not None:
            self._used += (value - self._last) % (self._limit + 1)
        self._last = value

    @property
    def joules(self) -> float | None:
        return None if self._failed or self._last is None else self._used / 1e6


def _processor_domains() -> Sequence[Path]:
    """The processors' packages; their cores and memory are parts of these or have counters that not all machines do."""
    found = sorted(POWERCAP.glob("intel-rapl:*")) if POWERCAP.is_dir() else []
    packages = []
    for path in found:
        try:
            is_package = (path / "name").read_text().startswith("package")
            (path / "energy_uj").read_text()  # on many systems root alone may
        except OSError as error:
            logger.debug("no energy of the processors: %s", error)
            return []
        packages += [path] if is_package else []
    return packages


def _nvidia_reader(device: torch.device) -> Callable[[], float | None] | None:
    """A function that returns the joules which the GPU has used since its driver was loaded, or None without one."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        handle = ctypes.c_void_p()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
        if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)):
            return None
        read = library.nvmlDeviceGetTotalEnergyConsumption
    except (OSError, AttributeError) as error:  # no such library, or one without these functions
        logger.debug("no energy of the GPU: %s", error)
        return None

    def joules() -> float | None:
        millijoules = ctypes.c_ulonglong()
        return None if read(handle, ctypes.byref(millijoules)) else millijoules.value / 1e3

    return joules if joules() is not None else None
