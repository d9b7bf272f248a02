"""Loading of saved segmenters and image processors; mask classification models (EoMT, Mask2Former) get logits."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
)

MODEL_TYPES = ("eomt", "eomt_dinov3", "mask2former", "maskformer")
FLIPS = ("do_flip_channels", "do_flip_channel_order")  # settings that turn RGB into BGR: ours, and MobileViT's
# Weights that affect neither logits nor a layer's maps; saved folders may lack them.
_UNUSED = ("criterion.", "pooler.")


def load_model(name_or_path: str | Path, *, needs_logits: bool = True) -> nn.Module:
    """Load any segmenter that transformers' Auto classes know, in float32; code in its folder is never run.

    EoMT, Mask2Former and MaskFormer get logits; see `with_logits`. With `needs_logits=False`, a model that is not a
    segmenter, such as DINOv3, is loaded by transformers' `AutoModel`.

    Raises:
        ValueError: weights are missing, damaged or of the wrong shape, or the model needs custom code.
        OSError: `name_or_path` is neither a local folder nor a Hub id, or lacks a file.
    """
    options = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}  # reported below
    config = _loaded(AutoConfig, name_or_path, "a segmenter")
    auto_class: Any = AutoModelForSemanticSegmentation
    if config.model_type in MODEL_TYPES:
        auto_class = AutoModelForUniversalSegmentation
    elif not needs_logits and type(config) not in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        auto_class = AutoModel
    model, info = _loaded(auto_class, name_or_path, "a segmenter", **options)
    if names := sorted(name for name in info["missing_keys"] if not name.startswith(_UNUSED)):
        raise ValueError(f"{str(name_or_path)!r} lacks {len(names)} of the model's weights, e.g. {names[:3]}.")
    if info["mismatched_keys"]:
        key, stored, expected = sorted(info["mismatched_keys"])[0]
        raise ValueError(
            f"{str(name_or_path)!r} has weights whose shapes do not match its config.json, e.g. {key}: "
            f"{tuple(stored)}, not {tuple(expected)}."
        )
    return with_logits(model)


def load_processor(name_or_path: str | Path) -> Any:
    """Load a model's image processor; code in its folder is never run. Errors as for `load_model`.

    Splitting, padding and cropping of images is switched off (see `whole_image`): sliding windows replace it here.
    """
    processor = _loaded(AutoImageProcessor, name_or_path, "an image processor")
    vars(processor).update(whole_image(processor))
    return processor


def whole_image(processor: Any) -> dict[str, bool]:
    """Return the settings that an image processor needs so that its result covers the whole image and nothing else.

    Otherwise a label map, which is resized to the image, would be shifted and stretched.
    """
    parts = ("do_split_image", "do_pad", "do_center_crop")
    return {name: False for name in parts if getattr(processor, name, False)}


def is_bgr(processor: Any) -> bool:
    """Return whether an image processor turns RGB into BGR."""
    return any(getattr(processor, name, False) for name in FLIPS)


def _loaded(auto_class: Any, name_or_path: str | Path, what: str, **options: Any) -> Any:
    name = os.path.expanduser(name_or_path)
    try:
        return auto_class.from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:
        problem = " ".join(str(error).split())
        if "trust_remote_code" in problem:
            raise ValueError(
                f"{name!r} needs custom code (auto_map in its config.json), which is not run here. If you trust "
                "its authors, load it in Python with trust_remote_code=True."
            ) from error
        if isinstance(error, OSError) and not os.path.isdir(name):
            raise OSError(f"{name!r} is neither a local folder nor a Hub id that can be loaded: {problem}") from error
        if isinstance(error, (OSError, ValueError, MemoryError, torch.OutOfMemoryError)):
            raise
        raise ValueError(f"{name!r} cannot be loaded as {what}: {type(error).__name__}: {problem}") from error


def is_mask_classifier(model: nn.Module) -> bool:
    """Return whether the model is a segmenter of one of `MODEL_TYPES`."""
    config = getattr(model, "config", None)
    return getattr(config, "model_type", None) in MODEL_TYPES and "Segmentation" in type(model).__name__


def with_logits(model: nn.Module) -> nn.Module:
    """Return the model itself; a mask classification model's outputs have `.logits` from now on, beside their fields.

    The logits `(B, K, h, w)`, at the masks' size, are the logarithm of `class_scores`. Their arg max is the image
    processor's `post_process_semantic_segmentation`, except that the latter upsamples masks and scores, whereas we
    upsample the logits once. EoMT takes images of one size, so images are segmented in windows of that size, unless the
    inference settings name another window.
    """
    if is_mask_classifier(model) and _add_logits not in model._forward_hooks.values():
        model.register_forward_hook(_add_logits)
        config: Any = model.config
        if config.model_type.startswith("eomt"):  # made for images of one size
            vars(model)["settings_for"] = partial(_in_windows, config.image_size)
    return model


def class_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Sum class probability times mask probability over the Q queries, in float32 or float64 even under autocast.

    Takes `(B, Q, K + 1)`, whose last class, "no object", is left out, and `(B, Q, h, w)`; returns `(B, K, h, w)`.
    """
    exact = torch.promote_types(class_logits.dtype, torch.float32)
    with torch.autocast(class_logits.device.type, enabled=False):
        classes = class_logits.to(exact).softmax(-1)[..., :-1]
        return torch.einsum("bqk,bqhw->bkhw", classes, mask_logits.to(exact).sigmoid())


def _add_logits(model: nn.Module, args: tuple, outputs: Any) -> Any:
    scores = class_scores(outputs.class_queries_logits, outputs.masks_queries_logits)
    outputs["logits"] = scores.clamp_min(torch.finfo(scores.dtype).tiny).log()  # finite where a score underflows
    return outputs


def _in_windows(side: int, settings: Any) -> Any:
    return settings if settings.window else replace(settings, window=(side, side))
