"""Feature maps captured by module path, with forward hooks.

A path is a name from `named_modules`, e.g. `head.features`. If the module returns several maps, an index picks one:
`backbone[-1]` is the backbone's last map. The suffix `:nhwc` reads maps `(B, h, w, C)`, such as a Swin transformer's.
The suffix `:tokens` turns a ViT's tokens `(B, N, C)` into a map: it drops up to 16 tokens before the patch tokens and
infers h and w from the image size, which must be a multiple of the patch size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

from torch import Tensor, nn

from .messages import close_names

_PATH = re.compile(r"^(?P<path>[^\[\]:]*)(?:\[(?P<index>-?\d+)\])?(?P<layout>:nhwc|:tokens)?$")
_MAX_EXTRA_TOKENS = 16  # class token and registers; DINOv3 has five


class Activations(NamedTuple):
    """One model's outputs in one forward pass, as a distillation loss sees them."""

    # `(B, K, h, w)` class scores at the model's own resolution; None if the teacher's forward pass stopped at its maps
    logits: Tensor | None
    feature_map: Tensor | None = None  # `(B, C, h', w')` of the named layer; None if no loss needs one
    further_maps: tuple[Tensor, ...] = ()  # if several layers are named, those of the second, third, ...

    def of_each_layer(self) -> list[Activations]:
        """Return one `Activations` per map, each with the same logits; an empty list if there is no map."""
        maps = [] if self.feature_map is None else [self.feature_map, *self.further_maps]
        return [Activations(self.logits, each) for each in maps]


