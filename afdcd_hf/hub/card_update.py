"""`afdcd card`: renders a folder's card again, with facts that only its owner knows."""

from __future__ import annotations

import dataclasses
import filecmp
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..cost import ProfileSettings, profile_model
from .card_facts import LatencyRow, Picture, write_facts
from .folder_facts import COST_SIZES, check_repo_id, folder_facts, with_repo_id, with_results
from .model_card import write_card


def update_card(
    folder: str | Path,
    *,
    results: str | Path | None = None,
    pictures: Sequence[tuple[str | Path, str]] = (),
    dataset: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Render the card of a saved model from its `card_facts.json` with some changes, which are kept there too.

    A folder without such a file gets one, from what its configuration, weights and `results.json` tell.

    Args:
        folder: a folder for `from_pretrained`.
        results: a `results.json` whose scores replace those of the card.
        pictures: images and their captions; files from elsewhere are copied into the folder.
        dataset: fields of `DatasetFacts` to change, such as `pretty_name` and `hub_id`.
        changes: fields of `CardFacts` to change. `tags` and `notes` are added to those there are; rows of `latency`
            replace those of the same size, batch, device and setting.

    Returns:
        The card written: `README.md`, or `README.generated.md` where somebody wrote the other one by hand.

    Raises:
        FileNotFoundError: the folder, an image or results are missing.
        FileExistsError: another image of the same name, or hand-written cards, are in the way.
        ValueError: a change is not valid, such as a licence or an id.
    """
    folder = Path(folder)
    facts = folder_facts(folder)
    if (repo_id := changes.pop("repo_id", None)) is not None:
        check_repo_id(repo_id)
        facts = with_repo_id(facts, repo_id)
    facts = facts if results is None else with_results(facts, results)
    if dataset:
        if facts.dataset is None:
            raise ValueError("The card names no dataset yet, so its title or id means nothing; pass results, too.")
        changes["dataset"] = replace(facts.dataset, **dataset)
    for name in ("tags", "notes"):
        changes[name] = list(dict.fromkeys([*getattr(facts, name), *changes.get(name, ())]))
    same = ("height", "width", "batch_size", "device", "setting")
    changes["latency"] = _joined(same, facts.latency, changes.get("latency", ()))
    if changes.get("license", "other") != "other":  # its name and link belonged to the licence before
        changes = {"license_name": None, "license_link": None, **changes}
    places = {_place(folder, Path(path)): (path, caption) for path, caption in pictures}
    added = [Picture(place.as_posix(), caption) for place, (_, caption) in places.items()]
    facts = replace(facts, pictures=_joined(["path"], facts.pictures, added), **changes)
    for place, (path, _) in places.items():
        if not (folder / place).exists():
            shutil.copyfile(path, folder / place)
    card = write_card(folder, facts)  # checks what there is to check before it writes
    write_facts(folder, facts)
    return card


def measure_latency(
    folder: str | Path, sizes: Sequence[tuple[int, int]] | None = None, *, device: str | None, precision: str
) -> list[LatencyRow]:
    """Measure the model's speed as `afdcd profile` does, one image at a time.

    `sizes` are `(height, width)`, by default those at which the card counts MACs; the rest is as in `profile_model`.
    """
    rows = profile_model(folder, sizes or COST_SIZES, settings=ProfileSettings(precision=precision), device=device)
    names = [field.name for field in dataclasses.fields(LatencyRow)]
    return [LatencyRow(**{name: getattr(row, name) for name in names}) for row in rows]


def _joined(keys: Sequence[str], before: Iterable, added: Iterable) -> list:
    """Both in order; of entries that agree in the fields `keys`, the later one in the place of the earlier one."""
    return list({tuple(getattr(one, key) for key in keys): one for one in (*before, *added)}.values())


def _place(folder: Path, path: Path) -> Path:
    """Where in the folder an image lies, or will; looked at before anything is copied."""
    if not path.is_file():
        raise FileNotFoundError(f"The picture {path} does not exist.")
    file, root = path.resolve(), folder.resolve()
    place = file.relative_to(root) if file.is_relative_to(root) else Path(path.name)
    if (folder / place).exists() and not filecmp.cmp(path, folder / place, shallow=False):
        raise FileExistsError(f"{folder / place} is another picture of the same name; rename {path}.")
    return place
