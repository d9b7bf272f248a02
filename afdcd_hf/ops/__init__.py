"""Dense contrastive terms as plain functions of two feature maps."""

from __future__ import annotations

from .contrast import channel_contrast, omni_contrast, spatial_contrast

__all__ = ["channel_contrast", "omni_contrast", "spatial_contrast"]
