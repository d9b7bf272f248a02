"""Benchmark contrast, distillation step and mean IoU against a plain eager version of the released computation.

    python scripts/benchmark.py                                     # everything: about 8 minutes on two cores
    python scripts/benchmark.py --only contrast --threads 1 --repeats 3 --output contrast.json

Both versions run alternately in one process on the same inputs, and medians are reported. Before timing, each runs
once, and the benchmark stops if their results differ. Prints a Markdown table and writes it as JSON too. Seconds are
CPU time, which other programs affect least, or wall-clock time on a GPU. There the batch size is 16, and our step runs
in bfloat16 with torch.compile unless `--dtype fp32` is given. `--small` uses small shapes for a quick test.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import numpy as np
import torch
from measuring import OURS, RELEASED, check_equal, commit, compare, largest_difference, matmul_rate
from released import released_contrast
from step_case import DTYPES, SEED, step_cases
from torch import Tensor

from afdcd_hf.atomic_io import atomic_write
from afdcd_hf.cost.machine import device_name, library_versions
from afdcd_hf.metrics import StreamingMeanIoU
from afdcd_hf.ops import omni_contrast

CONTRASTS = {  # maps after pooling
    "maps (B, 2048, 64, 128) pooled by 4": (2048, 16, 32),
    "maps (B, 2048, 45, 45), no pooling": (2048, 45, 45),
    "maps (B, 256, 64, 128) pooled by 4": (256, 16, 32),
}
SMALL_CONTRASTS = {"maps (B, 64, 9, 8)": (64, 9, 8)}
TOLERANCES = {"fp32": 1e-4, "bf16": 3e-2}  # relative to the norm of the released result


def contrast_cases(args: argparse.Namespace) -> Iterator[dict]:
    """Yield the three shapes, then the first again with maps so similar that every pair has some weight."""
    backend = "triton" if args.device.type == "cuda" else "native"
    shapes = SMALL_CONTRASTS if args.small else CONTRASTS
    cases = [(name, shape, 1.0) for name, shape in shapes.items()]
    cases.append((f"{cases[0][0]}, flat softmax", cases[0][1], 1e-3))
    for name, shape, scale in cases:
        label = f"contrast, {name.replace('B', str(args.batch), 1)}, {backend}"
        yield compared(label, *contrast_calls((args.batch, *shape), scale, backend, args), args, TOLERANCES[args.dtype])


def contrast_calls(
    shape: tuple[int, ...], scale: float, backend: str, args: argparse.Namespace
) -> tuple[Callable, Callable]:
    torch.manual_seed(SEED)
    student, teacher = (scale * torch.randn(2, *shape, device=args.device)).to(DTYPES[args.dtype])
    student.requires_grad_()
    exact = student.detach().float().requires_grad_(), teacher.float()  # the released code uses float32

    def ours() -> list[Tensor]:
        loss = omni_contrast(student, teacher, backend=backend)
        return [loss.detach(), *torch.autograd.grad(loss, student)]

    def released() -> list[Tensor]:
        loss = released_contrast(*exact)
        return [loss.detach(), *torch.autograd.grad(loss, exact[0])]

    return ours, released


def metric_cases(args: argparse.Namespace) -> Iterator[dict]:
    """Yield maps of Cityscapes' size; the reference counts them as the released evaluation does."""
    classes, size = 19, (96, 192) if args.small else (1024, 2048)
    random = np.random.default_rng(SEED)
    predicted, truth = random.integers(0, classes, (2, 4, *size)).astype(np.uint8)
    truth[random.random(truth.shape) < 0.1] = 255  # ignored

    def ours() -> list[Tensor]:
        metric = StreamingMeanIoU(classes, ignore_index=255)
        for pair in zip(predicted, truth, strict=True):
            metric.update(*pair)
        return [torch.tensor(metric.compute()["mean_iou"], dtype=torch.float64)]

    def released() -> list[Tensor]:
        counts = np.zeros(classes**2, np.int64)
        for prediction, label in zip(predicted, truth, strict=True):
            counted = label != 255
            counts += np.bincount(classes * label[counted].astype(int) + prediction[counted], minlength=classes**2)
        matrix = counts.reshape(classes, classes)
        hits = matrix.diagonal()
        return [torch.tensor(np.mean(hits / (matrix.sum(0) + matrix.sum(1) - hits)))]

    yield compared(f"mean IoU of four maps {size[0]}x{size[1]}, {classes} classes", ours, released, args, 1e-9)


