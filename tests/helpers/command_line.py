"""Running the command line inside a test."""

from __future__ import annotations

from pathlib import Path

from tiny import saved, segmenter

from afdcd_hf.cli import main
from afdcd_hf.data.benchmarks import BENCHMARKS


def answer(capsys, *argv: str) -> str:
    """Run a command that must exit with status 2 and no traceback; return its line on standard error."""
    capsys.readouterr()
    status = main(list(argv))
    lines = capsys.readouterr().err.splitlines()
    assert status == 2 and not any(line.startswith("Traceback") for line in lines)
    (mine,) = [line for line in lines if line.startswith(f"afdcd {argv[0]}")]
    return mine


def saved_model(folder: Path, dataset: str) -> Path:
    benchmark = BENCHMARKS[dataset]
    names = dict(enumerate(benchmark.classes))
    label2id = {name: index for index, name in names.items()}
    return saved(folder, segmenter(id2label=names, label2id=label2id, num_labels=len(names)))
