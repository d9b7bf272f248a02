"""The quickstart: a teacher, a student alone and a distilled student on generated scenes, compared."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..charts import load_history, plot_training_curves
from ..hub.card_facts import CardFacts, ComparisonRow, Picture, write_facts
from ..hub.model_card import write_card
from ..inference.predictions import draw_predictions
from ..structured_files import read_json
from .checkpoints import ASIDE, SETTINGS_NAME, resumes_or_moves_aside
from .runs import distill, read_finished, train

TITLES = {"teacher": "teacher", "student-alone": "student alone", "distilled": "distilled (Af-DCD)"}


def quickstart(output_dir: str | Path, seed: int = 0) -> Path:
    """Train a teacher, a student alone and a student distilled with Af-DCD on generated scenes, in minutes.

    Prints a table, and writes card, images and curves into the distilled student's folder, which is returned. A
    second call with the same folder continues where the first stopped; a model that was stopped before its first
    checkpoint is trained again, and its folder is renamed. FileExistsError if `output_dir` holds other
    files than those of a quickstart with this seed.
    """
    start, folder = time.perf_counter(), Path(output_dir)
    _check_folder(folder, seed)
    cards: dict[str, Any] = {}
    for number, (name, title) in enumerate(TITLES.items(), 1):
        print(f"\n[{number}/3] {title} -> {folder / name}", flush=True)
        cards[name] = read_finished(folder / name) or _train_or_resume(name, folder, seed)
    scores = {name: card.measured.mean_iou for name, card in cards.items()}
    rows = [ComparisonRow(TITLES[name], card.num_parameters, card.macs, scores[name]) for name, card in cards.items()]
    best, models = folder / "distilled", {title: folder / name for name, title in TITLES.items()}
    curves = {title: load_history(model) for title, model in models.items()}
    plot_training_curves(curves, best / "training_curves.png", title="scenes val")
    notes = {TITLES[name]: f"mIoU {100 * score:.1f} %" for name, score in scores.items()}
    draw_predictions(models, best / "predictions.png", dataset="scenes", notes=notes)
    own = [
        Picture("predictions.png", "Scenes that none of the models was trained on."),
        Picture("training_curves.png", "Mean IoU and loss terms of the three runs."),
    ]
    added = [one for one in cards["distilled"].pictures if one.path not in {picture.path for picture in own}]
    facts = replace(cards["distilled"], comparison=rows, pictures=[*own, *added])
    write_card(best, facts)
    write_facts(best, facts)
    print(f"\n{'model':<22}{'params':>10}{'GMACs':>8}{'mIoU %':>9}{'gain':>8}")
    for name, card in cards.items():
        gain = "" if name == "student-alone" else f"{100 * (scores[name] - scores['student-alone']):+.2f}"
        figures = f"{card.num_parameters / 1e6:>8.2f} M{card.macs / 1e9:>8.2f}{100 * scores[name]:>9.2f}"
        print(f"{TITLES[name]:<22}{figures}{gain:>8}")
    print(f"\nDone in {time.perf_counter() - start:.0f} s. The distilled student is in {best}:")
    print("  README.md (model card), predictions.png, training_curves.png, results.json, card_facts.json, weights.")
    return best


def _check_folder(folder: Path, seed: int) -> None:
    """Raise FileExistsError unless the folder holds at most the files of an earlier call with this seed."""
    paths = folder.iterdir() if folder.is_dir() else []
    if others := [path.name for path in paths if path.name.partition(ASIDE)[0] not in TITLES]:
        raise FileExistsError(f"{folder} holds other files, such as {others[0]}; give another --output_dir.")
    runs = [folder / name for name in TITLES]
    saved = [path for run in runs for path in (run / SETTINGS_NAME, *run.glob(f"checkpoint-*/{SETTINGS_NAME}"))]
    if any(read_json(path, "the settings of a run").get("seed") != seed for path in saved if path.is_file()):
        raise FileExistsError(f"{folder} holds a quickstart with another seed than {seed}; give another --output_dir.")


def _train_or_resume(name: str, folder: Path, seed: int) -> CardFacts | None:
    """Train one of the three models, or resume from its last checkpoint."""
    argv = ["--output_dir", str(folder / name), "--seed", str(seed)]
    if resumes_or_moves_aside(folder / name):
        argv += ["--resume_from_checkpoint", "last"]
    if name == "distilled":
        return distill("quickstart", [*argv, "--teacher", str(folder / "teacher")]).card
    return train("quickstart_teacher" if name == "teacher" else "quickstart", argv).card
