"""`afdcd card`: renders a folder's card again, with facts that only its owner knows."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .card_facts import HUB_ID, CardFacts, LatencyRow, Picture, ReportedResults
from .facts_file import write_facts
from .folder_facts import folder_facts, with_repo_id, with_results
from .model_card import write_card


@dataclass(frozen=True)
class CardChanges:
    """What to add to a card; None and empty leave things as they are.

    Attributes:
        repo_id: Its repository on the Hub.
        title: The card's title.
        license, license_name, license_link: Of the weights, as in `CardFacts`.
        base_model: Hub id of the weights it started from.
        teacher: Name or Hub id of its teacher.
        dataset_title: Name of the data set as people write it.
        reported: A published number for the same network.
        results: A `results.json` whose scores replace those of the card.
        pictures: Pictures with captions; files from elsewhere are copied into the folder.
        tags: Further tags.
        notes: Further paragraphs.
        latency: New measurements; they replace those of the same size, batch, device and setting.
    """

    repo_id: str | None = None
    title: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    base_model: str | None = None
    teacher: str | None = None
    dataset_title: str | None = None
    reported: ReportedResults | None = None
    results: str | Path | None = None
    pictures: Sequence[Picture] = ()
    tags: Sequence[str] = ()
    notes: Sequence[str] = ()
    latency: Sequence[LatencyRow] = ()


def update_card(folder: str | Path, changes: CardChanges) -> Path:
    """Renders the card of a saved network from its `card_facts.json`, with some changes, which are kept there too.

    A folder without such a file gets one, from what its configuration, weights and `results.json` tell.

    Args:
        folder: A folder for `from_pretrained`.
        changes: What to add.

    Returns:
        The card written: `README.md`, or `README.generated.md` where somebody wrote the other one by hand.

    Raises:
        FileNotFoundError: If the folder, a picture or results are missing.
        FileExistsError: If another picture of the same name, or hand-written cards, are in the way.
        ValueError: If a change is not valid, such as a licence or an id.
    """
    folder = Path(folder)
    facts = apply_changes(folder_facts(folder), changes)
    pictures = [(Path(path), caption) for path, caption in changes.pictures]
    _check_pictures(folder, pictures)
    added = [Picture(_inside(folder, path).as_posix(), caption) for path, caption in pictures]
    facts = replace(facts, pictures=_joined(facts.pictures, added, key=lambda picture: picture.path))
    for path, _ in pictures:
        if not (folder / _inside(folder, path)).exists():
            shutil.copyfile(path, folder / _inside(folder, path))
    card = write_card(folder, facts)  # checks what there is to check before it writes
    write_facts(folder, facts)
    return card


def apply_changes(facts: CardFacts, changes: CardChanges) -> CardFacts:
    """The facts with the changes, but for the pictures, which need the folder."""
    if changes.repo_id is not None:
        _check_repo_id(changes.repo_id)
        facts = with_repo_id(facts, changes.repo_id)
    if changes.results is not None:
        facts = with_results(facts, changes.results)
    if changes.dataset_title is not None:
        if facts.dataset is None:
            raise ValueError("The card names no data set yet, so a title for it means nothing; pass results, too.")
        facts = replace(facts, dataset=replace(facts.dataset, pretty_name=changes.dataset_title))
    named = {"model_name": changes.title, "base_model": changes.base_model, "teacher": changes.teacher}
    named |= {"reported": changes.reported}
    return replace(
        facts,
        **{name: value for name, value in named.items() if value is not None},
        **_license(facts, changes),
        tags=_joined(facts.tags, changes.tags, key=str),
        notes=_joined(facts.notes, changes.notes, key=str),
        latency=_joined(facts.latency, changes.latency, key=lambda row: row[:5]),
    )


def _check_repo_id(repo_id: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    if not HUB_ID.fullmatch(repo_id):
        raise ValueError(f"repo_id={repo_id!r} is no name of a repository; write USER/NAME.")
    validate_repo_id(repo_id)


def _license(facts: CardFacts, changes: CardChanges) -> dict[str, str | None]:
    given = (changes.license, changes.license_name, changes.license_link)
    if given == (None, None, None):
        return {}
    own = changes.license or facts.license  # a name may be given later than "other"
    kept = (facts.license_name, facts.license_link) if own == "other" == facts.license else (None, None)
    return {"license": own, "license_name": given[1] or kept[0], "license_link": given[2] or kept[1]}


def _joined(before: Iterable, added: Iterable, key) -> list:
    """Both in order; of entries with the same key, the later one in the place of the earlier one."""
    return list({key(entry): entry for entry in (*before, *added)}.values())


def _inside(folder: Path, path: Path) -> Path:
    """Where a picture lies in the folder, or will."""
    inside = path.resolve()
    return inside.relative_to(folder.resolve()) if inside.is_relative_to(folder.resolve()) else Path(path.name)


def _check_pictures(folder: Path, pictures: Sequence[tuple[Path, str]]) -> None:
    for path, _ in pictures:
        if not path.is_file():
            raise FileNotFoundError(f"The picture {path} does not exist.")
        target = folder / _inside(folder, path)
        if target.exists() and not filecmp.cmp(path, target, shallow=False):
            raise FileExistsError(f"{target} is another picture of the same name; rename {path}.")
