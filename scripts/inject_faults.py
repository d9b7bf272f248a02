"""Break trainings in ten ways, resume them, and print a table of what happened and whether anything was lost.

    python scripts/inject_faults.py [--seed 0] [--output table.md]

Tiny models train on a few generated images in a temporary folder. Every run is `afdcd distill` in a separate process,
usually forked from this one, which has imported everything. Takes a few minutes on two CPU cores. Resumed runs are
compared with an uninterrupted one: a hash over all weights of student and loss, and the log.
The faults with a full disk and a read-only folder need permission to mount a tmpfs (root); otherwise their rows say so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers.trainer  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

import afdcd_hf.training.runs  # noqa: E402, F401  (imported once, for all forked runs)
from afdcd_hf import AfDcdForSemanticSegmentation, AfDcdImageProcessor  # noqa: E402
from afdcd_hf.cli import main as afdcd  # noqa: E402
from afdcd_hf.data.loading import class_names  # noqa: E402
from afdcd_hf.training.checkpoints import last_complete_checkpoint  # noqa: E402

STEPS, SAVE_STEPS = 20, 3
TIMEOUT = 120
FAULTS = (
    "sigkill", "sigterm", "full_disk", "read_only", "file_as_folder", "corrupted", "one_of_two", "not_a_number",
    "corrupt_image", "teacher_incomplete",
)  # fmt: skip
SMALL = {"channels": [8, 16, 16, 32], "layers": [1, 1, 1, 1]}


class Announcer(TrainerCallback):
    """Writes the current step to a file, so that it can be interrupted."""

    path: Path

    def on_step_begin(self, args, state, control, **kwargs):
        with self.path.open("a") as file:
            file.write(f"{os.getpid()} {args.process_index} {state.global_step}\n")


def run_here(home: Path, folder: Path, options: list[str]) -> None:
    """Run a training in this process; its steps are written to a file in `home`."""
    torch.set_num_threads(1)
    Announcer.path = home / f"{folder.name}.steps"
    transformers.trainer.DEFAULT_CALLBACKS.append(Announcer)
    sys.exit(afdcd(["distill", "--config", str(home / "recipe.yaml"), "--output_dir", str(folder), *options]))


class Run:
    """A started run: in a forked process, or in several under torchrun.

    Its log and its steps are written to `home`, which is not affected by what happens to `folder`.
    """

    def __init__(self, home: Path, folder: Path, *options: str, processes: int = 1):
        self.home, self.folder = home, folder
        self.log, self.steps = home / f"{folder.name}.log", home / f"{folder.name}.steps"
        self.steps.write_text("")
        if processes == 1:
            self.process = multiprocessing.get_context("fork").Process(target=self._forked, args=(list(options),))
            self.process.start()
            self.wait = lambda: (self.process.join(TIMEOUT), self.process.exitcode)[1]
        else:
            with self.log.open("w") as log:
                command = [*_torchrun(processes), __file__, "as-rank", str(home), str(folder), *options]
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            self.wait = lambda: self.process.wait(TIMEOUT)

    def _forked(self, options: list[str]) -> None:
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        run_here(self.home, self.folder, options)

    def at(self, step: int, rank: int = 0) -> int:
        """Wait until a step has begun, and return the process id of that rank."""
        for _ in range(TIMEOUT * 100):
            lines = [line.split() for line in self.steps.read_text().splitlines()]
            found = [int(pid) for pid, *rest in lines if int(rest[0]) == rank and int(rest[1]) >= step]
            if found:
                return found[-1]
            if _has_ended(self.process):
                break
            time.sleep(0.01)
        raise SystemExit(f"step {step} was never reached:\n{self.log.read_text()[-3000:]}")

    def message(self) -> str:
        """Return the command's last message."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("afdcd distill: ")]
        return lines[-1].removeprefix("afdcd distill: ") if lines else "(none)"

    def warnings(self) -> str:
        """Return the warnings about checkpoints."""
        return " ".join(re.findall(r"^warning: (.*checkpoint-.*)$", self.log.read_text(), flags=re.MULTILINE))


