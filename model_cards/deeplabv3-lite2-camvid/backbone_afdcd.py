"""A timm model as a backbone: a list of `(B, C, h, w)` maps, at the output stride asked for or not at all."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import timm
from safetensors.torch import load_file
from torch import Tensor, nn


class Backbone(nn.Module):
    """The feature maps of a timm model, shallow to deep, channels first.

    Args:
        name: timm model name.
        output_stride: stride of the last map. Networks that cannot be dilated keep their own stride; asking them for
            another one is an error.
        pretrained: True fetches timm's own weights, a path reads a local `.safetensors` file of that timm model.
        kwargs: passed to `timm.create_model`.

    Raises:
        ValueError: unknown name, a model without feature maps, a stride that it cannot give, or a file that does not
            hold its weights.
        FileNotFoundError: `pretrained` names a file that is not there.
    """

    def __init__(self, name: str, output_stride: int, pretrained: bool | str | os.PathLike = False, **kwargs: Any):
        super().__init__()
        _check_name(name)
        if isinstance(pretrained, bool):
            self.net = _create(name, output_stride, {**kwargs, "pretrained": pretrained})
        else:
            self.net = _create_from_file(name, output_stride, os.fspath(pretrained), kwargs)
        feature_info: Any = self.net.feature_info
        self.channels: list[int] = feature_info.channels()
        self.strides: list[int] = feature_info.reduction()
        # Hierarchical transformers return (B, h, w, C); timm says so in the enum Format.NHWC.
        self._channels_last = getattr(getattr(self.net, "output_fmt", None), "value", "NCHW") == "NHWC"
        self.gradient_checkpointing = False  # transformers asks for it under this name
        self._recomputation = StatisticsGuard(self.net)
        if self.strides[-1] != output_stride:
            raise ValueError(_stride_message(name, output_stride, self.strides[-1]))

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        with self._recomputation.first_run() if self.gradient_checkpointing else nullcontext():
            maps = self.net(pixel_values)
        return [m.permute(0, 3, 1, 2).contiguous() for m in maps] if self._channels_last else list(maps)

    def set_gradient_checkpointing(self, enable: bool) -> None:
        """Keep only the inputs of the network's parts and compute the rest anew in the backward pass, or stop that.

        What a part is, timm decides: a block in MobileNets and EfficientNets; a whole stage, except the last, in
        ResNets, ConvNeXts and Swins.

        Raises:
            ValueError: timm has no such thing for this network.
        """
        try:
            # the wrapper of some transformers lacks the method; the network within has it
            inner: Any = self.net if hasattr(self.net, "set_grad_checkpointing") else self.net.model
            if isinstance(inner, nn.ModuleDict) and len(inner) == 1:
                raise AssertionError("it is one single part")  # timm would say nothing and keep everything
            inner.set_grad_checkpointing(enable)
        except (AssertionError, AttributeError) as error:
            if enable:
                raise ValueError(f"timm offers no gradient checkpointing for this backbone: {error}") from error
        self.gradient_checkpointing = enable
        self._recomputation.watch(enable)


class StatisticsGuard:
    """Keeps batch norm's running statistics from being updated twice per step under gradient checkpointing.

    The backward pass runs the checkpointed parts a second time, in training mode. Whatever normalisation layer runs
    outside `first_run` is taken to be in such a second run, and gets its statistics back afterwards.

    Args:
        net: the network with the layers.
    """

    def __init__(self, net: nn.Module):
        self._layers = [module for module in net.modules() if getattr(module, "running_mean", None) is not None]
        self._handles: list = []
        self._in_first_run = False
        self._kept: dict[nn.Module, list[Tensor]] = {}

    def watch(self, enable: bool) -> None:
        """Put hooks on the layers, or take them off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for layer in self._layers if enable else ():
            self._handles.append(layer.register_forward_pre_hook(self._keep))
            # always: recomputation ends with an exception as soon as the last tensor is there
            self._handles.append(layer.register_forward_hook(self._give_back, always_call=True))

    @contextmanager
    def first_run(self) -> Iterator[None]:
        """Inside, statistics are updated as usual."""
        self._in_first_run = True
        try:
            yield
        finally:
            self._in_first_run = False

    def _keep(self, layer: nn.Module, args: tuple) -> None:
        if not self._in_first_run and layer.training:
            self._kept[layer] = [buffer.clone() for buffer in layer.buffers(recurse=False)]

    def _give_back(self, layer: nn.Module, args: tuple, output: Tensor) -> None:
        for buffer, kept in zip(layer.buffers(recurse=False), self._kept.pop(layer, ()), strict=False):
            buffer.copy_(kept)


def _check_name(name: str) -> None:
    if timm.is_model(name):
        return
    close = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
    hint = f" Close names: {', '.join(close)}." if close else ""
    raise ValueError(f"timm {timm.__version__} has no model named {name!r}.{hint} `timm.list_models()` lists them all.")


def _create_from_file(name: str, output_stride: int, path: str, kwargs: dict) -> nn.Module:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No backbone weights at {path!r}; give a .safetensors file of the timm model.")
    if not path.endswith(".safetensors"):
        raise ValueError(f"Backbone weights {path!r} must be a .safetensors file under timm's tensor names.")
    try:
        net = _create(name, output_stride, {**kwargs, "pretrained": True, "pretrained_cfg_overlay": {"file": path}})
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"Backbone weights {path!r} do not fit timm's {name!r}: {error}") from error
    lacking = _lacking_tensors(net, load_file(path))
    if lacking:
        raise ValueError(
            f"Backbone weights {path!r} lack {len(lacking)} tensors of timm's {name!r}, e.g. {lacking[0]!r}: give the "
            "file of that very model."
        )
    return net


def _lacking_tensors(net: nn.Module, stored: dict[str, Tensor]) -> list[str]:
    """Names of the network's weights and statistics that are not in the file: timm only logs them."""
    # Feature networks write `stages.0` as `stages_0`, and timm renames parts of some files while it loads them: a
    # tensor is there under its name or by its values.
    names = {name.replace(".", "_") for name in stored}
    wanted = {name: tensor for name, tensor in net.state_dict().items() if tensor.is_floating_point()}
    unnamed = {name: tensor for name, tensor in wanted.items() if name.replace(".", "_") not in names}
    values = {_fingerprint(tensor) for tensor in stored.values()} if unnamed else set()
    return [name for name, tensor in unnamed.items() if _fingerprint(tensor) not in values]


def _fingerprint(tensor: Tensor) -> tuple:
    return (*tensor.shape, float(tensor.double().sum()))


def _create(name: str, output_stride: int, kwargs: dict) -> nn.Module:
    if output_stride != 32:
        try:
            return timm.create_model(name, features_only=True, output_stride=output_stride, **kwargs)
        except (TypeError, AssertionError, NotImplementedError) as error:
            refusal = error  # most such models still work at their own stride: try that, and compare
    else:
        refusal = None
    try:
        return timm.create_model(name, features_only=True, **kwargs)
    except (TypeError, AssertionError, NotImplementedError, AttributeError, RuntimeError) as error:
        raise ValueError(f"timm cannot build {name!r} as a backbone with {kwargs}: {error}") from (refusal or error)


def _stride_message(name: str, wanted: int, given: int) -> str:
    return (
        f"timm's {name!r} cannot give maps at output_stride={wanted}: its last map has stride {given}. "
        + (f"Set output_stride={given}, " if given in (8, 16, 32) else "Limit it with backbone_kwargs out_indices, ")
        + "or take a backbone that timm can dilate (ResNet, MobileNet, EfficientNet, RegNet, ConvNeXt, ...)."
    )
