"""Renders the cards of all published checkpoints into `model_cards/`: python scripts/render_cards.py [FOLDER]"""

from __future__ import annotations

import sys
from pathlib import Path

from afdcd_hf.hub.zoo_cards import write_zoo_cards

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "model_cards"
    print("\n".join(str(path) for path in write_zoo_cards(folder)))
