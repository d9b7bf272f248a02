"""The teacher during training: its own preprocessing, folded batch norm, channels last, early exit after its maps."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..features import Activations, LayerTap, run_tapped, run_to_maps
from ..model_utils import device_of, evaluating
from ..models.loading import is_bgr, load_processor

logger = logging.getLogger(__name__)

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d)
# largest difference of logits and feature maps relative to their largest value, in float32; measured for ResNets: 2e-6
TOLERANCE = 1e-4


@torch.no_grad()
def observe(model: nn.Module, pixel_values: Tensor, layers: Sequence[str]) -> Activations:
    """Run a model in eval mode on one batch and return what a loss would see; finds wrong models and layers early."""
    try:
        inspect.signature(model.forward).bind(pixel_values=None)
    except TypeError as error:
        raise ValueError(
            f"{type(model).__name__} cannot be called as model(pixel_values=...): {error}. Wrap it: "
            "afdcd_hf.as_segmenter(model)."
        ) from error
    taps: list[LayerTap] = []
    try:
        taps.extend(LayerTap(model, layer) for layer in layers)
        with evaluating(model):
            _, seen = run_tapped(model, pixel_values.to(device_of(model)), taps)
    finally:
        for tap in taps:
            tap.remove()
    for layer, feature_map in zip(layers, feature_maps(seen), strict=True):
        _check_layout(layer, feature_map.shape[1:], pixel_values.shape[2:])
    return seen


def feature_maps(seen: Activations) -> list[Tensor]:
    """Return the feature maps of all layers."""
    return [each for each in (seen.feature_map, *seen.further_maps) if each is not None]


def _check_layout(layer: str, sizes: Sequence[int], image: Sequence[int]) -> None:
    """Refuse a map whose first two dimensions have the image's aspect ratio, while its last two do not."""
    height, width = image

    def fits_image(rows: int, columns: int) -> bool:
        return rows <= height and columns <= width and abs(columns - rows * width / height) <= 1

    if ":" not in layer and fits_image(*sizes[:2]) and not fits_image(*sizes[1:]):
        raise ValueError(
            f"Layer {layer!r} returns a map of shape {tuple(sizes)} for an image of {height}x{width}, which looks like "
            f"channels last: write '{layer}:nhwc'."
        )


def load_teacher_processor(teacher: str | Path) -> Any:
    """Load the image processor of a saved teacher, or return None with a warning if its folder has none."""
    try:
        return load_processor(teacher)
    except (OSError, ValueError) as error:
        logger.warning(
            "The teacher %s has no image processor, so it gets the student's preprocessing: %s", teacher, error
        )
        return None


