"""Conversion of any image mode to 8-bit RGB: one rule for training, evaluation, prediction and the processor."""

from __future__ import annotations

import numpy as np
from PIL import Image


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to mode RGB.

    Grey, palette and CMYK images are converted, 16 bits are scaled to 8 (65535 → 255), and transparency is dropped.

    Raises:
        ValueError: If the pixels are floating-point numbers, or integers beyond 16 bits; the error names the mode.
    """
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise ValueError("mode F: its pixels are floating-point numbers of unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # convert("RGB") would cut off everything above 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"mode {image.mode}: its values {values.min()} to {values.max()} exceed 16 bits; "
                "save it with 8 or 16 bits"
            )
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if "transparency" in image.info:  # convert("RGB") would warn that it is dropped
        image = image.convert("RGBA")
    return image.convert("RGB")
