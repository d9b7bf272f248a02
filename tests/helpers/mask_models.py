"""Tiny random mask-classification models of transformers, by the name of their kind."""

from __future__ import annotations

import torch
from transformers import (
    DetrConfig,
    EomtConfig,
    EomtForUniversalSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    PreTrainedModel,
    SwinConfig,
)

MASK_MODELS = ("eomt", "mask2former", "maskformer")


def mask_model(kind: str, num_labels: int = 4, image_size: int = 32) -> PreTrainedModel:
    """A model in evaluation mode; EoMT takes only square images of `image_size`, and its masks have a quarter of it."""
    shared = {"num_labels": num_labels, "num_queries": 5}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "eomt":
            sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 2}
            grid = {"image_size": image_size, "patch_size": 8, "num_blocks": 1, "num_upscale_blocks": 1}
            return EomtForUniversalSegmentation(EomtConfig(**shared, **sizes, **grid)).eval()
        stages = [f"stage{number}" for number in (1, 2, 3, 4)]
        heads = {"depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2, "out_features": stages}
        shared["backbone_config"] = SwinConfig(image_size=64, embed_dim=8, **heads)
        if kind == "mask2former":
            widths = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16}
            layers = {"dim_feedforward": 16, "num_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 2}
            return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**shared, **widths, **layers)).eval()
        decoder = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in
                   {"layers": 1, "attention_heads": 2, "ffn_dim": 16}.items()}  # fmt: skip
        shared["decoder_config"] = DetrConfig(d_model=16, num_queries=5, **decoder)
        del shared["num_queries"]
        config = MaskFormerConfig(fpn_feature_size=32, mask_feature_size=32, **shared)
        return MaskFormerForInstanceSegmentation(config).eval()
