"""The cards of the published checkpoints, rendered from their table: `model_cards/`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..atomic_io import written_whole
from ..data.benchmarks import get_benchmark
from ..models.modeling_afdcd import AfDcdForSemanticSegmentation
from .card_facts import CardFacts, MeasuredResults, ReportedResults, TrainingFacts
from .folder_facts import dataset_facts, describe, network_facts
from .model_card import is_handwritten, render_card
from .released_networks import get_released_network
from .zoo import CHECKPOINTS, CheckpointRow, get_checkpoint

_ORIGIN = (
    "The weights are those that the authors of the paper released, converted by `afdcd convert` and not trained anew."
)
_TITLES = {
    "ade20k": "ADE20K",
    "camvid": "CamVid",
    "cityscapes": "Cityscapes",
    "coco_stuff_182": "COCO-Stuff 164k (182 classes)",
    "voc": "Pascal VOC 2012",
}


def zoo_facts(row: CheckpointRow, model: nn.Module | None = None, origin: str | None = None) -> CardFacts:
    """The facts of a published checkpoint, as far as the table and its layout tell; nothing is downloaded.

    `model` is its model where there is one, and `origin` a note of how that was made.
    """
    benchmark, split = get_benchmark(row.dataset), row.split
    config = get_released_network(row.network).config(benchmark.classes)
    notes = [f"Source: {row.source_project}, {row.source_file}. Terms of the weights: {row.weights_licence}."]
    notes += [f"Note: {text}." for text in (row.source_doubts, row.remarks) if text]
    if origin is None and row.measured is None:
        notes.append(
            "This project has not held that file so far, and nothing is published under this name. Whoever has it "
            f"makes this model of it with `afdcd convert --checkpoint FILE --network {row.network} --dataset "
            f"{row.dataset} --output DIR`."
        )
    teacher = get_checkpoint(row.teacher) if row.teacher else None
    taught_by = describe(get_released_network(teacher.network).config(benchmark.classes)) if teacher else None
    if teacher is not None and row.reported_alone is not None:
        alone, best = f"{100 * row.reported_alone:.2f}", f"{100 * teacher.reported:.2f}"
        notes.append(f"Its authors report {alone} % for the same student alone and {best} % for the teacher.")
    own = f"; {row.recipe} is this package's recipe for the same training" if row.recipe else ""
    if model is None:
        with torch.device("meta"):  # shapes alone
            model = AfDcdForSemanticSegmentation(config)
    return CardFacts(
        model_name=row.repo_id.split("/")[-1],
        repo_id=row.repo_id,
        **network_facts(model),
        dataset=dataset_facts(
            row.dataset, pretty_name=_TITLES[row.dataset], split=split, num_images=benchmark.split_sizes[split]
        ),
        measured=None if row.measured is None else MeasuredResults(row.measured),
        reported=ReportedResults(row.reported, row.reported_in),
        training=TrainingFacts(recipe=f"that of its authors{own}"),
        teacher=row.teacher,
        teacher_architecture=taught_by,
        notes=[origin or _ORIGIN, *notes],
    )


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
