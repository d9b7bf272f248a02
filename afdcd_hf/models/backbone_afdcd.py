"""A timm model as a backbone, which returns `(B, C, h, w)` maps at exactly the requested output stride."""

from __future__ import annotations

import difflib
import os
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn


class Backbone(nn.Module):
    """The feature maps of a timm model, shallow to deep, channels first.

    Args:
        name: timm model name.
        output_stride: stride of the last map; for models that cannot be dilated, it must be their own.
        pretrained: True downloads timm's weights; a path reads a local `.safetensors` file of the timm model.
        kwargs: passed to `timm.create_model`.

    Raises:
        ValueError: an unknown name, a model without feature maps or that stride, or another model's weights.
        FileNotFoundError: `pretrained` names a file that does not exist.
    """

    def __init__(self, name: str, output_stride: int, pretrained: bool | str | os.PathLike = False, **kwargs: Any):
        super().__init__()
        if not timm.is_model(name):
            close = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)) or "none"
            raise ValueError(f"timm has no model named {name!r}. Close names: {close}. timm.list_models() lists all.")
        if isinstance(pretrained, bool):
            try:
                self.net = _create(name, output_stride, pretrained=pretrained, **kwargs)
            except OSError as error:
                raise OSError(
                    f"The ImageNet weights of {name!r} cannot be downloaded from the Hub: {str(error).splitlines()[0]} "
                    "Set pretrained_backbone to a .safetensors file of the timm model, or to false for random weights."
                ) from error
        else:
            self.net = _create_from_file(name, output_stride, os.fspath(pretrained), kwargs)
        feature_info: Any = self.net.feature_info
        self.channels: list[int] = feature_info.channels()
        self.strides: list[int] = feature_info.reduction()
        # Hierarchical transformers return (B, h, w, C); timm says so in the enum Format.NHWC.
        self._channels_last = getattr(getattr(self.net, "output_fmt", None), "value", "NCHW") == "NHWC"
        self.gradient_checkpointing = False  # the name that transformers looks for
        self._hooks: list = []
        if (given := self.strides[-1]) != output_stride:
            way = f"Set output_stride={given}" if given in (8, 16, 32) else "Limit it with backbone_kwargs out_indices"
            raise ValueError(
                f"timm's {name!r} cannot give maps at output_stride={output_stride}: its last map has stride {given}. "
                f"{way}, or take a backbone that timm can dilate (ResNet, MobileNet, EfficientNet, ConvNeXt, ...)."
            )

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        maps = self.net(pixel_values)
        return [m.permute(0, 3, 1, 2).contiguous() for m in maps] if self._channels_last else list(maps)

    def set_gradient_checkpointing(self, enable: bool) -> None:
        """Turn gradient checkpointing on or off: keep only segments' inputs, recompute the rest in the backward pass.

        timm defines the segments: blocks in MobileNets and EfficientNets; whole stages, except the last, in ResNets,
        ConvNeXts and Swins. ValueError if timm does not offer it for the model.
        """
        try:
            inner: Any = self.net if hasattr(self.net, "set_grad_checkpointing") else self.net.model  # within a wrapper
            if isinstance(inner, nn.ModuleDict) and len(inner) == 1:
                raise AssertionError("it is a single segment")  # timm would silently keep everything
            inner.set_grad_checkpointing(enable)
        except (AssertionError, AttributeError) as error:
            if enable:
                raise ValueError(f"timm offers no gradient checkpointing for this backbone: {error}") from error
        self.gradient_checkpointing = enable
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for layer in self.net.modules() if enable else ():
            if getattr(layer, "running_mean", None) is not None:
                self._hooks.append(layer.register_forward_pre_hook(_keep_statistics))
                # always_call: recomputation stops with an exception once it has the last tensor
                self._hooks.append(layer.register_forward_hook(_restore_statistics, always_call=True))


def _keep_statistics(layer: Any, args: tuple) -> None:
    """Save batch norm's running statistics, which recomputation must not update a second time."""
    if layer.training and torch._C._current_graph_task_id() != -1:  # in a backward pass: torch's own test
        layer._kept = [buffer.clone() for buffer in layer.buffers(recurse=False)]


def _restore_statistics(layer: Any, args: tuple, output: Tensor) -> None:
    for buffer, kept in zip(layer.buffers(recurse=False), layer.__dict__.pop("_kept", ()), strict=False):
        buffer.copy_(kept)


def _create_from_file(name: str, output_stride: int, path: str, kwargs: dict) -> nn.Module:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No backbone weights at {path!r}; give a .safetensors file of the timm model.")
    if not path.endswith(".safetensors"):
        raise ValueError(f"Backbone weights {path!r} must be a .safetensors file under timm's tensor names.")
    try:
        net = _create(name, output_stride, pretrained=True, pretrained_cfg_overlay={"file": path}, **kwargs)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"Backbone weights {path!r} do not fit timm's {name!r}: {error}") from error
    # timm only logs missing tensors. It writes `stages.0` as `stages_0` in feature models, and renames parts of some
    # files while loading, so a tensor was loaded if its name or its values are in the file.
    loaded: set[object] = set()
    for key, tensor in load_file(path).items():
        loaded |= {key.replace(".", "_"), _fingerprint(tensor)}
    weights = {key: tensor for key, tensor in net.state_dict().items() if tensor.is_floating_point()}
    if missing := [key for key in weights if loaded.isdisjoint((key.replace(".", "_"), _fingerprint(weights[key])))]:
        raise ValueError(
            f"Backbone weights {path!r} do not fit timm's {name!r}: {len(missing)} of {len(weights)} tensors "
            f"are missing, such as {missing[0]!r}. Give the file of exactly this model."
        )
    return net


def _fingerprint(tensor: Tensor) -> tuple:
    return (*tensor.shape, float(tensor.double().sum()))


def _create(name: str, output_stride: int, **kwargs: Any) -> nn.Module:
    refusal = None
    if output_stride != 32:
        try:
            return timm.create_model(name, features_only=True, output_stride=output_stride, **kwargs)
        except (TypeError, AssertionError, NotImplementedError) as error:
            refusal = error  # most of these models still work at their own stride, which `Backbone` checks
    try:
        return timm.create_model(name, features_only=True, **kwargs)
    except (TypeError, AssertionError, NotImplementedError, AttributeError, RuntimeError) as error:
        raise ValueError(f"timm cannot build {name!r} as a backbone with {kwargs}: {error}") from (refusal or error)
