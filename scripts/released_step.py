"""A distillation step in plain eager PyTorch: what `benchmark.py` measures ours against.

These are the steps of the released training code, written anew: teacher without gradients, student, cross entropy of
main and auxiliary head, KL divergence of the logits, align - mask - dense projector, sum of squares, contrast with its
whole similarity matrix (`released_contrast.py`), backward, clipping of the loss's weights, SGD.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from released_contrast import released_contrast
from torch import Tensor, nn
from torch.nn import functional as F

PATCH = 4


def released_restore(student_map: Tensor, mask: Tensor, align: nn.Module, projector: nn.Module) -> Tensor:
    """What the student's map is compared by: `(B, Cs, h, w)` to `(B, Ct, h, w)`; every position is computed."""
    return projector(align(student_map) * mask)


def whole_patches(feature_map: Tensor) -> Tensor:
    """Cut off what does not fill a patch at the right and at the bottom."""
    height, width = (side - side % PATCH for side in feature_map.shape[-2:])
    return feature_map[..., :height, :width]


class ReleasedStep:
    """Steps on networks of its own.

    Args:
        student: `AfDcdForSemanticSegmentation`; its last map is distilled.
        teacher: likewise.
        align: 1×1 convolution from the student's channels to the teacher's.
        projector: the plain one.
        draw_mask: gives the mask `(B, 1, h, w)` for a student's map.
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
        """One step; its weighted terms."""
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
        restored = released_restore(student_map, self.draw_mask(student_map), *self.loss)
        return {
            "feature": F.mse_loss(restored, teacher_map, reduction="sum") / len(restored),
            "contrast": released_contrast(whole_patches(restored), whole_patches(teacher_map), patch_size=PATCH),
        }


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    logits = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=True)
    return F.cross_entropy(logits, labels, ignore_index=255)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    classes = student.shape[1]
    rows = [logits.permute(0, 2, 3, 1).reshape(-1, classes) for logits in (student, teacher)]
    return F.kl_div(rows[0].log_softmax(1), rows[1].softmax(1), reduction="batchmean")
