"""The contrastive terms on a CPU, by `contrast_kernel.c`, compiled by the system's C compiler (`$CC`) at first use.

The library is cached in `$XDG_CACHE_HOME/afdcd_hf`, else `~/.cache/afdcd_hf`, under a hash of source, compiler, flags
and machine. If the cache cannot be written, each process compiles its own.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..atomic_io import atomic_write
from .contrast_reference import Settings

SOURCE = Path(__file__).with_name("contrast_kernel.c")
FLAGS = ("-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
# By the CPU capability that PyTorch reports. Unlike -march=native, they mean the same on all machines of a cache.
INSTRUCTIONS = {
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
    "AVX2": ("-mavx2", "-mfma"),
}
CHUNKS = 4  # per thread, because a thread may have to share its core

logger = logging.getLogger(__name__)


class Task(ctypes.Structure):  # the struct of the same name in the C file
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("student", "teacher", "gradient", "losses")),
        *((name, ctypes.c_int64 * 4) for name in ("student_strides", "teacher_strides", "gradient_strides")),
        *((name, ctypes.c_int64) for name in ("patch_size", "groups", "channels", "rows", "columns")),
        *((name, ctypes.c_int64) for name in ("squared", "other_groups")),
        *((name, ctypes.c_double) for name in ("temperature", "scale")),
    ]


def native_unavailable(student: Tensor, teacher: Tensor) -> str | None:
    """Return why `contrast_native` cannot run on these maps, or None if it can."""
    for device in {student.device.type, teacher.device.type} - {"cpu"}:
        return f"a map is on the device {device!r}, and the C kernel runs on a CPU"
    library = _library(student.dtype == torch.float64)
    return library if isinstance(library, str) else None


def contrast_native(student: Tensor, teacher: Tensor, gradient: Tensor | None, settings: Settings) -> Tensor:
    """Do what `contrast_torch` does, in as many threads as PyTorch may use; their number changes no bit."""
    patch_size, groups, temperature, distance, negatives = settings
    student, teacher = student.resolve_neg(), teacher.resolve_neg()  # write out lazy negations
    batch, channels, height, width = student.shape
    rows, columns = height // patch_size, width // patch_size
    positions, losses = batch * height * width, torch.empty(batch * rows * columns, dtype=torch.float64)
    target = None if gradient is None else gradient.data_ptr()
    pointers = student.data_ptr(), teacher.data_ptr(), target, losses.data_ptr()
    strides = (each.stride() for each in (student, teacher, student if gradient is None else gradient))
    sizes = patch_size, groups, channels // groups, rows, columns, distance == "l2", negatives == "other_groups"
    task = Task(*pointers, *strides, *sizes, temperature, 1 / (temperature * positions))
    library = _library(student.dtype == torch.float64)
    assert isinstance(library, ctypes.CDLL)  # checked by native_unavailable
    _run(library.afdcd_contrast, task, len(losses))
    return (losses.sum() / positions).to(student.dtype)


def _run(function: Callable[..., int], task: Task, patches: int) -> None:
    threads = torch.get_num_threads()  # each needs about three times the memory of a patch
    chunk = -(-patches // (CHUNKS * threads)) if threads > 1 else patches

    def some(first: int) -> int:  # ctypes releases the GIL
        return function(ctypes.byref(task), ctypes.c_int64(first), ctypes.c_int64(min(first + chunk, patches)))

    with ThreadPoolExecutor(threads, "afdcd-contrast") as pool:
        failed = list(pool.map(some, range(0, patches, chunk)))
    if any(failed):
        raise MemoryError("not enough memory for one patch of the contrast: use a smaller patch_size.")


@cache
def _library(double: bool) -> ctypes.CDLL | str:
    """Return the compiled kernel, or the reason why there is none."""
    command = shlex.split(os.environ.get("CC", "")) or [*filter(shutil.which, ("cc", "gcc", "clang"))][:1]
    if not command:
        return "no C compiler (cc, gcc or clang) was found"
    instructions = INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), ())
    try:
        content = _compiled([*command, *FLAGS, *instructions, *(["-DDOUBLE"] if double else [])])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "contrast.so"
            path.write_bytes(content)
            return ctypes.CDLL(str(path))  # stays loaded when the file is gone
    except subprocess.CalledProcessError as error:
        return f"{shlex.join(error.cmd)} failed: {' '.join(error.stderr.split())[:500]}"
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        return f"the C kernel could not be compiled or loaded: {error}"


def _compiled(command: list[str]) -> bytes:
    """Return the compiled library, cached behind its checksum, because a truncated one would kill the process."""
    facts = "\n".join([SOURCE.read_text(), *command, platform.machine(), sys.platform])
    name = f"contrast-{hashlib.sha256(facts.encode()).hexdigest()[:24]}"
    kept = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "afdcd_hf" / name
    if kept.is_file():
        checksum, library = kept.read_bytes()[:32], kept.read_bytes()[32:]
        if checksum == hashlib.sha256(library).digest():
            return library
        logger.info("%s is damaged: compiling the contrast again", kept)
    with tempfile.TemporaryDirectory() as folder:
        command = [*command, str(SOURCE), "-o", f"{folder}/contrast.so", "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=300)
        ctypes.CDLL(f"{folder}/contrast.so")  # cache only what can be loaded
        library = Path(folder, "contrast.so").read_bytes()
    try:
        with atomic_write(kept) as part:
            part.write_bytes(hashlib.sha256(library).digest() + library)
    except OSError as error:
        logger.info("the compiled contrast is not cached for other processes: %s", error)
    return library
