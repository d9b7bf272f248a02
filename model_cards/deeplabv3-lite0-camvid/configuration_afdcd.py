"""Configuration of a segmentation model: everything that `from_pretrained` needs to build it."""

# No `from __future__ import annotations` here: `@strict` checks the types of the fields only where they are real types.
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


class WithoutGenericCard:
    """Mixin that keeps `push_to_hub` from uploading transformers' generic card; `afdcd card` writes a real one."""

    def _upload_modified_files(self, working_dir: str, *args: Any, **options: Any) -> Any:
        card = Path(working_dir, "README.md")
        generic = "This model card has been automatically generated."
        if card.is_file() and generic in card.read_text(encoding="utf-8", errors="replace"):
            card.unlink()
        return super()._upload_modified_files(working_dir, *args, **options)  # type: ignore[misc]


@strict
class AfDcdConfig(WithoutGenericCard, PreTrainedConfig):
    """A timm backbone, a decode head and, optionally, an auxiliary head.

    Teacher and student are the same class with two configurations. The defaults describe DeepLabV3 on ResNet-18.

    Args:
        backbone: name of any timm model that can return feature maps.
        backbone_kwargs: extra arguments of `timm.create_model`, e.g. `{"stem_type": "deep", "stem_width": 64}`.
        output_stride: input pixels per pixel of the last map: 8, 16 or 32.
        head: one of `heads.HEADS`: "deeplabv3", "pspnet" or "fcn" on the last map; "deeplabv3plus",
            "lraspp", "segformer" or "fpn" on several.
        head_channels: width of the head. None takes the released models' width: for DeepLabV3 and V3+ 256 if the
            backbone ends in 2048 or more channels, else 128; for PSPNet 512 or 128; for FCN a quarter of the input
            channels; for LR-ASPP and FPN 128; for SegFormer 256.
        atrous_rates: dilations of the atrous branches of DeepLabV3 and V3+. None takes 12, 24, 36 at output stride 8,
            halved each time the stride doubles, so that the rates span the same number of pixels.
        auxiliary_head: adds an FCN head on the second-to-last map, used only in training.
        auxiliary_loss_weight: weight of its cross entropy.
        align_corners: how logits are upsampled; True as in the released code.
        semantic_loss_ignore_index: label that losses and metrics ignore.
        num_labels, id2label, label2id: as in every transformers configuration.
    """

    model_type = "afdcd"

    backbone: str = "resnet18"
    backbone_kwargs: dict | None = None
    output_stride: int = 8
    head: str = "deeplabv3"
    head_channels: int | None = None
    atrous_rates: list | tuple | None = None
    auxiliary_head: bool = False
    auxiliary_loss_weight: float | int = 0.4
    align_corners: bool = True
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs):
        from .heads import HEADS  # not at the top: torch would be loaded while transformers is being imported

        if self.head not in HEADS:
            raise ValueError(f"head={self.head!r} is unknown; known heads: {', '.join(HEADS)}.")
        if self.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride={self.output_stride} is not supported; choose 8, 16 or 32.")
        if self.head_channels is not None and self.head_channels < 1:
            raise ValueError(f"head_channels={self.head_channels} must be positive, or None for the default width.")
        self.backbone_kwargs = dict(self.backbone_kwargs or {})
        if taken := {"output_stride", "pretrained", "features_only"} & self.backbone_kwargs.keys():
            raise ValueError(f"backbone_kwargs cannot set {min(taken)!r}; use output_stride and pretrained_backbone.")
        if self.atrous_rates is None:
            self.atrous_rates = [max(1, rate * 8 // self.output_stride) for rate in (12, 24, 36)]
        if not self.atrous_rates or min(self.atrous_rates) < 1:
            raise ValueError(f"atrous_rates={self.atrous_rates} must be one or more positive integers.")
        self.atrous_rates = [int(rate) for rate in self.atrous_rates]
        super().__post_init__(**kwargs)
