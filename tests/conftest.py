"""Settings and small things that several test files share."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from images import TINY_RESNET, labelled_image  # noqa: E402
from paths import SHARED  # noqa: E402

torch.set_num_threads(1)


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


@pytest.fixture
def labelled_images():
    """Factory of lists of {"image", "label", "name"}: `labelled_images(count=4, num_labels=4, height=16, width=24)`."""

    def build(count: int = 4, num_labels: int = 4, height: int = 16, width: int = 24) -> list[dict]:
        return [labelled_image(index, num_labels, height, width) for index in range(count)]

    return build