class LayerTap:
    """A forward hook that records the map of `layer` (see above) in one forward pass, while it is open.

    The hook is registered once, because torch.compile needs hooks to exist before it traces, and does nothing while
    closed, so that a model used elsewhere keeps no map alive. The map is not copied: if the next module works in place,
    as `ReLU(inplace=True)` does, its output is recorded instead, so name that module. A malformed path, or one that
    names no module, is a ValueError.
    """

    def __init__(self, model: nn.Module, layer: str):
        match = _PATH.match(layer)
        if match is None:
            forms = "'a.b.c', or 'a.b.c[-1]' for one of several maps, optionally followed by ':nhwc' or ':tokens'"
            raise ValueError(f"Layer {layer!r} is not a module path; write {forms}.")
        path, modules = match["path"], dict(model.named_modules())
        if path not in modules:
            raise ValueError(f"{type(model).__name__} has no module {path!r}.{close_names(path, modules)}")
        self.layer = layer
        self._index = None if match["index"] is None else int(match["index"])
        self._layout = match["layout"]
        self._image_size: tuple[int, int] | None = None
        self._map: Tensor | None = None
        self._open = False
        self._then: Callable[[], None] | None = None
        self._handles = [modules[path].register_forward_hook(self._record)]
        if self._layout == ":tokens":
            self._handles.append(model.register_forward_pre_hook(self._note_size, with_kwargs=True))

    def open(self, then: Callable[[], None] | None = None) -> None:
        """Discard any recorded map and record the next forward pass; call `then` once the map is recorded."""
        self._map, self._open, self._then = None, True, then

    def pop(self) -> Tensor:
        """Close the tap and return the `(B, C, h, w)` map recorded since `open`."""
        feature_map, self._map, self._open = self._map, None, False
        if feature_map is None:
            raise RuntimeError(f"Layer {self.layer!r} took no part in the forward pass; name one that does.")
        return feature_map

    def remove(self) -> None:
        """Remove the hooks from the model."""
        for handle in self._handles:
            handle.remove()
        self._map = None

    def _record(self, module: nn.Module, args: tuple, output: object) -> None:
        if not self._open:
            return
        if self._map is not None:
            raise RuntimeError(f"Layer {self.layer!r} ran twice in one forward pass; name one that runs once.")
        chosen = _select(output, self._index, self.layer, tokens=self._layout == ":tokens")
        if self._layout == ":tokens":
            self._map = _map_of_tokens(chosen, self._image_size, self.layer)
        else:
            self._map = chosen.permute(0, 3, 1, 2) if self._layout else chosen
        if self._then is not None:
            self._then()

    def _note_size(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        images = args[0] if args else kwargs.get("pixel_values")
        if images is None:
            raise ValueError(
                f"Layer {self.layer!r} needs the size of the images, and {type(model).__name__} was called with "
                f"{', '.join(kwargs) or 'nothing'}; give them first, by position, or as pixel_values=..."
            )
        height, width = images.shape[-2:]
        self._image_size = height, width


def run_tapped(model: nn.Module, pixel_values: Tensor, taps: Sequence[LayerTap]) -> tuple[Any, Activations]:
    """Run a model once; return its outputs, and its logits (if any) with the tapped layers' maps in order."""
    for tap in taps:
        tap.open()
    outputs = model(pixel_values=pixel_values)
    logits = getattr(outputs, "logits", None)
    of_pixels = isinstance(logits, Tensor) and logits.ndim == 4  # unlike an image classifier's
    return outputs, _activations(logits if of_pixels else None, taps)


class _AllRecorded(Exception):
    """Ends a forward pass once all maps are recorded."""


def run_to_maps(model: nn.Module, pixel_values: Tensor, taps: Sequence[LayerTap]) -> Activations:
    """Run a model only until the last tapped layer has its map; the result has no logits.

    Not for compiled models. A map that a later module would change in place is returned unchanged.
    """
    waiting = list(taps)

    def recorded() -> None:
        waiting.pop()
        if not waiting:
            raise _AllRecorded

    for tap in taps:
        tap.open(recorded)
    with suppress(_AllRecorded):
        model(pixel_values=pixel_values)
    return _activations(None, taps)


def layer_names(layers: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return one layer name, several or none as a tuple."""
    if layers is None:
        return ()
    return (layers,) if isinstance(layers, str) else tuple(layers)


@contextmanager
def capture(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record the maps of `layers` in the forward pass made inside the `with` block.

    The yielded dictionary is filled on leaving the block. The hooks are removed then, even after an exception.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.ReLU())
        >>> with capture(net, ["0"]) as maps:
        ...     _ = net(torch.zeros(1, 3, 4, 4))
        >>> tuple(maps["0"].shape)
        (1, 8, 4, 4)
    """
    maps: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        taps = []
        for layer in layers:
            taps.append(LayerTap(model, layer))
            hooks.callback(taps[-1].remove)
            taps[-1].open()
        yield maps
        maps.update({tap.layer: tap.pop() for tap in taps})


def default_layer(model: nn.Module, role: str) -> str:
    """Return the layer to distil by default: the backbone's last map, for our own models.

    For any other model, a `role` ("student" or "teacher"), a ValueError says that the layer must be named.
    """
    if getattr(getattr(model, "config", None), "model_type", None) == "afdcd":
        return "backbone[-1]"
    modules = ", ".join(name for name, _ in model.named_children())
    why = f"{role}_layer must name the map to distil, because the {role} is a {type(model).__name__}"
    raise ValueError(f"{why}: give a path as model.named_modules() prints it, in one of: {modules}.")


def _activations(logits: Tensor | None, taps: Sequence[LayerTap]) -> Activations:
    maps = [tap.pop() for tap in taps]
    return Activations(logits, maps[0] if maps else None, tuple(maps[1:]))


def _map_of_tokens(tokens: Tensor, image_size: tuple[int, int] | None, layer: str) -> Tensor:
    """Reshape the last of `(B, N, C)` tokens to `(B, C, h, w)`: the largest grid of square patches that they fill."""
    if image_size is None:
        raise RuntimeError(f"Layer {layer!r} ran by itself: its grid is inferred from the images, so run the model.")
    count, side = tokens.shape[1], math.gcd(*image_size)
    grids = ([each // patch for each in image_size] for patch in range(1, side + 1) if side % patch == 0)
    grid = next((grid for grid in grids if math.prod(grid) <= count), None)
    if grid is None or count - math.prod(grid) > _MAX_EXTRA_TOKENS:
        size = f"an image of {image_size[0]}x{image_size[1]}"
        raise ValueError(
            f"Layer {layer!r} gives {count} tokens for {size}, which form no grid of square patches with at most "
            f"{_MAX_EXTRA_TOKENS} others before it: make its sides (crop_size) multiples of the model's patch size."
        )
    return tokens[:, count - math.prod(grid) :].mT.unflatten(2, grid)


def _select(output: Any, index: int | None, layer: str, *, tokens: bool) -> Tensor:
    maps = output.to_tuple() if hasattr(output, "to_tuple") else output
    if isinstance(maps, (list, tuple)):
        if index is None and len(maps) != 1:
            raise ValueError(f"Layer {layer!r} returns {len(maps)} values; pick one, e.g. '{layer}[-1]'.")
        index = index or 0
        if not -len(maps) <= index < len(maps):
            raise ValueError(f"Layer {layer!r} returns {len(maps)} values; index {index} is out of range.")
        output = maps[index]
    elif index is not None:
        raise ValueError(f"Layer {layer!r} returns a single value; leave the index out.")
    if not isinstance(output, Tensor) or output.ndim != (3 if tokens else 4):
        found = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        needed = "(B, N, C) tokens are" if tokens else "a (B, C, h, w) map is"
        hint = f", or '{layer}:tokens' if these are a ViT's tokens" if ":" not in layer else ""
        raise ValueError(f"Layer {layer!r} gives {found}, but {needed} needed; name another layer{hint}.")
    return output
