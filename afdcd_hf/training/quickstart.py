"""`afdcd quickstart`: the whole idea in a few minutes, on generated street scenes, without a GPU or a download.

A teacher, the student alone and the student with Af-DCD are trained, the latter two on the same budget and seed, and
all three are scored from their saved folders.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from ..charts import load_history, plot_training_curves
from ..hub.card_facts import CardFacts, ComparisonRow, Picture
from ..hub.facts_file import write_facts
from ..hub.model_card import write_card
from ..inference.side_by_side import draw_predictions
from .runs import distill, train

TEACHER_RECIPE, STUDENT_RECIPE = "quickstart_teacher", "quickstart"
TITLES = {"teacher": "teacher", "student-alone": "student alone", "distilled": "distilled (Af-DCD)"}


def quickstart(output: str | Path, seed: int = 0) -> Path:
    """Train the three networks, print the table, and write card, pictures and curves into the distilled one's folder.

    Args:
        output: folder for the three runs; where it is not empty, `output`-2, -3, ... is taken.
        seed: of initialisation, order, augmentation and masks. The scenes are always the same.

    Returns:
        The distilled student's folder.
    """
    start = time.perf_counter()
    folder = _fresh_folder(Path(output))
    runs = {name: folder / name for name in TITLES}
    seed_option = ["--seed", str(seed)]
    _announce(1, "teacher", runs["teacher"])
    teacher = train(TEACHER_RECIPE, ["--output_dir", str(runs["teacher"]), *seed_option])
    _announce(2, "student alone", runs["student-alone"])
    alone = train(STUDENT_RECIPE, ["--output_dir", str(runs["student-alone"]), *seed_option])
    _announce(3, "student with Af-DCD", runs["distilled"])
    options = ["--output_dir", str(runs["distilled"]), "--teacher", str(runs["teacher"]), *seed_option]
    distilled = distill(STUDENT_RECIPE, options)

    cards = dict(zip(TITLES, (teacher.card, alone.card, distilled.card), strict=True))
    rows = {name: _row(TITLES[name], card) for name, card in cards.items()}
    best = runs["distilled"]
    plot_training_curves(
        {TITLES[name]: load_history(path) for name, path in runs.items()}, best / "training_curves.png"
    )
    models = {TITLES[name]: path for name, path in runs.items()}
    notes = {row.model: f"mIoU {100 * row.mean_iou:.1f} %" for row in rows.values()}
    draw_predictions(models, best / "predictions.png", dataset="scenes", notes=notes)
    pictures = [
        Picture("predictions.png", "Scenes that none of the networks was trained on."),
        Picture("training_curves.png", "Mean IoU and loss terms of the three runs."),
    ]
    facts = replace(distilled.card, comparison=list(rows.values()), pictures=pictures)
    write_facts(best, facts)
    write_card(best, facts)
    print("\n" + format_table(rows))
    print(f"\n{time.perf_counter() - start:.0f} s in all. The distilled student is in {best}:")
    print("  README.md (model card), predictions.png, training_curves.png, results.json, card_facts.json, weights.")
    return best


def format_table(rows: dict[str, ComparisonRow]) -> str:
    """Parameters, MACs, mIoU and the gain over the student alone, in plain text."""
    alone = rows["student-alone"].mean_iou
    lines = [f"{'model':<22}{'params':>10}{'GMACs':>8}{'mIoU %':>9}{'gain':>8}"]
    for row in rows.values():
        gain = f"{100 * (row.mean_iou - alone):+8.2f}" if row is not rows["student-alone"] else f"{'':>8}"
        params, macs = f"{row.num_parameters / 1e6:.2f} M", row.macs / 1e9
        lines.append(f"{row.model:<22}{params:>10}{macs:>8.2f}{100 * row.mean_iou:>9.2f}{gain}")
    return "\n".join(lines)


def _fresh_folder(wanted: Path) -> Path:
    folder, number = wanted, 1
    while folder.exists() and any(folder.iterdir()):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def _announce(number: int, what: str, path: Path) -> None:
    print(f"\n[{number}/3] {what} -> {path}", flush=True)


def _row(title: str, card: CardFacts) -> ComparisonRow:
    return ComparisonRow(title, card.num_parameters, card.macs, card.measured.mean_iou)
