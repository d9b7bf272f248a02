"""`afdcd quickstart`: the whole idea in a few minutes, on generated street scenes, without a GPU or a download.

A teacher, the student alone and the student with Af-DCD are trained, the latter two on the same budget and seed, and
all three are scored from their saved folders.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..charts import load_history, plot_training_curves
from ..hub.card_facts import FACTS_NAME, CardFacts, ComparisonRow, Picture, read_facts, write_facts
from ..hub.model_card import write_card
from ..inference.predictions import draw_predictions
from .runs import distill, train

TITLES = {"teacher": "teacher", "student-alone": "student alone", "distilled": "distilled (Af-DCD)"}


def quickstart(output_dir: str | Path, seed: int = 0) -> Path:
    """Train the three models, print the table, and write card, pictures and curves into the distilled one's folder.

    A second call with the same folder continues where the first was stopped, and trains nothing that is finished. The
    scenes are the same with each seed. Returns the distilled student's folder; FileExistsError where `output_dir` holds
    other files than those of a quickstart with this seed.
    """
    start = time.perf_counter()
    folder = Path(output_dir)
    _check_folder(folder, seed)
    cards: dict[str, Any] = {}
    for number, (name, title) in enumerate(TITLES.items(), 1):
        print(f"\n[{number}/3] {title} -> {folder / name}", flush=True)
        cards[name] = _finished(folder / name) or _trained(name, folder, seed)
    scores = {name: card.measured.mean_iou for name, card in cards.items()}
    rows = [ComparisonRow(TITLES[name], card.num_parameters, card.macs, scores[name]) for name, card in cards.items()]
    best = folder / "distilled"
    curves = {title: load_history(folder / name) for name, title in TITLES.items()}
    plot_training_curves(curves, best / "training_curves.png", title="scenes val")
    models = {title: folder / name for name, title in TITLES.items()}
    notes = {TITLES[name]: f"mIoU {100 * score:.1f} %" for name, score in scores.items()}
    draw_predictions(models, best / "predictions.png", dataset="scenes", notes=notes)
    pictures = [
        Picture("predictions.png", "Scenes that none of the models was trained on."),
        Picture("training_curves.png", "Mean IoU and loss terms of the three runs."),
    ]
    facts = replace(cards["distilled"], comparison=rows, pictures=pictures)
    write_facts(best, facts)
    write_card(best, facts)
    print(f"\n{'model':<22}{'params':>10}{'GMACs':>8}{'mIoU %':>9}{'gain':>8}")
    for name, card in cards.items():
        gain = "" if name == "student-alone" else f"{100 * (scores[name] - scores['student-alone']):+.2f}"
        figures = f"{card.num_parameters / 1e6:>8.2f} M{card.macs / 1e9:>8.2f}{100 * scores[name]:>9.2f}"
        print(f"{TITLES[name]:<22}{figures}{gain:>8}")
    print(f"\n{time.perf_counter() - start:.0f} s in all. The distilled student is in {best}:")
    print("  README.md (model card), predictions.png, training_curves.png, results.json, card_facts.json, weights.")
    return best


def _check_folder(folder: Path, seed: int) -> None:
    """Only what an earlier call with this seed has left may be there."""
    others = [path for path in folder.iterdir() if path.name not in TITLES] if folder.is_dir() else []
    if others:
        raise FileExistsError(f"{folder} holds other files, such as {others[0].name}; give another --output_dir.")
    for card in filter(None, (_finished(folder / name) for name in TITLES)):
        if card.training.seed != seed:
            raise FileExistsError(
                f"{folder} holds a quickstart with another seed than {seed}; give that seed, or another --output_dir."
            )


def _finished(folder: Path) -> CardFacts | None:
    """The facts of a run that went to its end; they are written last."""
    return read_facts(folder) if (folder / FACTS_NAME).is_file() else None


def _trained(name: str, folder: Path, seed: int) -> CardFacts | None:
    """Train one of the three, or continue from its last checkpoint."""
    argv = ["--output_dir", str(folder / name), "--seed", str(seed)]
    if any((folder / name).glob("checkpoint-*")):
        argv += ["--resume_from_checkpoint", "last"]
    if name == "distilled":
        return distill("quickstart", [*argv, "--teacher", str(folder / "teacher")]).card
    return train("quickstart_teacher" if name == "teacher" else "quickstart", argv).card
