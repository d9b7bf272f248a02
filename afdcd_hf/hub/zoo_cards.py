"""The cards of the published checkpoints, rendered from their table: `model_cards/`."""

from __future__ import annotations

from pathlib import Path

import torch

from ..atomic_io import written_whole
from ..data.benchmarks import get_benchmark
from ..models.configuration_afdcd import AfDcdConfig
from ..models.modeling_afdcd import AfDcdForSemanticSegmentation
from .card_facts import CardFacts, MeasuredResults, ReportedResults, TrainingFacts
from .folder_facts import dataset_facts, describe, network_facts
from .model_card import is_handwritten, render_card
from .released_networks import get_released_network
from .zoo import CHECKPOINTS, CheckpointRow, get_checkpoint

_TITLES = {
    "ade20k": "ADE20K",
    "camvid": "CamVid",
    "cityscapes": "Cityscapes",
    "coco_stuff_182": "COCO-Stuff 164k (182 classes)",
    "voc": "Pascal VOC 2012",
}


def zoo_facts(row: CheckpointRow) -> CardFacts:
    """The facts of a published checkpoint, as far as the table and its layout tell; nothing is downloaded."""
    with torch.device("meta"):  # shapes alone
        model = AfDcdForSemanticSegmentation(_config(row))
    notes = [
        "The weights are those that the authors of the paper released, converted by `afdcd convert` and not trained "
        "anew.",
        *source_notes(row),
    ]
    if row.measured is None:
        notes.append(
            "This project has not held that file so far, and nothing is published under this name. Whoever has it "
            f"makes this model of it with `afdcd convert --checkpoint FILE --network {row.network} --dataset "
            f"{row.dataset} --output DIR`."
        )
    return row_facts(row, model, notes)


def row_facts(row: CheckpointRow, model: AfDcdForSemanticSegmentation, notes: list[str]) -> CardFacts:
    """The facts of a row's model, which may have shapes alone.

    Args:
        row: the checkpoint.
        model: its model.
        notes: what a reader has to know first.
    """
    teacher = get_checkpoint(row.teacher) if row.teacher else None
    num_images = get_benchmark(row.dataset).split_sizes[row.split]
    own = f"; {row.recipe} is this package's recipe for the same training" if row.recipe else ""
    if teacher is not None and row.reported_alone is not None:
        alone, taught_by = f"{100 * row.reported_alone:.2f}", f"{100 * teacher.reported:.2f}"
        notes = [*notes, f"Its authors report {alone} % for the same student alone and {taught_by} % for the teacher."]
    return CardFacts(
        model_name=row.repo_id.split("/")[-1],
        repo_id=row.repo_id,
        **network_facts(model),
        dataset=dataset_facts(row.dataset, pretty_name=_TITLES[row.dataset], split=row.split, num_images=num_images),
        measured=None if row.measured is None else MeasuredResults(row.measured),
        reported=ReportedResults(row.reported, row.reported_in),
        training=TrainingFacts(recipe=f"that of its authors{own}"),
        teacher=row.teacher,
        teacher_architecture=describe(_config(teacher)) if teacher else None,
        notes=notes,
    )


def source_notes(row: CheckpointRow) -> list[str]:
    """Where a checkpoint comes from and what to beware of."""
    source = f"Source: {row.source_project}, {row.source_file}. Terms of the weights: {row.weights_licence}."
    return [source, *(f"Note: {text}." for text in (row.source_doubts, row.remarks) if text)]


def write_zoo_cards(folder: str | Path) -> list[Path]:
    """Write the card of every published checkpoint as `NAME.md`, and never over one that was written by hand.

    Raises:
        FileExistsError: there is a hand-written file of such a name; nothing is written then.
    """
    cards = {Path(folder) / f"{row.repo_id.split('/')[-1]}.md": row for row in CHECKPOINTS.values()}
    if by_hand := [path for path in cards if is_handwritten(path)]:
        raise FileExistsError(f"{by_hand[0]} was written by hand and stays; move it away to have it rendered.")
    for path, row in cards.items():
        with written_whole(path) as part:
            part.write_bytes(render_card(zoo_facts(row)).encode("utf-8"))
    return list(cards)


def _config(row: CheckpointRow) -> AfDcdConfig:
    return get_released_network(row.network).config(get_benchmark(row.dataset).classes)
