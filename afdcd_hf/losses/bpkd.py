"""After BPKD: the borders between classes and the areas within, distilled apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..features import Activations
from ..ops.checks import check_ignore_index, check_positive, check_whole
from ..ops.precision import in_float32
from .base import DistillationLoss, given, kl_divergences

# what hidden positions get before the softmax: of no weight there, and finite in the differences of logarithms
HIDDEN = -1e30


def split_by_borders(members: Tensor, size: Sequence[int], edge_width: int) -> tuple[Tensor, Tensor]:
    """The labelled positions within `edge_width` of another class, and the other labelled ones; each `(B, h·w)` bool.

    A class's dilation without its erosion, over all classes of `members` `(B, K, h·w)` bool. Positions without a class
    are in neither, and make no border.
    """
    near = F.max_pool2d(members.unflatten(2, size).float(), 2 * edge_width + 1, stride=1, padding=edge_width)
    several = near.sum(1).flatten(1) > 1  # (B, h·w), classes within reach
    labelled = members.any(1)
    return labelled & several, labelled & ~several


@in_float32
def edge_divergence(student_logits: Tensor, teacher_logits: Tensor, edge: Tensor, temperature: float) -> Tensor:
    """Mean over the positions of `edge` `(B, h·w)` bool of T² · KL over the classes; 0 where there is none."""
    divergences = kl_divergences(student_logits.flatten(2), teacher_logits.flatten(2), temperature, dim=1)  # (B, h·w)
    return temperature**2 * divergences.masked_fill(~edge, 0.0).sum() / edge.sum().clamp(min=1)


@in_float32
def body_divergence(student_logits: Tensor, teacher_logits: Tensor, body: Tensor, temperature: float) -> Tensor:
    """Mean over images and classes of T² · KL over the positions of `body` `(B, h·w)` bool, as in CWDLoss.

    Images without any such position do not count; 0 where none has.
    """
    hidden = ~body.unsqueeze(1)
    student, teacher = (
        (each.flatten(2) / temperature).masked_fill(hidden, HIDDEN) for each in (student_logits, teacher_logits)
    )
    divergences = kl_divergences(student, teacher, temperature=1.0, dim=2)  # (B, K)
    counted = body.any(1).sum().clamp(min=1) * divergences.shape[1]
    return temperature**2 * divergences.sum() / counted


class BPKDLoss(DistillationLoss):
    """Boundary privileged distillation, after Liu et al., WACV 2024 (arXiv 2306.08075).

    The labels, brought to the logits' size (nearest), split the positions in two: an edge, the band within `edge_width`
    of another class, and the body, all other labelled positions.

        L_edge = T² · mean over the edge of KL(softmax(teacher / T) ‖ softmax(student / T)), over the classes
        L_body = T² · mean over images and classes of the same KL over the positions of the body

    The idea is the paper's. Band width, weights, temperatures and whether each class has a band of its own could not be
    checked: the defaults are ours, from KD (edge) and CWD on logits (body), and results are not those of the paper.

    Relations: with no border L_body is CWDLoss on logits; where all is border L_edge is KDLoss.

    Args:
        edge_width: positions of the logits' grid to either side of a border; 1 is 8 pixels at output stride 8.
        ignore_index: label that belongs to neither part; None where there is none.
    """

    name = "bpkd"
    logits_terms = {"bpkd_edge": "edge_weight", "bpkd_body": "body_weight"}
    checks = {
        "edge_temperature": check_positive,
        "body_temperature": check_positive,
        "edge_width": check_whole,
        "ignore_index": check_ignore_index,
    }
    citation = """@inproceedings{liu2024bpkd,
  title     = {{BPKD}: Boundary Privileged Knowledge Distillation For Semantic Segmentation},
  author    = {Liu, Liyang and Wang, Zihan and Phan, Minh Hieu and Zhang, Bowen and Ge, Jinchao and Liu, Yifan},
  booktitle = {IEEE/CVF Winter Conference on Applications of Computer Vision},
  year      = {2024}
}"""

    def __init__(
        self,
        *,
        edge_weight: float = 1.0,
        body_weight: float = 3.0,
        edge_temperature: float = 1.0,
        body_temperature: float = 4.0,
        edge_width: int = 1,
        ignore_index: int | None = 255,
    ) -> None:
        super().__init__(**given(locals()))

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        logits = self.logits(student, teacher)
        size = logits[0].shape[-2:]
        with torch.no_grad():
            edge, body = split_by_borders(self.members(student, labels, size), size, self.edge_width)
        return {
            "bpkd_edge": edge_divergence(*logits, edge, temperature=self.edge_temperature),
            "bpkd_body": body_divergence(*logits, body, temperature=self.body_temperature),
        }
