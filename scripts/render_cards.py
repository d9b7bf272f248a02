"""Render the cards of the published checkpoints (`afdcd list`)."""

from __future__ import annotations

import argparse
from pathlib import Path

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    cards = Path(__file__).resolve().parents[1] / "model_cards"
    parser.add_argument("folder", nargs="?", type=Path, default=cards, help="output folder (default: %(default)s)")
    folder = parser.parse_args().folder
    from afdcd_hf.hub.conversion import write_zoo_cards  # takes seconds to import, and --help does not need it

    print(*write_zoo_cards(folder), sep="\n")
