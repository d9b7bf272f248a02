"""Which image processor a new model gets: the pixels it is trained on, and will want ever after."""

from __future__ import annotations

from typing import Any

from ..models.image_processing_afdcd import RELEASED_INPUT, AfDcdImageProcessor
from ..models.modeling_afdcd import AfDcdForSemanticSegmentation

_SETTINGS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "do_flip_channels")


def new_processor(
    model: AfDcdForSemanticSegmentation, preprocessing: str | None = None, teacher_processor: Any = None
) -> AfDcdImageProcessor:
    """The image processor of a new model.

    Args:
        model: the model.
        preprocessing: "timm" (what the backbone's ImageNet weights expect, by timm's table), "released" (the released
            models' input), or None: the teacher's where there is one, else "timm".
        teacher_processor: image processor of the teacher, whose images the student will share.
    """
    if preprocessing is None and teacher_processor is not None:
        settings = input_settings(teacher_processor)
    elif preprocessing == "released":
        settings = RELEASED_INPUT
    elif preprocessing in (None, "timm"):
        settings = _timm_input(model)
    else:
        raise ValueError(f"preprocessing={preprocessing!r} is unknown; choose 'timm' or 'released'.")
    return AfDcdImageProcessor(**settings, align_corners=model.config.align_corners)


def input_settings(processor: Any) -> dict[str, Any]:
    """What a processor does to the pixel values, other than resizing."""
    given = {name: getattr(processor, name, None) for name in _SETTINGS}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in given.items() if value is not None
    }


def check_same_input(student_processor: Any, teacher_processor: Any) -> None:
    """Both models see the same pixels, so both must have been made for input prepared in the same way.

    Raises:
        ValueError: a setting differs; it is named with both values.
    """
    mine, theirs = (
        {"do_flip_channels": False, **input_settings(one)} for one in (student_processor, teacher_processor)
    )
    for name in _SETTINGS:
        if name == "rescale_factor" and not mine.get("do_rescale"):
            continue
        if mine.get(name) != theirs.get(name):
            raise ValueError(
                f"The student's images have {name}={mine.get(name)}, the teacher's {theirs.get(name)}:"
                " the teacher would see pixels it does not know. Leave --preprocessing out to take over the teacher's."
            )


def _timm_input(model: AfDcdForSemanticSegmentation) -> dict[str, Any]:
    table = getattr(model.backbone.net, "pretrained_cfg", None) or {}
    return {f"image_{name}": list(table[name]) for name in ("mean", "std") if table.get(name)}
