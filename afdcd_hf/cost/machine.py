"""The machine and library versions of a measurement."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

import torch

from .. import __version__


def machine_name() -> str:
    """Return the `device_name` of the GPU if torch finds one, otherwise of the CPU."""
    return device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries on which scores depend."""
    libraries = ("torch", "transformers", "timm", "datasets", "accelerate")
    return {"afdcd_hf": __version__, **{name: version(name) for name in libraries}}


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or the processor's with torch's number of threads: "AMD EPYC, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{device.type} of {_processor_name()}"
    threads = torch.get_num_threads()
    return f"{_processor_name()}, {threads} thread{'s' if threads > 1 else ''}"


def without_threads(name: str) -> str:
    """Strip the number of threads from a `device_name`."""
    return re.sub(r", \d+ threads?$", "", name)


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""  # Python's own answer is empty or "x86_64"
    found = re.search(r"^model name\s*:\s*(\S.*)$", text, flags=re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def versions(device: torch.device) -> str:
    """Return the versions on which times depend: "torch 2.15.0, CUDA 12.8, cuDNN 91002"."""
    parts = [f"torch {torch.__version__}"]
    if device.type == "cuda":
        parts.append(f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}")
        parts.append(f"cuDNN {torch.backends.cudnn.version()}")
        driver = Path("/sys/module/nvidia/version")
        parts += [f"driver {driver.read_text().strip()}"] if driver.is_file() else []
    return ", ".join(parts)


def load_average() -> float | None:
    """Return the load average of the last minute; None on systems without one."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
