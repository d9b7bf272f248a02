"""Loading a saved segmenter and its image processor, for training or scoring."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
)

from .mask_classification import MODEL_TYPES, with_logits

# What neither logits nor maps of a layer depend on; saved folders may lack it.
_UNREAD = ("criterion.", "pooler.")
# What a processor may do that would leave its label map another extent than the image's.
_MOVES_PIXELS = ("do_split_image", "do_pad")


def load_model(name_or_path: str | Path, *, needs_logits: bool = True) -> nn.Module:
    """Load any segmenter that transformers' Auto classes know, in float32; code in its folder is never run.

    EoMT, Mask2Former and MaskFormer have `.logits` in their outputs; see `mask_classification.with_logits`. Unless it
    `needs_logits`, a kind of model that is no segmenter, such as DINOv3, is loaded as transformers' `AutoModel` does.

    Raises:
        ValueError: weights are missing, damaged or of other shapes, or the model needs code of its own.
        OSError: neither a local folder nor a Hub id, or a file is missing in it.
    """
    options = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}  # reported below
    config = _loaded(AutoConfig, name_or_path, "a segmenter")
    auto_class: Any = AutoModelForSemanticSegmentation
    if config.model_type in MODEL_TYPES:
        auto_class = AutoModelForUniversalSegmentation
    elif not needs_logits and type(config) not in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        auto_class = AutoModel
    model, info = _loaded(auto_class, name_or_path, "a segmenter", **options)
    names = sorted(name for name in info["missing_keys"] if not name.startswith(_UNREAD))
    if names:
        raise ValueError(f"{str(name_or_path)!r} lacks {len(names)} of the model's weights, e.g. {names[:3]}.")
    if info["mismatched_keys"]:
        key, stored, expected = sorted(info["mismatched_keys"])[0]
        raise ValueError(
            f"{str(name_or_path)!r} has weights of other shapes than its config.json says, e.g. {key}: "
            f"{tuple(stored)}, not {tuple(expected)}."
        )
    return with_logits(model)


def load_processor(name_or_path: str | Path) -> Any:
    """Load a model's image processor; code in its folder is never run. Errors as for `load_model`.

    What EoMT's can do beyond resizing, splitting an image or padding it, is switched off: windows do that here.
    """
    processor = _loaded(AutoImageProcessor, name_or_path, "an image processor")
    for name in _MOVES_PIXELS:
        if getattr(processor, name, False):
            setattr(processor, name, False)
    return processor


def _loaded(auto_class: Any, name_or_path: str | Path, what: str, **options: Any) -> Any:
    name = os.path.expanduser(name_or_path)
    try:
        return auto_class.from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:
        problem = " ".join(str(error).split())
        if "trust_remote_code" in problem:
            raise ValueError(
                f"{name!r} brings code of its own (auto_map in its config.json), which is not run here. If you trust "
                "its authors, load it in Python with trust_remote_code=True."
            ) from error
        if isinstance(error, OSError) and not os.path.isdir(name):
            raise OSError(f"{name!r} is neither a local folder nor a Hub id that can be loaded: {problem}") from error
        if isinstance(error, (OSError, ValueError, MemoryError, torch.OutOfMemoryError)):
            raise
        raise ValueError(f"{name!r} cannot be loaded as {what}: {type(error).__name__}: {problem}") from error
