"""`afdcd predict --as_labels`: a data set whose labels are a model's own predictions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..atomic_io import check_can_write, written_whole
from .images import find_images, save_png
from .onnx_segmenter import OnnxSegmenter, load_segmenter, settings_for
from .predictions import segment_files
from .segment import IGNORED, Predictor
from .settings import WHOLE_IMAGE, InferenceSettings

_SPLIT, _METADATA = "train", "metadata.jsonl"


def write_pseudo_labels(
    model: str | Path,
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    confidence: float = 0.9,
    settings: InferenceSettings = WHOLE_IMAGE,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> tuple[int, float]:
    """Segment images without labels, and write them and the outcome as a data set to train on (`dataset: <output>`).

    It is a folder for `datasets`' imagefolder: `train/images`, `train/labels` (PNGs of class ids, 255 = ignored) and
    `train/metadata.jsonl`; `classes.json` lists the class names in order, for `class_names`. Images are copied; those
    that are not upright RGB are written anew, as PNG, as the model saw them.

    Args:
        model: Folder, Hub id or `.onnx` file.
        inputs: Images, and folders whose images are taken, with those of their sub-folders.
        output: Folder to write, new or empty.
        confidence: Pixels whose class has a lower probability are ignored; 0 to 1.
        settings: Scales, flip, window and precision.
        device: Where to run; by default a GPU where there is one.
        progress: Show a bar.

    Returns:
        The number of images, and the share of their pixels that is labelled.

    Raises:
        FileNotFoundError: If an input is missing, or a folder holds no image.
        FileExistsError: If the folder is not empty.
        ValueError: If the confidence is out of range, two images have the same name, the model has more than 255
            classes, or its scores are not finite.
        OSError: If the folder cannot be written; at the end, if images could not be read: all others are then written.
    """
    if not 0 <= confidence <= 1:
        raise ValueError(f"confidence is a probability from 0 to 1, not {confidence}.")
    output = Path(output).expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} is not empty: give a new folder for the data set.")
    names = {image: name for name, image in find_images(inputs, skip=[output]).items()}
    folder = output / _SPLIT
    check_can_write(folder / _METADATA)
    network, processor = load_segmenter(str(model))
    config: Any = network.config
    classes = [config.id2label[index] for index in range(config.num_labels)]
    if len(classes) > IGNORED:
        raise ValueError(f"The model has {len(classes)} classes; with 255 as the ignored label, 255 are possible.")
    if isinstance(network, OnnxSegmenter) and network.facts["output"] == "labels":
        raise ValueError(f"{model} gives classes without scores, hence no confidence: export it without --argmax.")
    network.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    settings = settings_for(network, settings)
    predictor = Predictor(network, settings, least_confidence=confidence)
    rows, labelled, pixels = [], 0, 0
    try:
        for path, image, label_map in segment_files(predictor, processor, list(names), progress):
            kept = _write_image(path, image, folder / "images", names[path])
            save_png(label_map, folder / "labels" / names[path])
            rows.append({"image_file_name": f"images/{kept}", "label_file_name": f"labels/{names[path]}"})
            labelled, pixels = labelled + int(np.count_nonzero(label_map != IGNORED)), pixels + label_map.size
    finally:  # what is done can be used, also after a file that cannot be read, or Ctrl-C
        with written_whole(folder / _METADATA) as part:
            part.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with written_whole(output / "classes.json") as part:
            part.write_text(json.dumps(classes, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return len(rows), labelled / max(pixels, 1)


def _write_image(path: Path, image: Image.Image, folder: Path, png: str) -> str:
    """The file as it is, if everybody reads it as the model did; the name below the folder."""
    with Image.open(path) as stored:
        as_seen = stored.mode == "RGB" and stored.getexif().get(0x0112, 1) == 1 and path.suffix
    if not as_seen:
        save_png(np.asarray(image), folder / png)
        return png
    name = str(Path(png).with_suffix(path.suffix))
    with written_whole(folder / name) as part:
        shutil.copyfile(path, part)
    return name
