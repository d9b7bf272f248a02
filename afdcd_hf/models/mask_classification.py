"""Models that find masks and a class for each: EoMT, Mask2Former and MaskFormer of transformers, as segmenters."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

MODEL_TYPES = ("eomt", "eomt_dinov3", "mask2former", "maskformer")
_CLASSES = (
    "EomtForUniversalSegmentation", "EomtDinov3ForUniversalSegmentation", "Mask2FormerForUniversalSegmentation",
    "MaskFormerForInstanceSegmentation",
)  # fmt: skip


def finds_masks(model: nn.Module) -> bool:
    """Whether the model is one of these."""
    return type(model).__name__ in _CLASSES


def with_logits(model: nn.Module) -> nn.Module:
    """The model itself; if it finds masks, its outputs have `.logits` from now on, beside their own fields.

    The logits `(B, K, h, w)`, at the masks' size, are the logarithm of `class_scores`: their softmax is each class's
    share of the scores. Their arg max is that of the image processor's `post_process_semantic_segmentation`, except
    that the latter stretches the masks, for EoMT and Mask2Former first to a fixed size, and then the scores, where we
    stretch the logits once. EoMT takes images of one size, so larger ones are segmented in windows of that size, unless
    the settings of inference name others.
    """
    if finds_masks(model) and _add_logits not in model._forward_hooks.values():
        model.register_forward_hook(_add_logits)
        config: Any = model.config
        if config.model_type.startswith("eomt"):  # made for images of one size
            vars(model)["settings_for"] = partial(_in_windows, config.image_size)
    return model


def class_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Sum over queries of class probability times mask probability, in float32 or float64 also under autocast.

    Args:
        class_logits: `(B, Q, K + 1)`, the last one for "no object", which is left out.
        mask_logits: `(B, Q, h, w)`.

    Returns:
        `(B, K, h, w)`, 0 to Q.
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