def compared(name: str, ours: Callable, released: Callable, args: argparse.Namespace, tolerance: float) -> dict:
    difference = largest_difference(ours(), released())
    check_equal(name, difference, tolerance)
    measured = compare({OURS: ours, RELEASED: released}, args.repeats, args.device)
    return {"case": name, "difference": difference, **measured}


CASES = {"contrast": contrast_cases, "step": step_cases, "metric": metric_cases}


def table(results: dict) -> str:
    header = ["case", "released", "ours", "times faster", "extra memory, released", "ours", "share", "difference"]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return "\n".join(
        [
            f"| {' | '.join(header)} |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
            *(row(result) for result in results["cases"]),
            "",
            f"Medians of {results['repeats']} alternating runs, fastest to slowest in brackets, in seconds of "
            f"{results['seconds']}; {results['machine']}, {results['gflop_per_s']:.0f} GFLOP/s in a float32 matrix "
            f"product; {results['date']}, commit {results['commit']}, {versions}",
        ]
    )


def row(result: dict) -> str:
    ours, released = result[OURS], result[RELEASED]
    share = released["memory_mib"] / max(ours["memory_mib"], 0.1)
    cells = [
        result["case"],
        *(f"{way['seconds']:.3g} ({way['fastest']:.3g} to {way['slowest']:.3g})" for way in (released, ours)),
        f"**{released['seconds'] / ours['seconds']:.2f}**",
        *(f"{way['memory_mib']:.0f} MiB" for way in (released, ours)),
        f"1/{share:.1f}",
        f"{result['difference']:.0e}",
    ]
    return f"| {' | '.join(cells)} |"


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--device", type=torch.device, help="cpu or cuda (default: cuda if available)")
    parser.add_argument("--threads", type=int, help="PyTorch's threads on the CPU (default: its own choice)")
    parser.add_argument("--dtype", choices=list(DTYPES), help="of maps and step (default: fp32; on a GPU bf16 steps)")
    parser.add_argument("--batch", type=int, help="batch size (default: 2; on a GPU 16)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each version, after the warm-up")
    parser.add_argument("--small", action="store_true", help="small shapes, for testing rather than timing")
    parser.add_argument("--output", type=Path, help="JSON file; the table is written beside it as .md")
    args = parser.parse_args(arguments)
    for name in ("repeats", "threads", "batch"):
        given = getattr(args, name)
        if given is not None and given < 1:
            parser.error(f"--{name} {given}: must be at least 1.")
    for path in [] if args.output is None else [args.output, args.output.with_suffix(".md")]:
        if path.exists():
            parser.error(f"{path} exists; give another --output.")
    if args.device is not None and args.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU here; leave out --device to use the CPU.")
    args.device = args.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = args.device.type == "cuda"
    args.batch = args.batch or (16 if on_gpu else 2)
    args.step_dtype = args.dtype or ("bf16" if on_gpu else "fp32")
    args.compile_step = on_gpu and args.step_dtype == "bf16"
    args.dtype = args.dtype or "fp32"
    return args


def measured(args: argparse.Namespace) -> dict:
    """Measure the selected cases, and add machine, versions and date."""
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "versions": library_versions(),
        "machine": device_name(args.device),
        "seconds": "wall-clock time" if args.device.type == "cuda" else "CPU time",
        "gflop_per_s": matmul_rate(args.device),
        "repeats": args.repeats,
        "cases": [case for name in args.only for case in CASES[name](args)],
    }


def main() -> None:
    args = parsed()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    results = measured(args)
    print(table(results))
    if args.output is not None:
        with atomic_write(args.output) as part:
            part.write_text(f"{json.dumps(results, indent=2)}\n", encoding="utf-8")
        with atomic_write(args.output.with_suffix(".md")) as part:
            part.write_text(f"{table(results)}\n", encoding="utf-8")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Stopped; nothing was written.")
