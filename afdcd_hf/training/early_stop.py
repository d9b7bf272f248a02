"""A teacher that is run no further than the maps it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from torch import Tensor, nn

from ..features import LayerTap, run_tapped, run_to_maps
from ..model_utils import evaluating


def stops_early(teacher: nn.Module, pixel_values: Tensor, taps: Sequence[LayerTap], accelerator: Accelerator) -> bool:
    """Whether the teacher's pass can end at its last tapped layer, which leaves out its head.

    Not where it is compiled, and not where a later module changes a map in place: the maps of both ways are compared on
    the given images, and have to be equal to the bit.

    Args:
        teacher: on its device.
        pixel_values: `(B, 3, H, W)`, any batch.
        taps: on the teacher's layers; none where the losses compare no maps.
        accelerator: of the training.
    """
    if not taps or accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        return False
    pixel_values = pixel_values.to(next(teacher.parameters()).device)
    with evaluating(teacher), torch.no_grad():
        stopped = run_to_maps(teacher, pixel_values, taps)
        early = [each.feature_map.clone() for each in stopped.of_each_layer()]
        whole = run_tapped(teacher, pixel_values, taps)[1].of_each_layer()
    return all(torch.equal(ours, each.feature_map) for ours, each in zip(early, whole, strict=True))