class Faults:
    """The faults; each method returns what happened, whether anything was lost, and the message."""

    def __init__(self, home: Path, seed: int):
        self.home, self.draw = home, random.Random(seed)
        prepare(home)
        self.whole = self.finished(self.run("whole"))

    def run(self, folder: str | Path, *options: str, **kwargs) -> Run:
        """Start a run in a folder of that name."""
        return Run(self.home, self.home / folder, *options, **kwargs)

    def finished(self, run: Run) -> dict:
        """Return the outcome of a run that must succeed."""
        status = run.wait()
        if status != 0:
            raise SystemExit(f"a run that should succeed ended with {status}:\n{run.log.read_text()[-3000:]}")
        return outcome(run.folder)

    def resume(self, folder: Path, whole: dict | None = None, **kwargs) -> str:
        """Resume to the end, and say whether the outcome is that of the uninterrupted run."""
        same = self.finished(self.run(folder, "--resume_from_checkpoint", "last", **kwargs)) == (whole or self.whole)
        return "no: resumed, same weights and log bit for bit" if same else "**YES: the resumed run differs**"

    def sigkill(self) -> tuple[str, str, str]:
        """SIGKILL at 5 random steps of one run"""
        folder, options, origins = self.home / "killed", (), []
        steps = sorted(self.draw.sample(range(SAVE_STEPS + 1, STEPS - 1), 5))
        for step in steps:
            run = self.run(folder, *options)
            run.at(step)
            time.sleep(self.draw.uniform(0, 0.1))
            os.kill(run.process.pid, signal.SIGKILL)
            status = run.wait()
            origins.append(max(_numbers(folder)))
            options = ("--resume_from_checkpoint", "last")
        what = f"killed in or after steps {_listed(steps)} (status {status}); checkpoints found {_listed(origins)}"
        return what, self.resume(folder), "(a killed process prints nothing)"

    def sigterm(self) -> tuple[str, str, str]:
        """SIGTERM (pre-emption)"""
        run = self.run("terminated")
        os.kill(run.at(step := self.draw.randrange(1, STEPS - 2)), signal.SIGTERM)
        status = run.wait()
        what = f"signalled in step {step + 1}; newest checkpoint {max(_numbers(run.folder))}; exit status {status}"
        message = run.message()
        return what, self.resume(run.folder), message

    def full_disk(self) -> tuple[str, str, str]:
        """full disk (tmpfs filled up during the run)"""
        with mounted(self.home / "small", "size=64m") as place:
            run = self.run(place / "run")
            run.at(SAVE_STEPS + 1)
            ballast = place / "ballast"
            subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=64k"], stderr=subprocess.DEVNULL, check=False)
            status, message = run.wait(), run.message()
            kept, leftovers = _numbers(run.folder), [path.name for path in run.folder.glob("_*")]
            ballast.unlink()
            what = (
                f"stopped, status {status}; checkpoints: {_listed(kept)}; leftovers: {leftovers or 'none'}; space freed"
            )
            return what, self.resume(run.folder), message

    def read_only(self) -> tuple[str, str, str]:
        """read-only output folder"""
        with mounted(self.home / "fixed", "size=1m") as place:
            subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
            run = self.run(place / "fixed-run")
            return f"refused before the first step, status {run.wait()}", "no: nothing started", run.message()

    def file_as_folder(self) -> tuple[str, str, str]:
        """a file where the output folder should be"""
        path = self.home / "notes"
        path.write_text("mine")
        run = self.run(path)
        what = f"refused before the first step, status {run.wait()}"
        return what, "no: the file is untouched" if path.read_text() == "mine" else "**YES**", run.message()

    def corrupted(self) -> tuple[str, str, str]:
        """newest checkpoint corrupted (one bit of its weights)"""
        folder = self.home / "corrupted"
        shutil.copytree(self.home / "whole", folder)
        newest = max(_numbers(folder))
        with (folder / f"checkpoint-{newest}" / "model.safetensors").open("r+b") as file:
            file.seek(-5, os.SEEK_END)
            byte = file.read(1)[0]
            file.seek(-5, os.SEEK_END)
            file.write(bytes([byte ^ 1]))
        run = self.run(folder, "--resume_from_checkpoint", "last")
        same = self.finished(run) == self.whole
        lost = "no: same weights and log bit for bit" if same else "**YES: the resumed run differs**"
        return "the checkpoint before it is used", lost, run.warnings()

    def one_of_two(self) -> tuple[str, str, str]:
        """one of two ranks killed (torchrun, gloo)"""
        whole = self.finished(self.run("two", processes=2))
        run = self.run("one-of-two", processes=2)
        os.kill(run.at(step := self.draw.randrange(SAVE_STEPS + 1, STEPS - 2), rank=1), signal.SIGKILL)
        start, status = time.perf_counter(), run.wait()
        seconds = time.perf_counter() - start
        what = f"rank 1 killed in step {step + 1}: torchrun ended after {seconds:.0f} s, status {status}"
        said = re.findall(r"Signal \d+ \(SIGKILL\) received by PID", run.log.read_text())
        return what, self.resume(run.folder, whole, processes=2), f"torchrun: {said[0]} ..." if said else "(none)"

    def not_a_number(self) -> tuple[str, str, str]:
        """NaN loss (learning rate 1e30 from the start, a checkpoint at every step)"""
        run = self.run("nan", "--learning_rate", "1e30", "--save_steps", "1")
        what = f"stopped, status {run.wait()}; checkpoints: {_listed(_numbers(run.folder))}"
        checkpoint = last_complete_checkpoint(run.folder)
        finite = all(bool(t.isfinite().all()) for t in load_file(checkpoint / "model.safetensors").values())
        return what, "no: the last finite state is saved" if finite else "**YES**", run.message()

    def corrupt_image(self) -> tuple[str, str, str]:
        """an image truncated in the middle of an epoch"""
        run, image = self.run("image"), self.home / "data" / "train" / "picture07.png"
        run.at(SAVE_STEPS + 1)
        content = image.read_bytes()
        image.write_bytes(content[: len(content) // 2])
        status, message = run.wait(), run.message()
        image.write_bytes(content)
        what = f"stopped, status {status}; newest checkpoint {max(_numbers(run.folder))}; image restored, resumed"
        return what, self.resume(run.folder), message

    def teacher_incomplete(self) -> tuple[str, str, str]:
        """teacher folder without its weights"""
        teacher = self.home / "half-a-teacher"
        shutil.copytree(self.home / "teacher", teacher)
        (teacher / "model.safetensors").unlink()
        run = self.run("untaught", "--teacher", str(teacher))
        what = f"refused before the first step, status {run.wait()}"
        return what, "**YES**" if run.folder.exists() else "no: nothing started", run.message()


def prepare(home: Path) -> None:
    """Write images in CamVid's layout, a teacher, and a recipe."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4)):
        for kind in (split, f"{split}annot"):
            (home / "data" / kind).mkdir(parents=True)
        for index in range(count):
            label = np.kron(rng.integers(0, 11, (4, 6)), np.ones((12, 12))).astype(np.uint8)
            image = np.repeat((label * 20 + rng.integers(0, 20, label.shape))[..., None], 3, -1).astype(np.uint8)
            Image.fromarray(image).save(home / "data" / split / f"picture{index:02}.png")
            Image.fromarray(label).save(home / "data" / f"{split}annot" / f"picture{index:02}.png")
    torch.manual_seed(1)
    names = class_names("camvid")
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    wide = {**SMALL, "channels": [8, 16, 16, 48]}
    teacher = AfDcdForSemanticSegmentation.from_backbone(
        "resnet18", pretrained_backbone=False, backbone_kwargs=wide, head="fcn", head_channels=8, **labels
    )
    teacher.save_pretrained(home / "teacher")
    AfDcdImageProcessor().save_pretrained(home / "teacher")
    recipe = {
        "dataset": "camvid", "data_dir": str(home / "data"), "crop_size": [48, 72], "teacher": str(home / "teacher"),
        "backbone": "resnet18", "backbone_kwargs": SMALL, "pretrained_backbone": "false", "head": "fcn",
        "head_channels": 8, "loss": "kd+af_dcd", "af_dcd.reduction": "mean", "af_dcd.feature_weight": 0.5,
        "af_dcd.contrast_weight": 0.02, "af_dcd.pool_size": 1, "af_dcd.patch_size": 2, "af_dcd.channel_groups": 4,
        "total_batch_size": 4, "max_steps": STEPS, "learning_rate": 0.02, "logging_steps": 2, "eval_strategy": "steps",
        "eval_steps": 5, "save_strategy": "steps", "save_steps": SAVE_STEPS, "save_total_limit": 3, "report_to": "none",
        "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    (home / "recipe.yaml").write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in recipe.items()))


def outcome(folder: Path) -> dict:
    """Return what is compared of a finished run: a hash of the weights, and the log."""
    digest = hashlib.sha256()
    last = folder / f"checkpoint-{STEPS}"
    for path in (folder / "model.safetensors", last / "model.safetensors", last / "distillation.safetensors"):
        for name, tensor in sorted(load_file(path).items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    wanted = re.compile(r"loss\w*|learning_rate|grad_norm|eval_mean_iou|step")
    lines = [{key: value for key, value in line.items() if wanted.fullmatch(key)} for line in log]
    return {"weights": digest.hexdigest(), "log": [line for line in lines if "loss" in line or "eval_mean_iou" in line]}


@contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """Mount a small tmpfs."""
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(done.stderr.strip())
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=False)


def _torchrun(processes: int) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--nproc_per_node", str(processes), "--master_addr", "127.0.0.1", "--master_port", str(port)]
    return [sys.executable, "-m", "torch.distributed.run", *options]


def _has_ended(process) -> bool:
    return process.poll() is not None if isinstance(process, subprocess.Popen) else not process.is_alive()


def _numbers(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def _row(fault: Callable[[], tuple[str, str, str]], home: Path) -> str:
    name = (fault.__doc__ or "").strip()
    try:
        what, lost, message = fault()
    except PermissionError as error:
        what, lost, message = "not tried: no permission to mount a tmpfs", "", str(error)
    cells = [cell.replace(str(home), "TMP").replace("|", r"\|") for cell in (name, what, lost, message)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random steps")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=FAULTS, metavar="FAULT", help=", ".join(FAULTS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        faults = Faults(Path(folder), args.seed)
        lines = ["| fault | what happened | lost? | message |", "|---|---|---|---|"]
        print("\n".join(lines), flush=True)
        for name in args.only:
            lines.append(_row(getattr(faults, name), Path(folder)))
            print(lines[-1], flush=True)
    if args.output:
        args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["as-rank"]:  # one of the processes of torchrun
        run_here(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    main()
