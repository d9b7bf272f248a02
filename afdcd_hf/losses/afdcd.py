"""Af-DCD: masked feature mimicking and dense contrast of what it restores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..citations import AF_DCD
from ..features import Activations
from ..ops.checks import check_choice, check_divides, check_fraction, check_weight, check_whole
from ..ops.contrast import channel_contrast, check_contrast_settings, omni_contrast, spatial_contrast
from ..ops.precision import at_least_float32, without_autocast
from .base import DistillationLoss
from .masks import MASKS, draw_mask
from .mgd import REDUCTIONS, restoration_error
from .projectors import PROJECTORS, check_restorable, restore

# each contrast with the options that concern it alone; the values of the others mean "does not apply"
CONTRASTS = {
    "omni": (omni_contrast, ("patch_size", "channel_groups", "negatives")),
    "spatial": (spatial_contrast, ("patch_size",)),
    "channel": (channel_contrast, ("channel_groups",)),
}
NOT_APPLICABLE = {"patch_size": 1, "channel_groups": 1, "negatives": "all"}


class AfDcdLoss(DistillationLoss):
    """Augmentation-free dense contrastive distillation (Fan et al., NeurIPS 2023).

    With student map S `(B, Cs, h, w)` and teacher map T `(B, Ct, h, w)`:

        S' = projector(mask ⊙ align(S))
        L_fd  = Σ (S' - T)² / B
        L_ctr = contrast(maxpool(S'), maxpool(T))         (formula: `afdcd_hf/ops/contrast_reference.py`)

    `align` is a 1×1 convolution, or the identity where Cs = Ct (the released code fails there). L_fd is a sum over
    channels and positions, hence the paper's tiny weights (1e-6 to 8e-6 beside 5e-3 to 4e-2 for L_ctr).
    A teacher map of another size is resized bilinearly (align_corners=False) to the student's. Everything is float32
    inside, also under autocast.

    Relations: with `contrast_weight=0` this is MGDLoss (Yang et al.), or FitNetLoss where `projector="none"`. KDLoss
    compares logits; the paper adds both.

    Args:
        student_channels: Cs.
        teacher_channels: Ct.
        feature_weight: λ_fd, at least 0.
        contrast_weight: λ_ctr, at least 0.
        contrast: "omni", "spatial" or "channel".
        mask: "random" hides each position with probability `mask_ratio`, drawn anew at each call from `generator`;
            "center" hides the middle third of rows and columns.
        mask_ratio: ζ in [0, 1); for mask "random".
        projector: "plain", "enhanced", "bottleneck", "depthwise" (starts as the identity), or "none" (with
            `mask_ratio=0`: S' = align(S)); costs in `afdcd_hf/losses/projectors.py`.
        pool_size: kernel and stride of the max-pooling before the contrast; 1 or None for none (CamVid).
        patch_size: side of a patch of the pooled map; for "omni" and "spatial".
        channel_groups: must divide Ct; for "omni" and "channel".
        temperature: τ of the contrast, above 0.
        distance: "l1" (released code) or "l2" (best in the paper's ablation).
        negatives: "other_groups" (released code) or "all" (the paper's figure); for "omni".
        reduction: "paper" as above. "mean" divides L_fd further by Ct·h·w, and L_ctr by `channel_groups` (for
            "spatial" by 1), which makes them the mean squared error and the mean over all anchors: such weights
            carry over to other teachers and crops.
        backend: of the contrast, see `afdcd_hf.ops.omni_contrast`.

    Raises:
        ValueError: a bad or unknown value; in `forward`, maps of the wrong channels, or too small for one patch.
    """

    needs_feature_map = True
    reads_teacher_logits = False
    citation = AF_DCD

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        feature_weight: float,
        contrast_weight: float,
        contrast: str = "omni",
        mask: str = "random",
        mask_ratio: float = 0.75,
        projector: str = "plain",
        pool_size: int | None = 4,
        patch_size: int = 4,
        channel_groups: int = 16,
        temperature: float = 0.07,
        distance: str = "l1",
        negatives: str = "other_groups",
        reduction: str = "paper",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        self.feature_weight, self.contrast_weight = feature_weight, contrast_weight
        self.contrast, self.reduction, self.backend = contrast, reduction, backend
        self.mask, self.mask_ratio = mask, mask_ratio
        self.projector_kind = projector  # `projector` is the module
        self.pool_size, self.patch_size, self.channel_groups = pool_size, patch_size, channel_groups
        self.temperature, self.distance, self.negatives = temperature, distance, negatives
        self.check_arguments(self.get_config_dict())
        self._check_channels()

        same = student_channels == teacher_channels
        self.align = nn.Identity() if same else nn.Conv2d(student_channels, teacher_channels, kernel_size=1)
        self.projector = PROJECTORS[projector](teacher_channels)

    @staticmethod
    def check_arguments(arguments: Mapping[str, Any]) -> None:
        check_weight("feature_weight", arguments["feature_weight"])
        check_weight("contrast_weight", arguments["contrast_weight"])
        check_choice("contrast", arguments["contrast"], CONTRASTS)
        check_choice("mask", arguments["mask"], MASKS)
        check_fraction("mask_ratio", arguments["mask_ratio"])
        check_choice("projector", arguments["projector"], PROJECTORS)
        check_restorable(arguments["projector"], arguments["mask"], arguments["mask_ratio"])
        check_choice("reduction", arguments["reduction"], REDUCTIONS)
        if arguments["pool_size"] is not None:
            check_whole("pool_size", arguments["pool_size"])
        _check_contrast_options(arguments)

    def get_config_dict(self) -> dict[str, Any]:
        names = [name for name in self._argument_names() if name != "projector"]
        return {name: getattr(self, name) for name in names} | {"projector": self.projector_kind}

    def forward(self, student: Activations, teacher: Activations, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute `{"feature": λ_fd·L_fd, "contrast": λ_ctr·L_ctr}` from the maps; `labels` are not used."""
        if student.feature_map is None or teacher.feature_map is None:
            missing = "student" if student.feature_map is None else "teacher"
            raise ValueError(
                f"the loss 'af_dcd' compares feature maps and got none of the {missing}; "
                f"name the layer to capture with {missing}_layer."
            )
        weights = {"feature": self.feature_weight, "contrast": self.contrast_weight}
        wanted = [name for name, weight in weights.items() if weight > 0]
        terms = self._terms(student.feature_map, teacher.feature_map, None, wanted)
        return {name: weights[name] * term for name, term in terms.items()}

    def raw_terms(self, student_map: Tensor, teacher_map: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Compute both terms without their weights.

        Args:
            student_map: `(B, Cs, h, w)`, any floating dtype.
            teacher_map: `(B, Ct, h', w')`, any floating dtype; never receives a gradient.
            mask: `(B, 1, h, w)`, 1 = kept, 0 = hidden; drawn as configured when None.

        Returns:
            `{"feature": L_fd, "contrast": L_ctr}`, scalars.
        """
        return self._terms(student_map, teacher_map, mask, ["feature", "contrast"])

    def _terms(
        self, student_map: Tensor, teacher_map: Tensor, mask: Tensor | None, wanted: list[str]
    ) -> dict[str, Tensor]:
        if not wanted:
            return {}
        self._check_maps(student_map, teacher_map, mask, "contrast" in wanted)
        compute = {"feature": self._feature_term, "contrast": self._contrast_term}
        with without_autocast(student_map):
            target = self._target(student_map, teacher_map)  # (B, Ct, h, w)
            restored = self._restore(at_least_float32(student_map), mask)  # (B, Ct, h, w)
            return {name: compute[name](restored, target) for name in wanted}

    def _target(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        target = at_least_float32(teacher_map.detach())
        if target.shape[-2:] != student_map.shape[-2:]:
            target = F.interpolate(target, student_map.shape[-2:], mode="bilinear", align_corners=False)
        return target

    def _restore(self, student_map: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            mask = draw_mask(self.mask, student_map, self.mask_ratio, self._source)
        return restore(student_map, mask.to(student_map.dtype), self.align, self.projector)

    def _feature_term(self, restored: Tensor, target: Tensor) -> Tensor:
        return restoration_error(restored, target, self.reduction)

    def _contrast_term(self, restored: Tensor, target: Tensor) -> Tensor:
        if self.pool_size is not None and self.pool_size > 1:
            restored, target = F.max_pool2d(restored, self.pool_size), F.max_pool2d(target, self.pool_size)
        contrast, own_options = CONTRASTS[self.contrast]
        options = {name: getattr(self, name) for name in (*own_options, "temperature", "distance", "backend")}
        term = contrast(restored, target, **options)
        anchors_per_position = options.get("channel_groups", 1)
        return term / anchors_per_position if self.reduction == "mean" else term

    def _check_channels(self) -> None:
        check_whole("student_channels", self.student_channels)
        check_whole("teacher_channels", self.teacher_channels)
        if self.contrast_weight > 0 and "channel_groups" in CONTRASTS[self.contrast][1]:
            check_divides(self.channel_groups, self.teacher_channels, of=f"teacher_channels={self.teacher_channels}")

    def _check_maps(self, student_map: Tensor, teacher_map: Tensor, mask: Tensor | None, contrasted: bool) -> None:
        _check_map("student", student_map, self.student_channels)
        _check_map("teacher", teacher_map, self.teacher_channels)
        batch, _, height, width = student_map.shape
        if teacher_map.shape[0] != batch:
            raise ValueError(f"the student's map has batch size {batch} and the teacher's {teacher_map.shape[0]}.")
        if mask is not None and mask.shape != (batch, 1, height, width):
            raise ValueError(f"the mask has shape {tuple(mask.shape)}; expected {(batch, 1, height, width)}.")
        if contrasted:
            self._check_patch_fits(height, width)

    def _check_patch_fits(self, height: int, width: int) -> None:
        pool = self.pool_size or 1
        patch = self.patch_size if "patch_size" in CONTRASTS[self.contrast][1] else 1
        if min(height, width) >= pool * patch:
            return
        least, pooled = pool * patch, f"{height // pool}x{width // pool}"
        raise ValueError(
            f"the student's map is {height}x{width}; after pooling by {pool} that is {pooled}, smaller than a patch "
            f"of {patch}x{patch}. The map must be at least {least}x{least}, which at output stride 8 takes a crop of "
            f"{8 * least}x{8 * least}: use a larger crop, or a smaller pool_size or patch_size."
        )


def _check_contrast_options(arguments: Mapping[str, Any]) -> None:
    own_options = CONTRASTS[arguments["contrast"]][1]
    if "negatives" not in own_options and arguments["negatives"] != "other_groups":
        raise ValueError(
            f"negatives={arguments['negatives']!r} has no meaning for contrast={arguments['contrast']!r}; "
            "leave it out, or use contrast='omni'."
        )
    options = {name: arguments[name] for name in own_options}
    shared = {name: arguments[name] for name in ("temperature", "distance", "backend")}
    check_contrast_settings(**{**NOT_APPLICABLE, **options, **shared})


def _check_map(role: str, feature_map: Tensor, channels: int) -> None:
    if feature_map.ndim != 4 or feature_map.shape[1] != channels:
        raise ValueError(
            f"the {role}'s map has shape {tuple(feature_map.shape)}; expected (B, {channels}, h, w), as "
            f"{role}_channels={channels} was given when the loss was built."
        )
