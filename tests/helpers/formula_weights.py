"""Weights and images from formulas, for networks without a checkpoint."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def generator(key):
    return np.random.RandomState(zlib.crc32(key.encode()))


def formula_tensor(name, shape):
    """Value of a tensor of the released network, as defined in golden/README.md."""
    draw = generator(name)
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith("running_var"):
        value = draw.uniform(0.5, 1.5, shape)
    elif name.endswith(("running_mean", "bias")):
        value = draw.normal(0, 0.1, shape)
    elif len(shape) == 1:
        value = draw.uniform(0.5, 1.5, shape)
    else:
        value = draw.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def images(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))
