"""Adapters that give other libraries' models our interface: `model(pixel_values=...).logits`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

from .models.loading import is_mask_classifier, with_logits
from .models.modeling_afdcd import AfDcdOutput


class WrappedSegmenter(nn.Module):
    """The result of `as_segmenter`. The wrapped model is `module`, so its layers are named `module.<path>`."""

    main_input_name = "pixel_values"

    def __init__(self, module: nn.Module, config: PreTrainedConfig | None, output: str | int | None):
        super().__init__()
        self.module = module
        self.config = config
        self._output = output
        if "settings_for" in vars(module):  # read by inference for models of fixed input size
            vars(self)["settings_for"] = vars(module)["settings_for"]

    def forward(self, pixel_values: Tensor) -> AfDcdOutput:
        """Run the model on `(B, 3, H, W)`."""
        outputs = self.module(pixel_values)
        logits = _logits(outputs, self._output, type(self.module).__name__)
        expected = None if self.config is None else self.config.num_labels
        if expected is not None and logits.shape[1] != expected:
            raise ValueError(
                f"{type(self.module).__name__} gives {logits.shape[1]} classes, not num_labels={expected}."
            )
        auxiliary = outputs.get("aux") if isinstance(outputs, Mapping) else None
        return AfDcdOutput(logits=logits, aux_logits=auxiliary if self.training else None)


def as_segmenter(
    module: nn.Module,
    *,
    num_labels: int | None = None,
    id2label: Mapping[int, str] | None = None,
    output: str | int | None = None,
) -> WrappedSegmenter:
    """Wrap a model from segmentation_models_pytorch or torchvision, or your own, as a teacher or student.

    Args:
        module: takes normalised images `(B, 3, H, W)` as its only positional argument and returns class scores
            `(B, K, h, w)` before the softmax: as a tensor, as an attribute or key "logits", or under the key "out"
            (torchvision, whose "aux" holds the auxiliary head's scores). For EoMT, Mask2Former and MaskFormer from
            transformers, logits are the logarithm of class scores, and the configuration gives the classes.
        num_labels: K, checked against the model's output.
        id2label: class names by id, which are compared with the other model's before training.
        output: key or index of the scores, for a mapping or tuple that holds them elsewhere.

    Returns:
        The wrapped model, called as `wrapped(pixel_values=...).logits`.

    Raises:
        ValueError: `num_labels` and `id2label` disagree; in `forward`, no scores where they are expected.

    Example:
        >>> import torch
        >>> wrapped = as_segmenter(torch.nn.Conv2d(3, 4, 1))
        >>> tuple(wrapped(pixel_values=torch.zeros(1, 3, 8, 8)).logits.shape)
        (1, 4, 8, 8)
    """
    config = getattr(module, "config", None) if is_mask_classifier(with_logits(module)) else None
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
        f"{model} returns a {found}, with no {wanted}; give their key or index: as_segmenter(..., output=...)."
    )
