"""Export of the backbone alone, as a folder that timm can load."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from ..atomic_io import atomic_folder
from ..models.loading import is_bgr
from ..models.modeling_afdcd import AfDcdForSemanticSegmentation

# fields of timm's pretrained_cfg that describe the architecture, not the origin of the weights
_KEPT = ("input_size", "fixed_input_size", "pool_size", "crop_pct", "interpolation", "first_conv", "classifier")

_README = """---
library_name: timm
tags:
- image-feature-extraction
- timm
---
# {name}: the backbone of a semantic segmenter

Exported by afdcd_hf from a segmenter with {classes} classes, without its classifier.

```python
import timm

backbone = timm.create_model("local-dir:FOLDER", pretrained=True, features_only=True{options})
maps = backbone(images)  # list of (B, C, h, w), the last at stride {stride}
```

Normalise images (pixels from 0 to 1) with mean {mean} and standard deviation {std}{order}.
{lacking}"""
_LACKING = """
The segmenter has no {names}: use features_only=True as above; with num_classes=0 timm would initialise them at random.
"""


def export_timm_backbone(model: nn.Module, processor: Any, output: str | Path) -> tuple[Path, list[str]]:
    """Write the backbone for `timm.create_model("local-dir:FOLDER", pretrained=True, features_only=True)`.

    Weights get the names of the plain timm model. Before the folder gets its final name, timm loads it, and its
    maps must equal the backbone's bit for bit.

    Args:
        model: one of our segmenters.
        processor: its image processor, for the normalisation in the folder's configuration.
        output: folder to write; it must not exist.

    Returns:
        The folder, and the names of the plain timm model's tensors that a segmenter lacks (in layers between the last
        map and the classifier); `features_only` does not need them.

    Raises:
        ValueError: another kind of model, or timm's maps differ from the backbone's.
        OSError: the folder exists, or cannot be written.
    """
    output = Path(output)
    if not isinstance(model, AfDcdForSemanticSegmentation):
        raise ValueError(f"Only models with a timm backbone can be exported for timm, not {type(model).__name__}.")
    if output.exists():
        raise FileExistsError(f"{output} exists; give another --output.")
    try:
        with atomic_folder(output) as part:
            lacking = _write(model, processor, part)
    except SafetensorError as error:  # not an OSError, even if the disk is full
        raise OSError(f"{output} cannot be written: {error}") from error
    return output, lacking


def _write(model: AfDcdForSemanticSegmentation, processor: Any, folder: Path) -> list[str]:
    """Write and check the folder; return the names of the plain model's tensors that the backbone lacks."""
    settings = model.config
    options = dict(settings.backbone_kwargs or {})
    with torch.device("meta"):
        own = timm.create_model(settings.backbone, features_only=True, **options)
    if own.feature_info.reduction()[-1] != settings.output_stride:  # otherwise it is the model's default
        options["output_stride"] = settings.output_stride
    out_indices = options.pop("out_indices", None)
    features = {} if out_indices is None else {"out_indices": tuple(out_indices)}
    plain = timm.create_model(settings.backbone, num_classes=0, **options)
    # feature models prefix names with `model.`, or write `stages.0` as `stages_0`
    backbone = copy.deepcopy(model.backbone.net).cpu().eval()
    ours = {name.removeprefix("model.").replace(".", "_"): tensor for name, tensor in backbone.state_dict().items()}
    wanted = plain.state_dict()
    named = {name: ours.pop(name.replace(".", "_")) for name in wanted if name.replace(".", "_") in ours}
    if ours or any(named[name].shape != wanted[name].shape for name in named):
        raise ValueError(f"{len(ours)} tensors of the backbone do not fit timm's model, e.g. {list(ours)[:3]}.")
    save_file({name: tensor.contiguous() for name, tensor in named.items()}, folder / "model.safetensors")
    lacking = sorted(set(wanted) - set(named))
    # Mean and standard deviation for pixels from 0 to 1, as in timm
    largest = 255 * (processor.rescale_factor if processor.do_rescale else 1)
    given = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    mean, std = ([value / largest for value in values] for values in given)
    # timm loads strictly if the numbers of classes agree, and features_only sets 0. A different number makes it accept
    # that layers after the maps are missing.
    classes = 1000 if lacking else 0
    kept = {name: plain.pretrained_cfg.get(name) for name in _KEPT}
    config = {
        "architecture": plain.pretrained_cfg["architecture"],
        "num_classes": classes,
        "num_features": plain.num_features,
        "model_args": options,
        "pretrained_cfg": {**kept, "mean": mean, "std": std, "num_classes": classes},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    try:  # load the folder as its users will, and compare the maps
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True, **features).eval()
    except RuntimeError as error:
        raise ValueError(f"timm cannot load the exported backbone: {' '.join(str(error).split())}") from error
    dtype = next(backbone.parameters()).dtype
    image = torch.randn(1, 3, *loaded.pretrained_cfg["input_size"][-2:], dtype=dtype)
    with torch.no_grad():
        given, wanted = loaded.to(dtype)(image), backbone(image)
    if len(given) != len(wanted) or not all(map(torch.equal, given, wanted)):
        raise ValueError(f"timm's {settings.backbone!r}, loaded from the exported folder, computes different maps.")
    readme = _README.format(
        name=settings.backbone,
        classes=settings.num_labels,
        options="".join(f", {name}={value}" for name, value in features.items()),
        stride=settings.output_stride,
        mean=[round(value, 6) for value in mean],
        std=[round(value, 6) for value in std],
        order=", channels in the order BGR" if is_bgr(processor) else " (RGB)",
        lacking=_LACKING.format(names=", ".join(lacking)) if lacking else "",
    )
    (folder / "README.md").write_text(readme)
    return lacking
