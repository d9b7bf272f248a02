"""This Space's page. Written by `afdcd demo --write_space`; the package is in the folder `afdcd_hf`."""

import logging
from pathlib import Path

from afdcd_hf.demo import launch_demo

# Title on the page: repository on the Hub, or folder in this Space
MODELS: dict[str, str] = {}
LONGEST_SIDE = 1024  # larger images are shrunk to this many pixels

if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("afdcd_hf").setLevel(logging.INFO)
    here = Path(__file__).parent
    models = {title: here / model if (here / model).is_dir() else model for title, model in MODELS.items()}
    launch_demo(models, sorted((here / "examples").iterdir()), longest_side=LONGEST_SIDE)
