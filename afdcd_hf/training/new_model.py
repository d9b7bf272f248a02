"""Builds the model that a run starts from, and the image processor that prepares its pixels from then on."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from accelerate import init_empty_weights
from torch import nn

from ..data.checks import differing_classes
from ..messages import public_name
from ..models.image_processing_afdcd import RELEASED_INPUT, AfDcdImageProcessor
from ..models.loading import is_bgr, load_model, load_processor
from ..models.modeling_afdcd import AfDcdForSemanticSegmentation
from .options import ModelArguments

logger = logging.getLogger(__name__)

_SETTINGS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


def build_model(args: ModelArguments, classes: Sequence[str], teacher_processor: Any = None) -> tuple[nn.Module, Any]:
    """Return the model to train, saved or new on a timm backbone, and its image processor.

    A saved model with different classes keeps all weights except its classifiers; a warning says so. A new student
    uses its teacher's preprocessing, unless `args.preprocessing` is given. ValueError if there is only one class.
    """
    if len(classes) < 2:
        raise ValueError(
            f"The dataset has one class ({', '.join(classes)}): cross entropy needs two or more. Name the background "
            "too, e.g. class_names: [background, crack], and give its pixels an id with label_map."
        )
    if args.model is not None:
        model, processor = load_model(args.model), load_processor(args.model)
        _adapt_classes(model, classes, args.model)
        return model, processor
    settings: dict[str, Any] = {**vars(args), **_labels(classes)}
    for name in ("model", "backbone", "preprocessing"):
        del settings[name]
    new = AfDcdForSemanticSegmentation.from_backbone(args.backbone, **settings)
    return new, _new_processor(new, args.preprocessing, teacher_processor)


def _labels(classes: Sequence[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(classes)), "label2id": {name: index for index, name in enumerate(classes)}}


def _adapt_classes(model: Any, classes: Sequence[str], name: str) -> None:
    before = [str(each) for _, each in sorted(model.config.id2label.items())]
    if len(before) == len(classes) and not differing_classes(model.config, classes):
        return
    layers = reset_classifiers(model, classes)
    listed = [", ".join(names[:4]) + (", ..." if len(names) > 4 else "") for names in (before, classes)]
    logger.warning(
        "%s was trained for %d classes (%s), the dataset has %d (%s). Newly initialised: %s; all other weights are "
        "kept. If only the spelling differs, give --class_names as the model spells them.",
        name, len(before), listed[0], len(classes), listed[1], " and ".join(layers),
    )  # fmt: skip


def reset_classifiers(model: Any, classes: Sequence[str]) -> list[str]:
    """Change the classes of a transformers model in place; return the paths of the newly initialised layers.

    These are the layers whose shapes depend on the number of classes; ValueError unless all are Conv2d or Linear.
    """
    config = copy.deepcopy(model.config)
    count = config.num_labels
    config.num_labels = count + 1
    with init_empty_weights():  # only the shapes are needed
        shapes = {name: tensor.shape for name, tensor in type(model)(config).state_dict().items()}
    other = [name for name, tensor in model.state_dict().items() if tensor.shape != shapes.get(name)]
    layers = {path: model.get_submodule(path) for path in dict.fromkeys(name.rpartition(".")[0] for name in other)}
    if not layers or not all(type(layer) in (nn.Conv2d, nn.Linear) for layer in layers.values()):
        raise ValueError(
            f"{type(model).__name__} has {count} classes, not those of the dataset, and its classifier cannot be "
            "reset: load it in Python with num_labels and ignore_mismatched_sizes=True, save it, and start from that."
        )
    for layer in layers.values():
        channels = len(layer.weight) + len(classes) - count
        setattr(layer, "out_channels" if isinstance(layer, nn.Conv2d) else "out_features", channels)
        layer.weight = nn.Parameter(layer.weight.new_empty(channels, *layer.weight.shape[1:]))
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.new_empty(channels))
        layer.reset_parameters()
    model.config.update(_labels(classes))
    if hasattr(model, "num_labels"):  # some transformers models keep a copy
        model.num_labels = len(classes)
    return list(layers)


def initial_weights(args: ModelArguments) -> dict[str, Any]:
    """Return the card's facts on the weights that `build_model` starts from, without local paths."""
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
    settings: dict[str, Any]
    if preprocessing is None and teacher_processor is not None:  # copy everything but resizing
        known = {name: getattr(teacher_processor, name, None) for name in _SETTINGS}
        settings = {name: list(each) if isinstance(each, tuple) else each for name, each in known.items()}
        settings = {name: each for name, each in settings.items() if each is not None}
        settings["do_flip_channels"] = is_bgr(teacher_processor)
    elif preprocessing == "released":
        settings = RELEASED_INPUT
    elif preprocessing in (None, "timm"):
        table = getattr(model.backbone.net, "pretrained_cfg", None) or {}
        settings = {f"image_{name}": list(table[name]) for name in ("mean", "std") if table.get(name)}
    else:
        raise ValueError(f"preprocessing={preprocessing!r} is unknown; choose 'timm' or 'released'.")
    return AfDcdImageProcessor(**settings, align_corners=model.config.align_corners)
