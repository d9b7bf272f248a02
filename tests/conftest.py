"""Settings and small things that several test files share."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once

from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared"
TINY_RESNET = {"channels": [8, 16, 16, 32], "layers": [1, 1, 1, 1]}


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of golden values beside the checkout; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    return SHARED


@pytest.fixture
def tiny_model():
    """Factory of small random networks (about 40,000 parameters, maps of 8, 16, 16 and 32 channels).

    `tiny_model(head="fcn", num_labels=4, seed=0, **config)`; the same arguments give the same weights.
    """
    from afdcd_hf import AfDcdForSemanticSegmentation

    def build(head: str = "fcn", num_labels: int = 4, seed: int = 0, **config) -> AfDcdForSemanticSegmentation:
        settings = {"backbone": "resnet18", "backbone_kwargs": TINY_RESNET, "head_channels": 8, **config}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AfDcdForSemanticSegmentation.from_backbone(head=head, num_labels=num_labels, **settings)

    return build


def labelled_image(index: int, num_labels: int, height: int, width: int) -> dict:
    """Vertical bands: column x shows class (x // 4 + index) % num_labels in its own grey; the first row is unlabelled.

    Grey value of class c: 255 * (c + 1) // (num_labels + 1), so that a network can learn the labels from the picture.
    """
    bands = np.broadcast_to((np.arange(width) // 4 + index) % num_labels, (height, width))
    grey = (255 * (bands + 1) // (num_labels + 1)).astype(np.uint8)
    labels = bands.astype(np.uint8)
    labels[0] = 255
    return {"image": Image.fromarray(grey).convert("RGB"), "label": Image.fromarray(labels), "name": f"bands_{index}"}


@pytest.fixture
def labelled_images():
    """Factory of lists of {"image", "label", "name"}: `labelled_images(count=4, num_labels=4, height=16, width=24)`."""

    def build(count: int = 4, num_labels: int = 4, height: int = 16, width: int = 24) -> list[dict]:
        return [labelled_image(index, num_labels, height, width) for index in range(count)]

    return build
