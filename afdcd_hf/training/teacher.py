"""The teacher as it runs in a training: on images as it knows them, folded, channels last, no further than its maps."""

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
from ..models.loading import load_processor

logger = logging.getLogger(__name__)

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d)
# largest difference of logits and maps over their largest value, in float32; measured for ResNets: 2e-6
TOLERANCE = 1e-4


@torch.no_grad()
def observe(model: nn.Module, pixel_values: Tensor, layers: Sequence[str]) -> Activations:
    """What a loss would see of a model in eval mode on one batch, so that a wrong model or layer is found early."""
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
    for layer, feature_map in zip(layers, maps_of(seen), strict=True):
        _check_layout(layer, feature_map.shape[1:], pixel_values.shape[2:])
    return seen


def maps_of(seen: Activations) -> list[Tensor]:
    """The maps of all layers."""
    return [each for each in (seen.feature_map, *seen.further_maps) if each is not None]


def _check_layout(layer: str, sizes: Sequence[int], image: Sequence[int]) -> None:
    """Refuse a map whose first two sizes look like the image's height and width, where its last two do not."""
    height, width = image

    def like_the_image(rows: int, columns: int) -> bool:
        return rows <= height and columns <= width and abs(columns - rows * width / height) <= 1

    if ":" not in layer and like_the_image(*sizes[:2]) and not like_the_image(*sizes[1:]):
        raise ValueError(
            f"Layer {layer!r} gives a map of shape {tuple(sizes)} for an image of {height}x{width}, which looks like "
            f"channels last: write '{layer}:nhwc'."
        )


def processor_of(teacher: str | Path) -> Any:
    """The image processor of a saved teacher, or None (with a warning) where its folder has none."""
    try:
        return load_processor(teacher)
    except (OSError, ValueError) as error:
        logger.warning(
            "The teacher %s has no image processor, so it gets its images as the student does: %s", teacher, error
        )
        return None


