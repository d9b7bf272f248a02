"""Loading a saved segmenter for training or scoring."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModelForSemanticSegmentation


def load_model(name_or_path: str) -> nn.Module:
    """Load any segmenter that transformers' Auto class knows, in float32.

    Raises:
        ValueError: the file lacks weights of the network: they would have been drawn at random.
        OSError: there is no such folder or repository, or a file is missing in it.
    """
    model, info = AutoModelForSemanticSegmentation.from_pretrained(
        name_or_path, dtype=torch.float32, output_loading_info=True
    )
    if info["missing_keys"]:
        names = sorted(info["missing_keys"])
        raise ValueError(f"{name_or_path!r} lacks {len(names)} of the network's weights, e.g. {names[:3]}.")
    return model
