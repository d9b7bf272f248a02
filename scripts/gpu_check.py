"""Check this package on a GPU machine in under 8 minutes; writes a JSON file and a page of Markdown.

    python scripts/gpu_check.py --output runs/gpu-check.json      # or: make gpu-check
    python scripts/gpu_check.py --rehearse                        # small, on a CPU, to check that everything runs

Parts: the machine and its matrix products; the tests marked "gpu"; the contrast's kernels against the reference; the
benchmark of contrast and step in float32, TF32, bfloat16 and bfloat16 with torch.compile; a training of 200 steps in
bfloat16 on all GPUs. A part that fails or runs out of time is reported with its error, and the others continue.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import date
from pathlib import Path

import benchmark
import torch
from measuring import commit, largest_difference, matmul_rate

from afdcd_hf.atomic_io import atomic_write
from afdcd_hf.cost.machine import device_name, library_versions, versions
from afdcd_hf.ops import omni_contrast

ROOT = Path(__file__).parent.parent
SECONDS = 470  # for all parts together
STEPS = 200
DIFFERENCES = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # relative to the gradient's norm


class Check:
    """Runs parts and stores their results; each part gets the remaining time."""

    def __init__(self, device: torch.device, rehearse: bool) -> None:
        self.device, self.rehearse, self.started = device, rehearse, time.monotonic()
        self.parts: dict[str, dict] = {}
        signal.signal(signal.SIGALRM, _out_of_time)

    @property
    def left(self) -> float:
        return SECONDS - (time.monotonic() - self.started)

    def run(self, name: str, part: Callable[[Check], object]) -> None:
        start = time.monotonic()
        try:
            signal.alarm(max(1, int(self.left)))
            outcome = {"ok": True, "result": part(self)}
        except Exception as error:  # any failure belongs in the report, with its traceback
            outcome = {"ok": False, "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        finally:
            signal.alarm(0)
        self.parts[name] = {**outcome, "seconds": round(time.monotonic() - start, 1)}
        print(f"{name}: {'ok' if outcome['ok'] else outcome['error']}", file=sys.stderr, flush=True)

    def command(self, *arguments: str, **environment: str) -> str:
        """Run a Python command and return its output."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environment},
            capture_output=True,
            text=True,
            timeout=self.left,
        )
        if done.returncode:
            printed = f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
            raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {printed}")
        return done.stdout


def _out_of_time(*_: object) -> None:
    raise TimeoutError(f"no time left of {SECONDS} s")


def machine(check: Check) -> dict:
    """Report names, versions, and TFLOP/s of matrix products."""
    size = 512 if check.rehearse else 8192
    rates = {"fp32": matmul_rate(check.device, size=size)}
    if check.device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        rates["tf32"] = matmul_rate(check.device, size=size)
        torch.backends.cuda.matmul.allow_tf32 = False
    rates["bf16"] = matmul_rate(check.device, torch.bfloat16, size)
    return {
        "device": device_name(check.device),
        "gpus": torch.cuda.device_count(),
        "versions": versions(check.device),
        "tflop_per_s": {name: round(rate / 1000, 2) for name, rate in rates.items()},
    }


