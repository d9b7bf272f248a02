"""`afdcd predict`: a saved model on a user's pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoImageProcessor

from ..atomic_io import written_whole
from ..charts.generated_palette import distinct_palette
from ..charts.overlay import draw_overlay
from ..data.benchmarks import BENCHMARKS, Benchmark, get_benchmark
from ..models.loading import load_model
from .image_files import find_pictures, open_picture, png_name, save_png
from .segment import WHOLE_IMAGE, InferenceSettings, segment_image

IDS, COLOR, OVERLAY, LEGEND = "ids", "color", "overlay", "classes.json"


@dataclass(frozen=True)
class Prediction:
    """The files of one segmented picture.

    Attributes:
        picture: The picture itself.
        ids: PNG of class ids, one channel, 8 bits (16 for a model of more than 256 classes).
        color: PNG with each class in its colour.
        overlay: PNG with the picture under these colours and lines between the classes.
    """

    picture: Path
    ids: Path
    color: Path
    overlay: Path

    @property
    def files(self) -> tuple[Path, Path, Path]:
        """What is written."""
        return self.ids, self.color, self.overlay


def predict_images(
    model: str | Path,
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    dataset: str | None = None,
    settings: InferenceSettings = WHOLE_IMAGE,
    device: str | torch.device | None = None,
    overlay_opacity: float = 0.5,
    overwrite: bool = False,
    progress: bool = True,
) -> list[Prediction]:
    """Segment pictures: `<output>/ids/a/b.png`, `color/a/b.png` and `overlay/a/b.png` for the picture `a/b.jpg`.

    Pictures are read one at a time and turned upright as their EXIF data say (`open_picture`): all three PNGs have the
    size that viewers show. `<output>/classes.json` lists name and colour of each class id. One picture that cannot be
    read does not stop the others.

    Args:
        model: Folder or Hub id.
        inputs: Pictures, and folders whose pictures are taken, with those of their sub-folders.
        output: Folder to write to; an existing one is added to.
        dataset: Benchmark whose colours to use; by default the one with the model's classes, and generated colours
            where there is none.
        settings: Scales, flip, window and precision.
        device: Where to run; by default a GPU where there is one.
        overlay_opacity: Share of colour in the overlay, 0 to 1.
        overwrite: Replace files of an earlier run.
        progress: Show a bar.

    Returns:
        The files of each picture, in order.

    Raises:
        FileNotFoundError: If an input is missing, or a folder holds no picture.
        FileExistsError: If a file to write exists, unless `overwrite` is set.
        ValueError: If two pictures would get the same file, the benchmark is unknown or has not as many classes as
            the model, or the opacity is out of range.
        OSError: At the end, if pictures could not be read; all others are then written.
    """
    if not 0 <= overlay_opacity <= 1:
        raise ValueError(f"overlay_opacity is a share of 0 to 1, not {overlay_opacity}.")
    benchmark = None if dataset is None else get_benchmark(dataset)
    output = Path(output).expanduser()
    plan = _plan(find_pictures(inputs, skip=[output / name for name in (IDS, COLOR, OVERLAY)]), output)
    _check_files(plan, output, overwrite)
    network, processor = load_model(str(model)), AutoImageProcessor.from_pretrained(str(model))
    names, colors = class_legend(network.config.id2label, benchmark)
    _write_legend(output / LEGEND, names, colors, overwrite)
    network.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    unreadable = []
    for prediction in tqdm(plan, desc="predict", unit="picture", disable=not progress, leave=False):
        try:
            picture = open_picture(prediction.picture)
        except OSError as error:
            unreadable.append(str(error))
            continue
        label_map = segment_image(network, processor, picture, settings)
        _write(prediction, picture, label_map, colors, overlay_opacity)
    if unreadable:
        raise OSError(
            f"{len(unreadable)} of {len(plan)} pictures could not be read; the others are in {output}. Not read:\n  "
            + "\n  ".join(unreadable)
        )
    return plan


def class_legend(id2label: Mapping[int, str], benchmark: Benchmark | None = None) -> tuple[list[str], np.ndarray]:
    """Names and colours of a model's classes.

    Args:
        id2label: Of the model's configuration.
        benchmark: Whose colours to use; by default the one of the same classes, and generated ones if there is none.

    Returns:
        K names, the benchmark's where the model has only `LABEL_0`, `LABEL_1`, ..., and `(K, 3)` uint8 RGB.

    Raises:
        ValueError: If the benchmark has not as many classes.
    """
    names = [str(id2label.get(index, f"LABEL_{index}")) for index in range(len(id2label))]
    if benchmark is None:
        same = (one for one in BENCHMARKS.values() if _plain(one.classes) == _plain(names))
        benchmark = next(same, None)
    if benchmark is None:
        return names, distinct_palette(len(names))
    if benchmark.num_labels != len(names):
        raise ValueError(
            f"The model has {len(names)} classes and {benchmark.name} {benchmark.num_labels}, so that its colours do "
            "not fit. Leave the dataset out for the model's own."
        )
    unnamed = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    return list(benchmark.classes) if unnamed else names, np.array(benchmark.palette, np.uint8)


def _plain(names: Iterable[str]) -> list[str]:
    return [name.lower().replace("_", " ").replace("-", " ") for name in names]


def _plan(pictures: Sequence[tuple[Path, PurePath]], output: Path) -> list[Prediction]:
    plan: dict[str, Prediction] = {}
    for picture, inside in pictures:
        name = png_name(inside)
        if name in plan:
            raise ValueError(
                f"{plan[name].picture} and {picture} would both be written to {output / IDS / name}: rename one of "
                "them, or segment them into different folders."
            )
        plan[name] = Prediction(picture, output / IDS / name, output / COLOR / name, output / OVERLAY / name)
    return list(plan.values())


def _check_files(plan: Sequence[Prediction], output: Path, overwrite: bool) -> None:
    """Nothing of the user's may be lost; said before anything is computed."""
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file; predictions need a folder.")
    pictures = {prediction.picture.resolve() for prediction in plan}
    for path in (path for prediction in plan for path in prediction.files):
        if path.resolve() in pictures:
            raise ValueError(f"{path} is a picture to segment and would be written over: give another output folder.")
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists: give another --output, or --overwrite to replace an earlier run's.")


def _write_legend(path: Path, names: Sequence[str], colors: np.ndarray, overwrite: bool) -> None:
    legend: dict[str, Any] = {
        str(index): {"name": name, "color": color.tolist()}
        for index, (name, color) in enumerate(zip(names, colors, strict=True))
    }
    text = json.dumps(legend, indent=2, ensure_ascii=False) + "\n"
    if path.exists() and not overwrite and path.read_text(encoding="utf-8") != text:
        raise FileExistsError(
            f"{path} lists other classes or colours: {path.parent} holds another model's predictions. Give another "
            "--output, or --overwrite."
        )
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def _write(
    prediction: Prediction, picture: Image.Image, label_map: np.ndarray, colors: np.ndarray, opacity: float
) -> None:
    # The same depth for all pictures of a model, whatever classes occur in one
    save_png(label_map.astype(np.uint8 if len(colors) <= 256 else np.uint16), prediction.ids)
    save_png(colors[label_map], prediction.color)
    save_png(draw_overlay(picture, label_map, colors, opacity), prediction.overlay)
