"""Models of other libraries made callable as ours are: `model(pixel_values=...).logits`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

from .models.loading import finds_masks, with_logits
from .models.modeling_afdcd import AfDcdOutput


class WrappedSegmenter(nn.Module):
    """What `as_segmenter` returns; the model itself is `module`, so its layers are named `module.<path>`."""

    main_input_name = "pixel_values"

    def __init__(self, module: nn.Module, config: PreTrainedConfig | None, output: str | int | None):
        super().__init__()
        self.module = module
        self.config = config
        self._output = output
        if "settings_for" in vars(module):  # what inference asks a model of fixed size
            vars(self)["settings_for"] = vars(module)["settings_for"]

    def forward(self, pixel_values: Tensor) -> AfDcdOutput:
        """Run the model on `(B, 3, H, W)`."""
        outputs = self.module(pixel_values)
        logits = _logits(outputs, self._output, type(self.module).__name__)
        expected = None if self.config is None else self.config.num_labels
        if expected is not None and logits.shape[1] != expected:
            raise ValueError(f"{type(self.module).__name__} gives {logits.shape[1]} classes; num_labels is {expected}.")
        auxiliary = outputs.get("aux") if isinstance(outputs, Mapping) else None
        return AfDcdOutput(logits=logits, aux_logits=auxiliary if self.training else None)


def as_segmenter(
    module: nn.Module,
    *,
    num_labels: int | None = None,
    id2label: Mapping[int, str] | None = None,
    output: str | int | None = None,
) -> WrappedSegmenter:
    """Wrap a model of segmentation_models_pytorch, torchvision or your own, as a teacher or as a student.

    Args:
        module: takes images `(B, 3, H, W)`, normalised, as its one positional argument. Returns class scores
            `(B, K, h, w)` before any softmax: as a tensor, as an attribute or key "logits", or under the key "out"
            (torchvision; "aux" beside it is the auxiliary head's). EoMT, Mask2Former and MaskFormer of transformers
            give the logarithm of their class scores, and `num_labels` and `id2label` of their configuration.
        num_labels: K, to be checked against what the model gives.
        id2label: class names by id; with them, other names of the teacher's classes are found before training.
        output: key or index of the scores in a mapping or tuple that has them elsewhere.

    Returns:
        A module with `module` inside: `wrapped(pixel_values=...).logits`.

    Raises:
        ValueError: `num_labels` and `id2label` do not agree; in `forward`, no scores where they are expected.

    Example:
        >>> import torch
        >>> wrapped = as_segmenter(torch.nn.Conv2d(3, 4, 1))
        >>> tuple(wrapped(pixel_values=torch.zeros(1, 3, 8, 8)).logits.shape)
        (1, 4, 8, 8)
    """
    config = getattr(module, "config", None) if finds_masks(with_logits(module)) else None
    if id2label is not None:
        expected = range(num_labels or len(id2label))
        if sorted(id2label) != list(expected):
            named = f"id2label names the classes {sorted(id2label)}"
            raise ValueError(f"{named}; expected a name for each of 0 to {expected[-1]}.")
        config = PreTrainedConfig(id2label=dict(id2label), label2id={name: i for i, name in id2label.items()})
    elif num_labels is not None:
        config = PreTrainedConfig(num_labels=num_labels)
    return WrappedSegmenter(module, config, output)


def _logits(outputs: Any, key: str | int | None, model: str) -> Tensor:
    logits = outputs
    if key is not None:
        try:
            logits = outputs[key]
        except (KeyError, IndexError, TypeError):
            logits = None
    elif isinstance(outputs, Mapping):
        logits = outputs.get("logits", outputs.get("out"))
    else:
        logits = getattr(outputs, "logits", outputs)
    if isinstance(logits, Tensor) and logits.ndim == 4:
        return logits
    found = type(outputs).__name__
    if isinstance(outputs, Mapping):
        found += f" with the keys {', '.join(map(str, outputs))}"
    elif isinstance(outputs, Tensor):
        found += f" of shape {tuple(outputs.shape)}"
    chosen = "" if key is None else f" (output={key!r})"
    wanted = "(B, K, h, w) class scores" + chosen
    raise ValueError(
        f"{model} returns a {found}, with no {wanted}; give its key or index: as_segmenter(..., output=...)."
    )