def tests(check: Check) -> str:
    """Run the tests that need a GPU and return pytest's last line; in a rehearsal, a few tests of one file."""
    chosen = ["tests/ops/test_backends.py", "-k", "strides"] if check.rehearse else ["tests", "-m", "gpu"]
    return check.command("-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen).strip().splitlines()[-1]


def kernels(check: Check) -> dict[str, float]:
    """Return the largest difference of value and gradient from the reference, relative to their norms."""
    backend = "triton" if check.device.type == "cuda" else "native"
    found = {}
    for dtype, distance, negatives in itertools.product(DIFFERENCES, ("l1", "l2"), ("other_groups", "all")):
        torch.manual_seed(0)
        maps = torch.randn(2, 2, 64 if check.rehearse else 512, 16, 24, device=check.device).to(dtype)
        results = []
        for name, (student, teacher) in ((backend, maps), ("reference", maps.float())):
            student = student.detach().requires_grad_()
            options = {"distance": distance, "negatives": negatives, "temperature": 0.5, "backend": name}
            loss = omni_contrast(student, teacher, **options)
            results.append([loss.detach(), *torch.autograd.grad(loss, student)])
        case = f"{str(dtype).removeprefix('torch.')}, {distance}, {negatives}"
        found[case] = largest_difference(*results)
        if not found[case] <= DIFFERENCES[dtype]:
            raise AssertionError(f"{backend} differs from the reference by {found[case]:.1e} ({case})")
    return found


def benchmarks(*options: str, tf32: bool = False, compiled: bool | None = None) -> Callable[[Check], dict]:
    """Create a part that runs the benchmark with these arguments."""

    def part(check: Check) -> dict:
        small = ["--small", "--device", "cpu"] if check.rehearse else []
        args = benchmark.parsed([*options, "--repeats", "1" if check.rehearse else "3", *small])
        args.compile_step = args.compile_step if compiled is None else compiled and check.device.type == "cuda"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        try:
            results = benchmark.measured(args)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        return {**results, "table": benchmark.table(results)}

    return part


def training(check: Check) -> dict:
    """Train the quickstart's teacher in bfloat16 on all GPUs."""
    steps = 2 if check.rehearse else STEPS
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["scripts/train.py", "--config", "quickstart_teacher", "--bf16", "true", "--max_steps", str(steps)]
        arguments += ["--warmup_steps", "0"]
        arguments += ["--output_dir", f"{folder}/run", "--eval_strategy", "no", "--save_strategy", "no"]
        arguments += ["--logging_steps", str(max(1, steps // 4))]
        if check.device.type == "cuda":
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(torch.cuda.device_count())]
            arguments = [*launch, *arguments, "--use_cpu", "false"]
        started = time.monotonic()
        check.command(*arguments)
        files = sorted(path.name for path in Path(folder, "run").iterdir())
    return {"steps": steps, "seconds": round(time.monotonic() - started, 1), "files": files}


PARTS: dict[str, Callable[[Check], object]] = {
    "machine": machine,
    "kernels against the reference": kernels,
    "tests": tests,
    "contrast, float32": benchmarks("--only", "contrast"),
    "contrast, bfloat16": benchmarks("--only", "contrast", "--dtype", "bf16"),
    "training": training,
    "step, float32": benchmarks("--only", "step", "--dtype", "fp32"),
    "step, TF32": benchmarks("--only", "step", "--dtype", "fp32", tf32=True),
    "step, bfloat16": benchmarks("--only", "step", "--dtype", "bf16", compiled=False),
    "step, bfloat16, compiled": benchmarks("--only", "step", "--dtype", "bf16", compiled=True),
}


def page(report: dict) -> str:
    """Format the report as Markdown."""
    lines = [f"# GPU check, {report['date']}, commit {report['commit']}", ""]
    failed = [name for name, part in report["parts"].items() if not part["ok"]]
    lines.append(f"{len(report['parts']) - len(failed)} of {len(report['parts'])} parts passed.")
    for name, part in report["parts"].items():
        lines += ["", f"## {name} ({part['seconds']} s)", ""]
        if not part["ok"]:
            lines += [f"**Failed.** {part['error'].splitlines()[0]}", "", "```", part["traceback"].strip(), "```"]
        elif isinstance(part["result"], dict):
            lines += [part["result"]["table"]] if "table" in part["result"] else _rows(part["result"])
        else:
            lines.append(str(part["result"]))
    return "\n".join(lines) + "\n"


def _rows(facts: dict) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="small, on the CPU")
    parser.add_argument("--output", type=Path, help="JSON file; the page is written beside it as .md")
    args = parser.parse_args()
    for path in [] if args.output is None else [args.output, args.output.with_suffix(".md")]:
        if path.exists():
            parser.error(f"{path} exists; give another --output.")
    if not args.rehearse and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here; --rehearse runs the same on the CPU.")
    check = Check(torch.device("cpu" if args.rehearse else "cuda"), args.rehearse)
    for name, part in PARTS.items():
        check.run(name, part)
    facts = {"date": date.today().isoformat(), "commit": commit(), "versions": library_versions()}
    report = {**facts, "rehearsed": args.rehearse, "parts": check.parts}
    print(page(report))
    if args.output is not None:
        with atomic_write(args.output) as whole:
            whole.write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")
        with atomic_write(args.output.with_suffix(".md")) as whole:
            whole.write_text(page(report), encoding="utf-8")
    return 0 if all(part["ok"] for part in check.parts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
