"""Af-DCD: masked feature mimicking, and dense contrast on the restored map."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..citations import AF_DCD
from ..features import Activations
from ..ops.checks import check_choice, check_divides, check_whole, optional
from ..ops.contrast import channel_contrast, check_contrast_settings, omni_contrast, spatial_contrast
from ..ops.precision import at_least_float32
from .base import option
from .mgd import RestorationLoss, restoration_error

# each contrast with the options that apply to it; the others take the values of NOT_APPLICABLE
CONTRASTS: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "omni": (omni_contrast, ("patch_size", "channel_groups", "negatives")),
    "spatial": (spatial_contrast, ("patch_size",)),
    "channel": (channel_contrast, ("channel_groups",)),
}
NOT_APPLICABLE = {"patch_size": 1, "channel_groups": 1, "negatives": "all"}


class AfDcdLoss(RestorationLoss):
    """Augmentation-free dense contrastive distillation (Fan et al., NeurIPS 2023).

    With student map S `(B, Cs, h, w)` and teacher map T `(B, Ct, h, w)`:

        S' = projector(mask ⊙ align(S))
        L_fd  = Σ (S' - T)² / B
        L_ctr = contrast(maxpool(S'), maxpool(T))         (formula: `afdcd_hf/ops/contrast_reference.py`)

    `align` is a 1×1 convolution, or the identity if Cs = Ct (the released code fails then). L_fd is a sum over
    channels and positions, hence the paper's tiny weights (1e-6 to 8e-6, against 5e-3 to 4e-2 for L_ctr).

    Relations: with `contrast_weight=0` this is MGDLoss (Yang et al.), or FitNetLoss if `projector="none"`. KDLoss
    compares logits; the paper adds both.

    Args:
        contrast: "omni", "spatial" or "channel".
        mask, mask_ratio, projector: see `RestorationLoss`.
        pool_size: kernel and stride of the max-pooling before the contrast; 1 or None for none (CamVid).
        patch_size: side of a patch of the pooled map; for "omni" and "spatial".
        channel_groups: must divide Ct; for "omni" and "channel".
        temperature: τ of the contrast.
        distance: "l1" (released code) or "l2" (best in the paper's ablation).
        negatives: "other_groups" (released code) or "all" (the paper's figure); for "omni".
        reduction: "paper" is as above. "mean" also divides L_fd by Ct·h·w and L_ctr by `channel_groups` (by 1 for
            "spatial"). They become the mean squared error and the mean over all anchors, so that weights carry over
            to other teachers and crops.
        backend: of the contrast; see `afdcd_hf.ops.omni_contrast`.
    """

    name = "af_dcd"
    map_terms = {"feature": "feature_weight", "contrast": "contrast_weight"}
    citation = AF_DCD

    feature_weight: float = option()
    contrast_weight: float = option()
    contrast: str = option(default="omni", check=partial(check_choice, known=CONTRASTS))
    pool_size: int | None = option(default=4, check=optional(check_whole))
    patch_size: int = option(default=4)
    channel_groups: int = option(default=16)
    temperature: float = option(default=0.07)
    distance: str = option(default="l1")
    negatives: str = option(default="other_groups")
    backend: str = option(default="auto")

    def build(self) -> None:
        super().build()
        if self.contrast_weight > 0 and "channel_groups" in CONTRASTS[self.contrast][1]:
            check_divides(self.channel_groups, self.teacher_channels, of=f"teacher_channels={self.teacher_channels}")

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        super().check_options(options)
        own_options = CONTRASTS[options["contrast"]][1]
        if "negatives" not in own_options and options["negatives"] != "other_groups":
            raise ValueError(
                f"negatives={options['negatives']!r} has no meaning for contrast={options['contrast']!r}; "
                "leave it out, or use contrast='omni'."
            )
        given = {name: options[name] for name in (*own_options, "temperature", "distance", "backend")}
        check_contrast_settings(**{**NOT_APPLICABLE, **given})

    def raw_terms(
        self,
        student_map: Tensor | None,
        teacher_map: Tensor | None,
        mask: Tensor | None = None,
        terms: Container[str] = ("feature", "contrast"),
    ) -> dict[str, Tensor]:
        """Compute the unweighted terms, `{"feature": L_fd, "contrast": L_ctr}`.

        Args:
            student_map: `(B, Cs, h, w)`, any floating dtype.
            teacher_map: `(B, Ct, h', w')`, any floating dtype; never receives a gradient.
            mask: `(B, 1, h, w)` of any dtype, 1 = kept, 0 = hidden; drawn as configured if None.
            terms: those to compute.
        """
        student_map, target = self.maps(Activations(None, student_map), Activations(None, teacher_map))
        batch, _, height, width = student_map.shape
        if mask is not None and mask.shape != (batch, 1, height, width):
            raise ValueError(f"the mask has shape {tuple(mask.shape)}; expected {(batch, 1, height, width)}.")
        restored = self.restored(student_map, None if mask is None else mask.to(student_map.dtype))  # (B, Ct, h, w)
        raw = {}
        if "feature" in terms:
            raw["feature"] = restoration_error(restored, target, reduction=self.reduction)
        if "contrast" in terms:
            raw["contrast"] = self._contrast_term(at_least_float32(restored), target)
        return raw

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        return self.raw_terms(student.feature_map, teacher.feature_map, terms=self.switched_on(self.map_terms))

    def _contrast_term(self, restored: Tensor, target: Tensor) -> Tensor:
        contrast, own_options = CONTRASTS[self.contrast]
        pool = self.pool_size or 1
        _check_patch_fits(restored, pool, self.patch_size if "patch_size" in own_options else 1)
        if pool > 1:
            restored, target = F.max_pool2d(restored, pool), F.max_pool2d(target, pool)
        options = {name: getattr(self, name) for name in (*own_options, "temperature", "distance", "backend")}
        term = contrast(restored, target, **options)
        return term / options.get("channel_groups", 1) if self.reduction == "mean" else term


def _check_patch_fits(student_map: Tensor, pool: int, patch: int) -> None:
    (height, width), least = student_map.shape[-2:], pool * patch
    if min(height, width) < least:
        raise ValueError(
            f"the student's map is {height}x{width}; after pooling by {pool} that is {height // pool}x{width // pool}, "
            f"smaller than a patch of {patch}x{patch}. The map must be at least {least}x{least}, which at output "
            f"stride 8 takes a crop of {8 * least}x{8 * least}: use a larger crop, or a smaller pool_size or "
            "patch_size."
        )
