"""Small labelled images."""

from __future__ import annotations

import numpy as np
from PIL import Image

TINY_RESNET = {"channels": [8, 16, 16, 32], "layers": [1, 1, 1, 1]}


def labelled_image(index: int, num_labels: int, height: int, width: int) -> dict:
    """Vertical bands: column x shows class (x // 4 + index) % num_labels in its own grey; the first row is unlabelled.

    Grey value of class c: 255 * (c + 1) // (num_labels + 1), so that a model can learn the labels from the image.
    """
    bands = np.broadcast_to((np.arange(width) // 4 + index) % num_labels, (height, width))
    grey = (255 * (bands + 1) // (num_labels + 1)).astype(np.uint8)
    labels = bands.astype(np.uint8)
    labels[0] = 255
    return {"image": Image.fromarray(grey).convert("RGB"), "label": Image.fromarray(labels), "name": f"bands_{index}"}