def with_own_input(teacher: nn.Module, student_processor: Any, teacher_processor: Any) -> nn.Module:
    """The teacher, or a copy with the same weights that takes the student's `pixel_values` and sees its own.

    Both processors normalise the same crop, in RGB or BGR order; so one result is a scale and an offset of the other.
    """
    (own_bgr, own_scale, own_offset), (bgr, scale, offset) = map(_per_channel, (student_processor, teacher_processor))
    flips = own_bgr != bgr
    if flips:
        own_scale, own_offset = own_scale.flip(0), own_offset.flip(0)
    scale = (scale / own_scale).view(3, 1, 1)
    offset = offset.view(3, 1, 1) - own_offset.view(3, 1, 1) * scale
    if not flips and bool((scale == 1).all() and (offset == 0).all()):
        return teacher

    def change(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        pixel_values, *others = args or (kwargs.pop("pixel_values"),)
        pixel_values = pixel_values.flip(1) if flips else pixel_values
        own = pixel_values * scale.to(pixel_values) + offset.to(pixel_values)
        return ((own, *others), kwargs) if args else (args, {**kwargs, "pixel_values": own})

    logger.info("The teacher's images are normalised otherwise than the student's: it gets its own.")
    seeing = copied(teacher, own_kernels=False)
    seeing.register_forward_pre_hook(change, with_kwargs=True)
    return seeing


def _per_channel(processor: Any) -> tuple[bool, Tensor, Tensor]:
    """Whether the channels are BGR, and scale and offset `(3,)` float64 by which pixels 0..255 become values."""
    timms = getattr(processor, "data_config", None)  # of transformers' wrapper of timm models
    if timms is not None:
        factor, mean, std = 1 / 255, timms["mean"], timms["std"]
    elif not hasattr(processor, "do_normalize"):
        raise ValueError(
            f"{type(processor).__name__} has no do_rescale, do_normalize, image_mean and image_std: give an image "
            "processor of transformers, or AfDcdImageProcessor(image_mean=...)."
        )
    else:
        factor = processor.rescale_factor if processor.do_rescale else 1.0
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    mean, std = (torch.as_tensor(each, dtype=torch.float64).expand(3) for each in (mean, std))
    bgr = any(getattr(processor, name, False) for name in ("do_flip_channels", "do_flip_channel_order"))
    return bool(bgr), factor / std, -mean / std


def running_teacher(
    teacher: nn.Module, pixel_values: Tensor, layers: Sequence[str], *, fold: bool, channels_last: bool
) -> nn.Module:
    """The model that runs in the teacher's place: itself, or a copy that computes the same and is faster.

    Both run on `pixel_values` `(B, 3, H, W)`: ValueError where logits or maps differ by more than 1e-4 of the largest.
    """
    if not fold and not channels_last:
        return teacher
    running = copied(teacher, own_kernels=channels_last)
    if fold:
        _fold(running, {layer.partition("[")[0].partition(":")[0] for layer in layers})
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
    """Whether the teacher's pass can end at its last tapped layer, which leaves out its head.

    Not where it is compiled, nor where a later module changes a map in place: both ways are compared on the images.
    """
    if not taps or accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        return False
    pixel_values = pixel_values.to(device_of(teacher))
    with evaluating(teacher), torch.no_grad():
        early = [each.clone() for each in _tensors(run_to_maps(teacher, pixel_values, taps))]
        whole = _tensors(run_tapped(teacher, pixel_values, taps)[1])[-len(early) :]
    return all(map(torch.equal, early, whole))


def _tensors(activations: Activations) -> list[Tensor]:
    logits = [] if activations.logits is None else [activations.logits]
    return [*logits, *maps_of(activations)]


def copied(model: nn.Module, *, own_kernels: bool) -> nn.Module:
    """The modules are copied and the tensors shared, except `(C', C, h, w)` weights that will be changed in place."""
    tensors = [*model.parameters(), *model.buffers()]
    shared = [tensor for tensor in tensors if not (own_kernels and tensor.ndim == 4)]
    # a hook may be the method of an object that collects what it sees: its owner reads that very object
    tables = [table for module in model.modules() for table in (module._forward_hooks, module._forward_pre_hooks)]
    owners = [hook.__self__ for table in tables for hook in table.values() if hasattr(hook, "__self__")]
    return copy.deepcopy(model, {id(each): each for each in (*shared, *owners)})


def _fold(model: nn.Module, tapped: set[str]) -> None:
    """Fold each batch norm right behind a convolution; torch.fx cannot trace models of transformers."""
    pairs: list[Any] = []
    for path, module in model.named_modules():
        children = list(module.named_children())
        for (name, convolution), (_, norm) in zip(children, children[1:], strict=False):
            is_tapped = (f"{path}.{name}" if path else name) in tapped
            # exact types: what another kind of convolution does to its weights is not known
            if type(convolution) is nn.Conv2d and isinstance(norm, NORMS) and not is_tapped:
                pairs.append((convolution, norm))
    if not pairs:
        found = f"found no batch norm right behind a convolution in {type(model).__name__}"
        raise ValueError(f"fold_teacher_batch_norm {found}: leave it out.")
    for convolution, norm in pairs:
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        exact: list[Any] = [value.double() if isinstance(value, Tensor) else value for value in statistics]
        bias = None if convolution.bias is None else convolution.bias.double()
        folded = fuse_conv_bn_weights(convolution.weight.double(), bias, *exact)
        dtype = convolution.weight.dtype
        convolution.weight, convolution.bias = (nn.Parameter(each.detach().to(dtype), False) for each in folded)
        # the module stays where it is, for its hooks and its name
        rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        norm.forward = rest.forward
    count = sum(isinstance(module, NORMS) for module in model.modules())
    logger.info("Folded %d of the teacher's %d batch-norm layers into their convolutions.", len(pairs), count)
