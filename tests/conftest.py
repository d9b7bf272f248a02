"""Settings and fixtures that several test files share."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from paths import SHARED  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton, which reads it once


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of golden values beside the checkout; tests that need it are skipped if it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} does not exist")
    return SHARED


@pytest.fixture
def golden(shared_dir) -> dict[str, torch.Tensor]:
    """Inputs, values and gradients of the released losses."""
    return load_file(shared_dir / "golden" / "losses.safetensors")


@pytest.fixture
def tiny_model():
    """`tiny.segmenter`: a factory of small random models."""
    from tiny import segmenter

    return segmenter
