"""The released training code's computations in plain eager PyTorch: the baseline of `benchmark.py`.

Contrast and distillation step, rewritten: the full similarity matrix of all patches, a boolean gather of the
negatives, concatenation with the positive, cross entropy; teacher without gradients, student, cross entropy of both
heads, KL divergence of the logits, align - mask - dense projector, sum of squares, clipping of the loss's weights, SGD.
The patches are the batch dimension of `cdist`: on CUDA its backward with p = 1 fills a buffer of (patches, V, V, C/M)
numbers, as in the released code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCH = 4


def released_contrast(
    student: Tensor, teacher: Tensor, *, channel_groups: int = 16, temperature: float = 0.07
) -> Tensor:
    """Compute omni-contrast with the L1 distance and negatives from the other groups; equals `omni_contrast`.

    Args:
        student: `(B, C, H, W)` float32; incomplete 4×4 patches at the right and bottom are dropped.
        teacher: like `student`.
        channel_groups: M, divides C.
        temperature: τ.
    """
    anchors, candidates = (_patch_vectors(maps, channel_groups) for maps in (student, teacher))
    similarity = -torch.cdist(anchors, candidates, p=1.0) / temperature  # (patches, V, V), V = N²·M
    patches, vectors, _ = similarity.shape
    group = torch.arange(vectors, device=student.device) % channel_groups
    of_other_group = (group[:, None] != group[None, :]).expand(patches, -1, -1)
    negatives = similarity[of_other_group].view(patches * vectors, -1)  # (anchors, V - N²)
    positive = similarity.diagonal(dim1=1, dim2=2).reshape(-1, 1)  # (anchors, 1)
    logits = torch.cat([positive, negatives], dim=1)
    target = logits.new_zeros(len(logits), dtype=torch.long)
    loss = F.cross_entropy(logits, target, reduction="sum")
    return loss * channel_groups / len(logits)  # anchors / M = B·H·W


def _patch_vectors(feature_map: Tensor, channel_groups: int) -> Tensor:
    windows = feature_map.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # complete patches only
    windows = windows.permute(0, 2, 3, 4, 5, 1)  # (B, H/N, W/N, N, N, C)
    return windows.reshape(-1, PATCH**2 * channel_groups, feature_map.shape[1] // channel_groups)


class ReleasedStep:
    """Distillation steps on the given models.

    Args:
        student: `AfDcdForSemanticSegmentation`; its last map is distilled.
        teacher: also an `AfDcdForSemanticSegmentation`.
        align: 1×1 convolution from the student's channels to the teacher's.
        projector: one of `afdcd_hf.losses.projectors`.
        draw_mask: returns the mask `(B, 1, h, w)` for a student's map.
        weights: of "auxiliary", "kd", "feature" and "contrast".
        learning_rate: of SGD.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        align: nn.Module,
        projector: nn.Module,
        *,
        draw_mask: Callable[[Tensor], Tensor],
        weights: dict[str, float],
        learning_rate: float,
    ) -> None:
        self.student, self.teacher = student.train(), teacher.eval()
        self.loss = nn.ModuleList([align, projector])
        self.draw_mask, self.weights = draw_mask, {"task": 1.0, **weights}
        trained = [*student.parameters(), *self.loss.parameters()]
        self.optimizer = torch.optim.SGD(trained, learning_rate, momentum=0.9, weight_decay=1e-4)

    def __call__(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Run one step and return its weighted terms."""
        with torch.no_grad():
            teacher = self.teacher(pixel_values, output_hidden_states=True)
        student = self.student(pixel_values, output_hidden_states=True)
        terms = {
            "task": _cross_entropy(student.logits, labels),
            "auxiliary": _cross_entropy(student.aux_logits, labels),
            "kd": _divergence(student.logits, teacher.logits),
            **self._feature_terms(student.hidden_states[-1], teacher.hidden_states[-1]),
        }
        terms = {name: self.weights[name] * term for name, term in terms.items()}
        sum(terms.values()).backward()
        nn.utils.clip_grad_norm_(self.loss.parameters(), 15.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {name: term.detach() for name, term in terms.items()}

    def _feature_terms(self, student_map: Tensor, teacher_map: Tensor) -> dict[str, Tensor]:
        align, projector = self.loss
        restored = projector(align(student_map) * self.draw_mask(student_map))
        feature = F.mse_loss(restored, teacher_map, reduction="sum") / len(restored)
        return {"feature": feature, "contrast": released_contrast(restored, teacher_map)}


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    logits = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=True)
    return F.cross_entropy(logits, labels, ignore_index=255)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    rows = [logits.permute(0, 2, 3, 1).flatten(0, 2) for logits in (student, teacher)]
    return F.kl_div(rows[0].log_softmax(1), rows[1].softmax(1), reduction="batchmean")