def adapt_input(teacher: nn.Module, student_processor: Any, teacher_processor: Any) -> nn.Module:
    """Return the teacher, or a copy sharing its weights that converts the student's `pixel_values` to its own.

    Both processors normalise the same crop, in RGB or BGR order, so one result is a scale and an offset of the other.
    """
    (own_bgr, own_scale, own_offset), (bgr, scale, offset) = map(_per_channel, (student_processor, teacher_processor))
    flips = own_bgr != bgr
    if flips:
        own_scale, own_offset = own_scale.flip(0), own_offset.flip(0)
    scale = (scale / own_scale).view(3, 1, 1)
    offset = offset.view(3, 1, 1) - own_offset.view(3, 1, 1) * scale
    if not flips and bool((scale == 1).all() and (offset == 0).all()):
        return teacher

    def convert(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        pixel_values, *others = args or (kwargs.pop("pixel_values"),)
        pixel_values = pixel_values.flip(1) if flips else pixel_values
        own = pixel_values * scale.to(pixel_values) + offset.to(pixel_values)
        return ((own, *others), kwargs) if args else (args, {**kwargs, "pixel_values": own})

    logger.info("Teacher and student normalise images differently; the teacher gets its own normalisation.")
    adapted = copy_sharing_weights(teacher, own_kernels=False)
    adapted.register_forward_pre_hook(convert, with_kwargs=True)
    return adapted


def _per_channel(processor: Any) -> tuple[bool, Tensor, Tensor]:
    """Return whether channels are BGR, and scale and offset `(3,)` float64 that normalise pixels 0..255."""
    timm_config = getattr(processor, "data_config", None)  # of transformers' wrapper for timm models
    if timm_config is not None:
        factor, mean, std = 1 / 255, timm_config["mean"], timm_config["std"]
    elif not hasattr(processor, "do_normalize"):
        raise ValueError(
            f"{type(processor).__name__} has no do_rescale, do_normalize, image_mean and image_std: give an image "
            "processor of transformers, or AfDcdImageProcessor(image_mean=...)."
        )
    else:
        factor = processor.rescale_factor if processor.do_rescale else 1.0
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    mean, std = (torch.as_tensor(each, dtype=torch.float64).expand(3) for each in (mean, std))
    return is_bgr(processor), factor / std, -mean / std


def optimize_teacher(
    teacher: nn.Module, pixel_values: Tensor, layers: Sequence[str], *, fold: bool, channels_last: bool
) -> nn.Module:
    """Return the teacher, or a faster copy that computes the same.

    Both are run on `pixel_values` `(B, 3, H, W)`: ValueError if logits or maps differ by more than 1e-4 of the largest.
    """
    if not fold and not channels_last:
        return teacher
    running = copy_sharing_weights(teacher, own_kernels=channels_last)
    if fold:
        _fold_batch_norm(running, {layer.partition("[")[0].partition(":")[0] for layer in layers})
    if channels_last:
        running.to(memory_format=torch.channels_last)
    expected, actual = (_tensors(observe(model, pixel_values, layers)) for model in (teacher, running))
    names = ("logits", *layers)[-len(expected) :]  # a teacher may have no logits
    for name, before, after in zip(names, expected, actual, strict=True):
        difference, largest = (before - after).abs().max().item(), before.abs().max().item()
        if not difference <= TOLERANCE * largest:
            raise ValueError(
                f"With folded batch norm or channels last, the teacher's {name} would change by up to {difference:.2g} "
                f"(largest value {largest:.2g}): leave out fold_teacher_batch_norm or channels_last."
            )
    return running


def stops_early(teacher: nn.Module, pixel_values: Tensor, taps: Sequence[LayerTap], accelerator: Accelerator) -> bool:
    """Whether the teacher's forward pass can stop after its last tapped layer, which skips its head.

    It cannot if it is compiled, or if a later module changes a map in place: both ways are compared on the images.
    """
    if not taps or accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        return False
    pixel_values = pixel_values.to(device_of(teacher))
    with evaluating(teacher), torch.no_grad():
        early = [each.clone() for each in _tensors(run_to_maps(teacher, pixel_values, taps))]
        full = _tensors(run_tapped(teacher, pixel_values, taps)[1])[-len(early) :]
    return all(map(torch.equal, early, full))


def _tensors(activations: Activations) -> list[Tensor]:
    logits = [] if activations.logits is None else [activations.logits]
    return [*logits, *feature_maps(activations)]


def copy_sharing_weights(model: nn.Module, *, own_kernels: bool) -> nn.Module:
    """Copy the modules but share the tensors; `own_kernels` copies 4-d weights, for changes of memory format."""
    tensors = [*model.parameters(), *model.buffers()]
    shared = [tensor for tensor in tensors if not (own_kernels and tensor.ndim == 4)]
    # objects whose methods are hooks stay shared: they may collect outputs that their owner reads
    tables = [table for module in model.modules() for table in (module._forward_hooks, module._forward_pre_hooks)]
    owners = [hook.__self__ for table in tables for hook in table.values() if hasattr(hook, "__self__")]
    return copy.deepcopy(model, {id(each): each for each in (*shared, *owners)})


def _fold_batch_norm(model: nn.Module, tapped: set[str]) -> None:
    """Fold each batch norm that directly follows a convolution; torch.fx cannot trace transformers models."""
    pairs: list[Any] = []
    for path, module in model.named_modules():
        children = list(module.named_children())
        for (name, convolution), (_, norm) in zip(children, children[1:], strict=False):
            is_tapped = (f"{path}.{name}" if path else name) in tapped
            # the exact type, because subclasses may transform their weights
            if type(convolution) is nn.Conv2d and isinstance(norm, NORMS) and not is_tapped:
                pairs.append((convolution, norm))
    if not pairs:
        what = f"found no batch norm directly after a convolution in {type(model).__name__}"
        raise ValueError(f"fold_teacher_batch_norm {what}: leave it out.")
    for convolution, norm in pairs:
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        exact: list[Any] = [value.double() if isinstance(value, Tensor) else value for value in statistics]
        bias = None if convolution.bias is None else convolution.bias.double()
        folded = fuse_conv_bn_weights(convolution.weight.double(), bias, *exact)
        dtype = convolution.weight.dtype
        convolution.weight, convolution.bias = (nn.Parameter(each.detach().to(dtype), False) for each in folded)
        # the module stays in place, for its hooks and its name
        rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        norm.forward = rest.forward
    count = sum(isinstance(module, NORMS) for module in model.modules())
    logger.info("Folded %d of the teacher's %d batch-norm layers into their convolutions.", len(pairs), count)
