"""Released checkpoints (`.pth`) turned into folders for `from_pretrained`, and ImageNet weights into timm's names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...lazy import lazy_exports

if TYPE_CHECKING:
    from .backbones import convert_backbone
    from .checkpoints import convert_checkpoint
    from .reading import read_class_names, read_tensors

__getattr__, __dir__, __all__ = lazy_exports(__name__)
