"""Feature maps captured from models by module path, with forward hooks.

A path is what `named_modules` prints, e.g. `head.features`. Where the module returns several maps, an index picks one:
`backbone[-1]` is the last map of the backbone. `:nhwc` behind the path takes maps `(B, h, w, C)`, as of Swin
transformers. `:tokens` makes a map of a ViT's tokens `(B, N, C)`: it drops up to 16 that precede those of patches, and
finds h and w from the size of the images, which the patch's side divides.
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
_MOST_EXTRA_TOKENS = 16  # class token and registers; DINOv3 has five


class Activations(NamedTuple):
    """What a distillation loss sees of one model in one forward pass."""

    # `(B, K, h, w)` class scores at the model's own resolution; None of a teacher that was run no further than its maps
    logits: Tensor | None
    feature_map: Tensor | None = None  # `(B, C, h', w')` of the named layer; None where no loss asks for one
    further_maps: tuple[Tensor, ...] = ()  # where several layers are named, those of the second, third, ...

    def of_each_layer(self) -> list[Activations]:
        """The same logits with one map at a time; empty where there is no map."""
        maps = [] if self.feature_map is None else [self.feature_map, *self.further_maps]
        return [Activations(self.logits, each) for each in maps]


class LayerTap:
    """A forward hook that keeps the map of `layer` (see above) while it is open, for one forward pass.

    The hook is registered once (torch.compile wants hooks to exist before it traces) and does nothing while closed, so
    that a model used elsewhere keeps no map alive. The map is kept as it is, not copied: where the next module works
    in place (`ReLU(inplace=True)`), it is that module's output that is seen; name that module instead. A path that is
    malformed or names no module is a ValueError.
    """

    def __init__(self, model: nn.Module, layer: str):
        match = _PATH.match(layer)
        if match is None:
            forms = "'a.b.c', or 'a.b.c[-1]' for one of several maps, perhaps with ':nhwc' or ':tokens' behind it"
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
        """Forget what was kept and record the next forward pass; call `then` when the map is there."""
        self._map, self._open, self._then = None, True, then

    def pop(self) -> Tensor:
        """Close, and hand over the `(B, C, h, w)` map of the pass since `open`."""
        feature_map, self._map, self._open = self._map, None, False
        if feature_map is None:
            raise RuntimeError(f"Layer {self.layer!r} took no part in the forward pass; name one that does.")
        return feature_map

    def remove(self) -> None:
        """Take the hook off the model."""
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
    """Run a model once: its outputs, and its logits, if it has any, with the maps of the tapped layers in order."""
    for tap in taps:
        tap.open()
    outputs = model(pixel_values=pixel_values)
    logits = getattr(outputs, "logits", None)
    of_pixels = isinstance(logits, Tensor) and logits.ndim == 4  # not those of a classifier of images
    return outputs, _activations(logits if of_pixels else None, taps)


class _AllSeen(Exception):
    """Ends a forward pass of which nothing more is wanted."""


def run_to_maps(model: nn.Module, pixel_values: Tensor, taps: Sequence[LayerTap]) -> Activations:
    """Run a model until the last of its tapped layers has its map, and no further: there are no logits.

    Not for compiled models. A map that a later module changes in place is the unchanged one here.
    """
    waiting = list(taps)

    def seen() -> None:
        waiting.pop()
        if not waiting:
            raise _AllSeen

    for tap in taps:
        tap.open(seen)
    with suppress(_AllSeen):
        model(pixel_values=pixel_values)
    return _activations(None, taps)


def layer_names(layers: str | Sequence[str] | None) -> tuple[str, ...]:
    """One name, several or none, as a tuple."""
    if layers is None:
        return ()
    return (layers,) if isinstance(layers, str) else tuple(layers)


@contextmanager
def capture(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record the maps of `layers` in the forward pass made inside the `with` block.

    The dictionary yielded is filled on leaving the block; the hooks are removed then, also after an exception.

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
    """The layer distilled where none is named: the last map of our own models' backbone.

    A ValueError says that the layer of another kind of model, a `role` ("student" or "teacher"), must be named.
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
    """The last of `(B, N, C)` tokens as `(B, C, h, w)`: the largest grid of square patches that they are enough for."""
    if image_size is None:
        raise RuntimeError(f"Layer {layer!r} ran by itself: its grid follows from the images that the model gets.")
    count, side = tokens.shape[1], math.gcd(*image_size)
    grids = ([each // patch for each in image_size] for patch in range(1, side + 1) if side % patch == 0)
    grid = next((grid for grid in grids if math.prod(grid) <= count), None)
    if grid is None or count - math.prod(grid) > _MOST_EXTRA_TOKENS:
        size = f"an image of {image_size[0]}x{image_size[1]}"
        raise ValueError(
            f"Layer {layer!r} gives {count} tokens for {size}, which are no grid of square patches with at most "
            f"{_MOST_EXTRA_TOKENS} others before it: its sides (crop_size) must be multiples of the model's patch size."
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
