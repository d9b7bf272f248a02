"""Released checkpoints (`.pth`) turned into folders for `from_pretrained`, and ImageNet weights into timm's names."""

from __future__ import annotations

from ...lazy import lazy_exports

_MODULE_OF = {
    "convert_backbone": "backbones",
    "convert_checkpoint": "checkpoints",
    "read_class_names": "reading",
    "read_tensors": "reading",
}

__all__ = list(_MODULE_OF)

__getattr__, __dir__ = lazy_exports(__name__, _MODULE_OF)
