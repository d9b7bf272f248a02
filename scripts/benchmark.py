"""Contrast, projector and whole distillation step: ours beside a plain eager version of the released computation.

    python scripts/benchmark.py                                     # everything, 2 threads on a CPU: some 8 minutes
    python scripts/benchmark.py --only contrast --threads 1 --repeats 3 --output contrast.json

One run, the same inputs, taking turns, medians; before anything is timed both ways run once, and the benchmark stops
where their results differ. Prints a table in Markdown and writes the same as JSON. On a GPU the batch is 16, and the
whole step of ours runs in bfloat16 through torch.compile; `--dtype fp32` keeps it in float32. `--small` takes small
shapes, to see that everything works.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from pathlib import Path

import torch
from measuring import DTYPES, MASK_RATIO, OURS, RELEASED, SEED, check_equal, commit, compare, largest_difference, rates
from released_contrast import released_contrast
from released_step import released_restore, whole_patches
from step_case import step_cases
from torch import Tensor, nn

from afdcd_hf.atomic_io import written_whole
from afdcd_hf.evaluation.results import library_versions
from afdcd_hf.losses.masks import random_mask
from afdcd_hf.losses.projectors import plain_projector, restore
from afdcd_hf.ops import omni_contrast

CONTRASTS = {  # maps after pooling
    "maps (B, 2048, 64, 128) pooled by 4": (2048, 16, 32),
    "maps (B, 2048, 45, 45), no pooling": (2048, 45, 45),
    "maps (B, 256, 64, 128) pooled by 4": (256, 16, 32),
}
SMALL_CONTRASTS = {"maps (B, 64, 9, 8)": (64, 9, 8)}
# relative to the norm of the released result
TOLERANCES = {"fp32": 1e-4, "bf16": 3e-2}
# A sum that rounding moves across zero opens or shuts a ReLU: one unit in ten million is 3e-4 of the gradients' norm.
GRADIENT_TOLERANCES = {"fp32": 1e-3, "bf16": 1e-1}


# Contrast and projector


def contrast_cases(args: argparse.Namespace) -> Iterator[dict]:
    """The three shapes; then the first again with maps so alike that every pair weighs something."""
    backends = ["triton" if args.device.type == "cuda" else "native"]
    shapes = SMALL_CONTRASTS if args.small else CONTRASTS
    cases = [(name, shape, 1.0) for name, shape in shapes.items()]
    cases.append((f"{cases[0][0]}, flat softmax", cases[0][1], 1e-3))
    for name, shape, scale in cases:
        for backend in backends:
            label = f"contrast, {name.replace('B', str(args.batch), 1)}, {backend}"
            yield compared(label, *contrast_calls((args.batch, *shape), scale, backend, args), args)


def contrast_calls(
    shape: tuple[int, ...], scale: float, backend: str, args: argparse.Namespace
) -> tuple[Callable, Callable]:
    torch.manual_seed(SEED)
    maps = scale * torch.randn(2, *shape, device=args.device)
    student, teacher = maps.to(DTYPES[args.dtype])
    student.requires_grad_()
    exact = student.detach().float().requires_grad_(), teacher.float()  # the released code is float32

    def ours() -> list[Tensor]:
        loss = omni_contrast(student, teacher, backend=backend)
        return [loss.detach(), *torch.autograd.grad(loss, student)]

    def released() -> list[Tensor]:
        loss = released_contrast(*(whole_patches(each) for each in exact))
        return [loss.detach(), *torch.autograd.grad(loss, exact[0])]

    return ours, released


def projector_cases(args: argparse.Namespace) -> Iterator[dict]:
    """Align from 512 channels, random mask and plain projector at 45×45."""
    torch.manual_seed(SEED)
    narrow, wide, side = (16, 64, 9) if args.small else (512, 2048, 45)
    align, projector = nn.Conv2d(narrow, wide, 1).to(args.device), plain_projector(wide).to(args.device)
    student_map = torch.randn(args.batch, narrow, side, side, device=args.device, requires_grad=True)
    mask = random_mask(student_map.detach(), MASK_RATIO)
    gradient = torch.randn(args.batch, wide, side, side, device=args.device)
    wanted = [student_map, *align.parameters(), *projector.parameters()]

    def run(way: Callable) -> list[Tensor]:
        restored = way(student_map, mask, align, projector)
        return [restored.detach(), *torch.autograd.grad(restored, wanted, gradient)]

    name = f"plain projector, random mask, ({args.batch}, {narrow} to {wide}, {side}, {side})"
    ways = partial(run, restore), partial(run, released_restore)
    check_equal(f"{name}, forward", largest_difference(*(way()[:1] for way in ways)), TOLERANCES[args.dtype])
    yield compared(name, *ways, args, GRADIENT_TOLERANCES)


def compared(
    name: str, ours: Callable, released: Callable, args: argparse.Namespace, tolerances: dict[str, float] = TOLERANCES
) -> dict:
    difference = largest_difference(ours(), released())
    check_equal(name, difference, tolerances[args.dtype])
    measured = compare({OURS: ours, RELEASED: released}, args.repeats, args.device)
    return {"case": name, "difference": difference, **measured}


# Report


CASES = {"contrast": contrast_cases, "projector": projector_cases, "step": step_cases}


def table(results: dict) -> str:
    facts = results["machine"]
    header = ["case", "released", "ours", "times faster", "extra memory, released", "ours", "share", "difference"]
    return "\n".join(
        [
            f"| {' | '.join(header)} |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
            *(row(result) for result in results["cases"]),
            "",
            f"Medians of {results['repeats']} runs that take turns, fastest to slowest in brackets; {facts['name']}, "
            f"{facts['threads']} threads, {facts['gflop_per_s']:.0f} GFLOP/s in a matrix product and "
            f"{facts['gbyte_per_s']:.1f} GB/s in a copy (float32, measured at the start); {results['date']}, commit "
            f"{results['commit']}, {', '.join(f'{name} {number}' for name, number in results['versions'].items())}",
        ]
    )


def row(result: dict) -> str:
    ours, released = result[OURS], result[RELEASED]
    share = released["memory_mib"] / max(ours["memory_mib"], 0.1)
    cells = [
        result["case"],
        *(f"{way['seconds']:.3g} s ({way['fastest']:.3g} to {way['slowest']:.3g})" for way in (released, ours)),
        f"**{released['seconds'] / ours['seconds']:.2f}**",
        *(f"{way['memory_mib']:.0f} MiB" for way in (released, ours)),
        f"1/{share:.1f}",
        f"{result['difference']:.0e}",
    ]
    return f"| {' | '.join(cells)} |"


def machine(device: torch.device) -> dict:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else "unknown processor"
    return {"name": name, "threads": torch.get_num_threads(), **rates(device)}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--device", type=torch.device, help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU (default: its own choice)")
    parser.add_argument("--dtype", choices=list(DTYPES), help="of maps and step (default: fp32; on a GPU bf16 steps)")
    parser.add_argument("--batch", type=int, help="images (default: 2; on a GPU 16)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each way, beside the warm-up")
    parser.add_argument("--small", action="store_true", help="small shapes, which say nothing about speed")
    parser.add_argument("--output", type=Path, help="JSON file, with the table beside it as .md")
    args = parser.parse_args()
    for name in ("repeats", "threads", "batch"):
        given = getattr(args, name)
        if given is not None and given < 1:
            parser.error(f"--{name} {given}: must be at least 1.")
    for path in [] if args.output is None else [args.output, args.output.with_suffix(".md")]:
        if path.exists():
            parser.error(f"{path} exists; give another --output.")
    if args.device is not None and args.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU here; leave it out for the CPU.")
    args.device = args.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = args.device.type == "cuda"
    args.batch = args.batch or (16 if on_gpu else 2)
    args.step_dtype = args.dtype or ("bf16" if on_gpu else "fp32")
    args.compile_step = on_gpu
    args.dtype = args.dtype or "fp32"
    return args


def main() -> None:
    args = parsed()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    results = {
        "date": date.today().isoformat(),
        "commit": commit(),
        "versions": library_versions(),
        "machine": machine(args.device),
        "repeats": args.repeats,
        "cases": [case for name in args.only for case in CASES[name](args)],
    }
    print(table(results))
    if args.output is not None:
        with written_whole(args.output) as part:
            part.write_text(f"{json.dumps(results, indent=2)}\n", encoding="utf-8")
        with written_whole(args.output.with_suffix(".md")) as part:
            part.write_text(f"{table(results)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
