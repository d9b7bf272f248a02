"""Render the cards of the published checkpoints (`afdcd list`)."""

from __future__ import annotations

import argparse
from pathlib import Path


def write_zoo_cards(folder: Path) -> list[Path]:
    """Write the card of every published checkpoint as `NAME.md`; a FileExistsError if one there was written by hand."""
    from afdcd_hf.atomic_io import atomic_write  # these imports take seconds, and --help does not need them
    from afdcd_hf.hub.conversion import zoo_facts
    from afdcd_hf.hub.model_card import is_handwritten, render_card
    from afdcd_hf.hub.zoo import CHECKPOINTS

    cards = {folder / f"{row.name}.md": row for row in CHECKPOINTS.values()}
    if by_hand := [path for path in cards if is_handwritten(path)]:
        raise FileExistsError(f"{by_hand[0]} was written by hand and is kept; move it away to render the card.")
    for path, row in cards.items():
        with atomic_write(path) as part:
            part.write_bytes(render_card(zoo_facts(row)).encode("utf-8"))
    return list(cards)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    cards = Path(__file__).resolve().parents[1] / "model_cards"
    parser.add_argument("folder", nargs="?", type=Path, default=cards, help="output folder (default: %(default)s)")
    print(*write_zoo_cards(parser.parse_args().folder), sep="\n")
