"""The teacher as it runs in a training: folded, laid out channels last, and no further than its maps are needed."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..features import Activations, LayerTap, run_tapped, run_to_maps
from ..model_utils import evaluating
from .distillation import observe

logger = logging.getLogger(__name__)

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d)
# largest difference of logits and maps over their largest value, in float32; measured for ResNets: 2e-6
TOLERANCE = 1e-4


def running_teacher(
    teacher: nn.Module, pixel_values: Tensor, layers: Sequence[str], *, fold: bool, channels_last: bool
) -> nn.Module:
    """The model that runs in the teacher's place: itself, or a copy that computes the same and is faster.

    The teacher is left as it is. The copy shares all weights that are the same in both, so that only folded and
    re-ordered ones take memory. Hooks on the teacher's layers fire in the copy as well.

    Args:
        teacher: on its device.
        pixel_values: `(B, 3, H, W)`, any batch; both models run on it and are compared.
        layers: the layers that are distilled.
        fold: put each batch norm that follows a convolution into the convolution's weights.
        channels_last: lay out the weights of convolutions channels last.

    Raises:
        ValueError: there is nothing to fold, or logits or maps differ by more than 1e-4 of their largest value.
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
                f"(largest value {largest:.2g}; at most {TOLERANCE:.0e} of it is rounding): leave out "
                "fold_teacher_batch_norm and, if that is not enough, channels_last."
            )
    return running


def stops_early(teacher: nn.Module, pixel_values: Tensor, taps: Sequence[LayerTap], accelerator: Accelerator) -> bool:
    """Whether the teacher's pass can end at its last tapped layer, which leaves out its head.

    Not where it is compiled, and not where a later module changes a map in place: the maps of both ways are compared on
    the given images `(B, 3, H, W)`, and have to be equal to the bit.
    """
    if not taps or accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        return False
    pixel_values = pixel_values.to(next(teacher.parameters()).device)
    with evaluating(teacher), torch.no_grad():
        early = [each.clone() for each in _tensors(run_to_maps(teacher, pixel_values, taps))]
        whole = _tensors(run_tapped(teacher, pixel_values, taps)[1])[-len(early) :]
    return all(map(torch.equal, early, whole))


def compile_like_student(model: nn.Module, accelerator: Accelerator) -> Any:
    """The model compiled with the settings that accelerate compiles the student with; as it is without any."""
    plugin = accelerator.state.dynamo_plugin
    return model if plugin.backend == DynamoBackend.NO else torch.compile(model, **plugin.to_kwargs())


def _tensors(activations: Activations) -> list[Tensor]:
    logits = [] if activations.logits is None else [activations.logits]
    return [*logits, *(each.feature_map for each in activations.of_each_layer() if each.feature_map is not None)]


def copied(model: nn.Module, *, own_kernels: bool) -> nn.Module:
    """The modules are copied and the tensors shared, except `(C', C, h, w)` weights that will be changed in place."""
    tensors = [*model.parameters(), *model.buffers()]
    shared = [tensor for tensor in tensors if not (own_kernels and tensor.ndim == 4)]
    # a hook may be the method of an object that collects what it sees: its owner reads that very object
    hooks = [hook for module in model.modules() for hook in (*module._forward_hooks.values(),
             *module._forward_pre_hooks.values())]  # fmt: skip
    owners = [hook.__self__ for hook in hooks if hasattr(hook, "__self__")]
    return copy.deepcopy(model, {id(each): each for each in (*shared, *owners)})


def _fold(model: nn.Module, tapped: set[str]) -> None:
    """Fold each batch norm that stands right behind a convolution in the same module.

    torch.fx, with which torch and timm fuse, cannot trace models of transformers. Where two neighbours do not run one
    after the other, the comparison of the outputs shows it.
    """
    pairs: list[Any] = []
    for path, module in model.named_modules():
        children = list(module.named_children())
        for (name, convolution), (_, norm) in zip(children, children[1:], strict=False):
            is_tapped = (f"{path}.{name}" if path else name) in tapped
            # exact types: what another kind of convolution does to its weights is not known
            if type(convolution) is nn.Conv2d and isinstance(norm, NORMS) and not is_tapped:
                pairs.append((convolution, norm))
    if not pairs:
        raise ValueError(
            f"fold_teacher_batch_norm found no batch norm right behind a convolution in {type(model).__name__}: "
            "leave it out."
        )
    for convolution, norm in pairs:
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        exact: list[Any] = [value.double() if isinstance(value, Tensor) else value for value in statistics]
        bias = None if convolution.bias is None else convolution.bias.double()
        folded = fuse_conv_bn_weights(convolution.weight.double(), bias, *exact)
        dtype = convolution.weight.dtype
        convolution.weight, convolution.bias = (nn.Parameter(each.detach().to(dtype), False) for each in folded)
        # the module stays where it is, for its hooks and its name
        norm.forward = nn.Sequential(norm.drop, norm.act).forward if isinstance(norm, BatchNormAct2d) else _unchanged
    found = sum(isinstance(module, NORMS) for module in model.modules())
    logger.info("Folded %d of the teacher's %d batch-norm layers into their convolutions.", len(pairs), found)


def _unchanged(features: Tensor) -> Tensor:
    return features
