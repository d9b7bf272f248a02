"""The model that a run begins with, and its image processor: the pixels it is trained on, and will want ever after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from torch import nn

from ..data.checks import check_classes
from ..hub.folder_facts import public_name
from ..models.image_processing_afdcd import RELEASED_INPUT, AfDcdImageProcessor
from ..models.loading import load_model, load_processor
from ..models.modeling_afdcd import AfDcdForSemanticSegmentation
from .options import ModelArguments

_SETTINGS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "do_flip_channels")


def build_model(args: ModelArguments, classes: Sequence[str], teacher_processor: Any = None) -> tuple[nn.Module, Any]:
    """The model to train and its image processor: a saved one, or a new one on a timm backbone.

    A new student takes over how its teacher's images are prepared, unless `args.preprocessing` says otherwise.

    Raises:
        ValueError: fewer than two classes, other classes than the saved model's, an unknown preprocessing, or one that
            differs from the teacher's: both see the same pixels.
    """
    if len(classes) < 2:
        raise ValueError(
            f"The dataset has one class ({', '.join(classes)}): cross entropy needs two or more. Name the background "
            "too, e.g. class_names: [background, crack], and give its pixels an id with label_map."
        )
    if args.model is not None:
        model, processor = load_model(args.model), load_processor(args.model)
        check_classes(model, classes)
    else:
        names = (
            "pretrained_backbone", "backbone_kwargs", "output_stride", "head", "head_channels", "atrous_rates",
            "auxiliary_head",
        )  # fmt: skip
        new = AfDcdForSemanticSegmentation.from_backbone(
            args.backbone,
            id2label=dict(enumerate(classes)),
            label2id={name: index for index, name in enumerate(classes)},
            **{name: getattr(args, name) for name in names},
        )
        model, processor = new, _new_processor(new, args.preprocessing, teacher_processor)
    if teacher_processor is not None:
        _check_same_input(processor, teacher_processor)
    return model, processor


def origin_of(args: ModelArguments) -> dict[str, Any]:
    """The weights that `build_model` starts from, as facts of the card: local paths stay private."""
    if args.model is not None:
        if Path(args.model).exists():
            return {"started_from": f"the saved model {public_name(args.model)}"}
        return {"base_model": args.model}
    if args.pretrained_backbone is False:
        return {"started_from": "random weights"}
    if args.pretrained_backbone is True:
        return {"base_model": timm.get_pretrained_cfg(args.backbone).hf_hub_id}
    file = public_name(args.pretrained_backbone)
    return {"started_from": f"ImageNet weights of {args.backbone} from the file {file}"}


def _new_processor(
    model: AfDcdForSemanticSegmentation, preprocessing: str | None, teacher_processor: Any
) -> AfDcdImageProcessor:
    if preprocessing is None and teacher_processor is not None:
        settings = _input_settings(teacher_processor)
    elif preprocessing == "released":
        settings = RELEASED_INPUT
    elif preprocessing in (None, "timm"):
        table = getattr(model.backbone.net, "pretrained_cfg", None) or {}
        settings = {f"image_{name}": list(table[name]) for name in ("mean", "std") if table.get(name)}
    else:
        raise ValueError(f"preprocessing={preprocessing!r} is unknown; choose 'timm' or 'released'.")
    return AfDcdImageProcessor(**settings, align_corners=model.config.align_corners)


def _input_settings(processor: Any) -> dict[str, Any]:
    """What a processor does to the pixel values, other than resizing."""
    given = {name: getattr(processor, name, None) for name in _SETTINGS}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in given.items() if value is not None
    }


def _check_same_input(student_processor: Any, teacher_processor: Any) -> None:
    mine, theirs = (
        {"do_flip_channels": False, **_input_settings(one)} for one in (student_processor, teacher_processor)
    )
    for name in _SETTINGS:
        if name == "rescale_factor" and not mine.get("do_rescale"):
            continue
        if mine.get(name) != theirs.get(name):
            raise ValueError(
                f"The student's images have {name}={mine.get(name)}, the teacher's {theirs.get(name)}:"
                " the teacher would see pixels it does not know. Leave --preprocessing out to take over the teacher's."
            )
