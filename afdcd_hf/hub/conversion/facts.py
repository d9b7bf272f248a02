"""What the card of a converted network says."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ... import __version__
from ...models.modeling_afdcd import AfDcdForSemanticSegmentation
from ..card_facts import CardFacts, ReportedResults
from ..folder_facts import dataset_facts, network_facts
from ..zoo import CheckpointRow


def conversion_facts(
    name: str,
    model: AfDcdForSemanticSegmentation,
    checkpoint: Path,
    *,
    network: str,
    dataset: str | None,
    row: CheckpointRow | None,
) -> CardFacts:
    """The facts that are known without running the network on data.

    Args:
        name: Title of the card.
        model: The converted network.
        checkpoint: The file it came from; only its name and checksum get into the card.
        network: Kind of released network.
        dataset: Benchmark it was trained on, where known.
        row: The published checkpoint that it is, where it is one.
    """
    return CardFacts(
        model_name=name,
        **network_facts(model),
        repo_id=row.repo_id if row else None,
        dataset=dataset_facts(dataset, split=row.split if row else None) if dataset else None,
        reported=ReportedResults(row.reported, row.reported_in) if row else None,
        teacher=row.teacher if row else None,
        notes=[_origin(checkpoint, network), *(_source(row) if row else ())],
    )


def _origin(checkpoint: Path, network: str) -> str:
    return (
        f"Converted by afdcd_hf {__version__} from `{checkpoint.name}` (SHA-256 `{_sha256(checkpoint)}`), a "
        f"`{network}` in the released layout; not trained anew. The image processor gives it the released input: BGR, "
        "mean-subtracted, not divided."
    )


def _source(row: CheckpointRow) -> list[str]:
    notes = [f"Source: {row.source_project}, {row.source_file}. Terms of the weights: {row.weights_licence}."]
    return notes + [f"To be known: {text}." for text in (row.source_doubts, row.remarks) if text]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
