"""The task loss on labels, the same for method and baseline.

Scores are `(B, K, H, W)` logits at the label's size, labels `(B, H, W)` int64; pixels of `ignore_index` do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model_utils import align_corners_of, ignore_index_of
from ..models.modeling_afdcd import segmentation_cross_entropy, upsample_logits


def hard_pixel_cross_entropy(
    scores: Tensor,
    labels: Tensor,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    threshold: float = 0.7,
    at_least: float = 1 / 16,
) -> Tensor:
    """Compute the cross entropy of hard pixels only (OHEM, Shrivastava et al., arXiv 1604.03540).

    A pixel is hard if its class has a probability of at most `threshold`, or if it is in the hardest share `at_least`
    of the pixels. Class weights `(K,)` scale each pixel's loss; the mean is over pixels.
    """
    counted = labels != ignore_index
    if not counted.any():
        return scores.sum() * 0
    losses = F.cross_entropy(scores, labels, ignore_index=ignore_index, reduction="none")[counted]
    probability = (-losses.detach()).exp()
    smallest = max(1, int(at_least * probability.numel()))
    hard = probability <= probability.kthvalue(smallest).values.clamp(min=threshold)
    if class_weights is not None:
        losses = losses * class_weights[labels[counted]]
    return losses[hard].mean()


def _probabilities(scores: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return the probabilities `(N, K)` and classes `(N,)` of the N pixels that count."""
    counted = labels != ignore_index
    return scores.softmax(dim=1).movedim(1, -1)[counted], labels[counted]


def dice_loss(scores: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Compute 1 - soft Dice of the batch, mean over the classes in its labels (Milletari et al., arXiv 1606.04797)."""
    probability, classes = _probabilities(scores, labels, ignore_index)
    if not len(classes):
        return scores.sum() * 0
    truth = F.one_hot(classes, scores.shape[1]).to(probability)
    pixels = truth.sum(dim=0)
    dice = 2 * (probability * truth).sum(dim=0) / (probability.sum(dim=0) + pixels)
    return 1 - dice[pixels > 0].mean()


def lovasz_loss(scores: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Compute Lovász-softmax of the batch, mean over the classes in its labels (Berman et al., arXiv 1705.08790)."""
    probability, truth = _probabilities(scores, labels, ignore_index)
    losses = [scores.sum() * 0] if not len(truth) else []
    for index in truth.unique():
        inside = (truth == index).to(probability)
        errors, order = (inside - probability[:, index]).abs().sort(descending=True)
        inside = inside[order]
        jaccard = 1 - (inside.sum() - inside.cumsum(0)) / (inside.sum() + (1 - inside).cumsum(0))
        losses.append(errors @ jaccard.diff(prepend=jaccard.new_zeros(1)))
    return torch.stack(losses).mean()


# the values of `task_loss`, one or several joined by "+"
TASK_LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": segmentation_cross_entropy,
    "ohem": hard_pixel_cross_entropy,
    "dice": dice_loss,
    "lovasz": lovasz_loss,
}
TAKE_WEIGHTS = {"cross_entropy", "ohem"}  # accept class weights


class TaskLoss(nn.Module):
    """L_task, the same for method and baseline, at the label's size, plus the auxiliary head's term.

    Args:
        weight: factor of the main term.
        aux_weight: factor of the auxiliary term, for models that return `aux_logits`.
        ignore_index: label that is not counted.
        align_corners: how logits are upsampled to the label's size; True for our models, as in the released code.
        kind: names of `TASK_LOSSES` joined by "+", whose losses are summed.
        class_weights: one factor per class, for "cross_entropy" and "ohem".

    Raises:
        ValueError: an unknown name, or class weights that none of the losses accepts.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        weight: float = 1.0,
        aux_weight: float = 0.4,
        ignore_index: int = 255,
        align_corners: bool = True,
        kind: str = "cross_entropy",
        class_weights: Sequence[float] | None = None,
    ):
        super().__init__()
        self.weight, self.aux_weight = weight, aux_weight
        self.ignore_index, self.align_corners = ignore_index, align_corners
        self.kinds = [name.strip() for name in kind.split("+")]
        if unknown := [name for name in self.kinds if name not in TASK_LOSSES]:
            known = ", ".join(TASK_LOSSES)
            raise ValueError(f"task_loss={kind!r}: unknown {unknown[0]!r}; known: {known}, joined by '+'.")
        if class_weights is not None and not TAKE_WEIGHTS & set(self.kinds):
            raise ValueError(f"class_weights have no effect on task_loss={kind!r}: add cross_entropy, or drop them.")
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    @classmethod
    def for_model(cls, model: nn.Module, args: Any, ignore_index: int | None = None) -> TaskLoss:
        """Build the loss from a run's arguments, the model's upsampling, and `ignore_index`, else the model's."""
        weights, count = args.class_weights, getattr(getattr(model, "config", None), "num_labels", None)
        if weights is not None and count not in (None, len(weights)):
            raise ValueError(f"class_weights holds {len(weights)} numbers for {count} classes: give one each.")
        ignore_index = ignore_index_of(model) if ignore_index is None else ignore_index
        align_corners = align_corners_of(model)
        return cls(args.task_weight, args.aux_weight, ignore_index, align_corners, args.task_loss, weights)

    def forward(self, outputs: Any, labels: Tensor) -> dict[str, Tensor]:
        """Compute the weighted terms "task" and, for `outputs.aux_logits`, "auxiliary", in float32 even under autocast.

        `outputs` has `.logits` `(B, K, h, w)`; `labels` are `(B, H, W)` int64.
        """
        terms = {"task": self.weight * self._loss(outputs.logits, labels)}
        if (aux_logits := getattr(outputs, "aux_logits", None)) is not None:
            terms["auxiliary"] = self.aux_weight * self._loss(aux_logits, labels)
        return terms

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            scores = upsample_logits(logits.float(), labels.shape[-2:], self.align_corners)
            losses = []
            for kind in self.kinds:
                weights: Any = {"class_weights": self.class_weights} if kind in TAKE_WEIGHTS else {}
                losses.append(TASK_LOSSES[kind](scores, labels, self.ignore_index, **weights))
            return torch.stack(losses).sum()
