"""Render the cards of the published checkpoints (`afdcd list`)."""

from __future__ import annotations

import argparse
from pathlib import Path

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    cards = Path(__file__).resolve().parents[1] / "model_cards"
    parser.add_argument("folder", nargs="?", type=Path, default=cards, help="where to (default: %(default)s)")
    folder = parser.parse_args().folder
    from afdcd_hf.hub.conversion import write_zoo_cards  # takes seconds, and --help needs none of it

    print(*write_zoo_cards(folder), sep="\n")
