"""`afdcd predict`: a saved model on a user's images."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ..atomic_io import check_can_write, written_whole
from ..charts.label_maps import distinct_palette, draw_overlay
from ..data.benchmarks import BENCHMARKS, Benchmark, get_benchmark
from .images import find_images, open_rgb, save_png
from .onnx_segmenter import load_segmenter, settings_for
from .segment import Predictor, Sample, as_array, make_sample
from .settings import WHOLE_IMAGE, InferenceSettings

T = TypeVar("T")
IDS, COLOR, OVERLAY, LEGEND = "ids", "color", "overlay", "classes.json"


@dataclass(frozen=True)
class Prediction:
    """The files of one segmented image.

    Attributes:
        image: The image itself.
        ids: PNG of class ids, one channel, 8 bits (16 for a model of more than 256 classes).
        color: PNG with each class in its colour.
        overlay: PNG with the image under these colours and lines between the classes.
    """

    image: Path
    ids: Path
    color: Path
    overlay: Path


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
    """Segment images: `<output>/ids/a/b.png`, `color/a/b.png` and `overlay/a/b.png` for the image `a/b.jpg`.

    Images are read one ahead and turned upright as their EXIF data say (`open_rgb`): all three PNGs have the size
    that viewers show. `<output>/classes.json` lists name and colour of each class id. One image that cannot be read
    does not stop the others.

    Args:
        model: Folder, Hub id or `.onnx` file.
        inputs: Images, and folders whose images are taken, with those of their sub-folders.
        output: Folder to write to; an existing one is added to.
        dataset: Benchmark whose colours to use; by default the one with the model's classes, and generated colours
            where there is none.
        settings: Scales, flip, window and precision.
        device: Where to run; by default a GPU where there is one.
        overlay_opacity: Share of colour in the overlay, 0 to 1.
        overwrite: Replace files of an earlier run.
        progress: Show a bar.

    Returns:
        The files of each image, in order.

    Raises:
        FileNotFoundError: If an input is missing, or a folder holds no image.
        FileExistsError: If a file to write exists, unless `overwrite` is set.
        ValueError: If two images would get the same file, the benchmark is unknown or has not as many classes as the
            model, the opacity is out of range, or the model's scores are not finite.
        OSError: If nothing can be written to the folder; at the end, if images could not be read: all others are then
            written.
    """
    if not 0 <= overlay_opacity <= 1:
        raise ValueError(f"overlay_opacity is a share of 0 to 1, not {overlay_opacity}.")
    benchmark = None if dataset is None else get_benchmark(dataset)
    output = Path(output).expanduser()
    kinds = (IDS, COLOR, OVERLAY)
    images = find_images(inputs, skip=[output / kind for kind in kinds])
    plan = [Prediction(image, *(output / kind / name for kind in kinds)) for name, image in images.items()]
    check_outputs(
        (file for one in plan for file in (one.ids, one.color, one.overlay)), images.values(), output, overwrite
    )
    network, processor = load_segmenter(str(model))
    config: Any = network.config
    names, colors = class_legend(config.id2label, benchmark)
    _check_legend(output / LEGEND, legend := _legend(names, colors), overwrite)
    network.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    of_image = {one.image: one for one in plan}
    settings = settings_for(network, settings)
    for path, image, label_map in segment_files(Predictor(network, settings), processor, list(of_image), progress):
        if legend:  # only once there is a prediction to explain
            with written_whole(output / LEGEND) as part:
                part.write_text(legend, encoding="utf-8")
            legend = ""
        # The same depth for all images of a model, whatever classes occur in one
        save_png(label_map.astype(np.uint8 if len(colors) <= 256 else np.uint16), of_image[path].ids)
        save_png(colors[label_map], of_image[path].color)
        save_png(draw_overlay(image, label_map, colors, overlay_opacity), of_image[path].overlay)
    return plan


def segment_files(
    predictor: Predictor, processor: Any, paths: Sequence[Path], progress: bool = True
) -> Iterator[tuple[Path, Image.Image, np.ndarray]]:
    """Each image file that can be read, upright as RGB, with its label map.

    Raises:
        OSError: At the end, if files could not be read.
        ValueError: If the model's scores are not finite.
    """
    unreadable: list[str] = []

    def opened() -> Iterator[tuple[Path, Image.Image, Sample]]:
        for path in paths:
            try:
                image = open_rgb(path)
            except OSError as error:
                unreadable.append(str(error))
            else:
                yield path, image, make_sample(processor, image, str(path))

    bar = tqdm(total=len(paths), desc="predict", unit="image", disable=not progress, leave=False)
    with bar:
        for path, image, sample in one_ahead(opened()):
            [(_, label_map)] = predictor.label_maps([[sample]])
            yield path, image, as_array(label_map)
            bar.update()
    if unreadable:
        raise OSError(
            f"{len(unreadable)} of {len(paths)} images could not be read; the others are written. Not read:\n  "
            + "\n  ".join(unreadable)
        )


def one_ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """The items (none of them None), each fetched by a thread while the one before it is at work."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item


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


def check_outputs(files: Iterable[Path], images: Iterable[Path], output: Path, overwrite: bool) -> None:
    """Nothing of the user's may be lost, and the folder can be written: said before anything is computed."""
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file; predictions need a folder.")
    given = {image.resolve() for image in images}
    for path in files:
        if path.resolve() in given:
            raise ValueError(f"{path} is an image to segment and would be written over: give another output folder.")
        if path.exists() and not overwrite:
            raise FileExistsError(
                f"{path} exists: give another --output_dir, or --overwrite to replace an earlier run's."
            )
    check_can_write(output / LEGEND)


def _legend(names: Sequence[str], colors: np.ndarray) -> str:
    pairs = zip(names, colors.tolist(), strict=True)
    legend = {str(index): {"name": name, "color": color} for index, (name, color) in enumerate(pairs)}
    return json.dumps(legend, indent=2, ensure_ascii=False) + "\n"


def _check_legend(path: Path, legend: str, overwrite: bool) -> None:
    if path.exists() and not overwrite and path.read_text(encoding="utf-8") != legend:
        raise FileExistsError(
            f"{path} lists other classes or colours: {path.parent} holds another model's predictions. Give another "
            "--output_dir, or --overwrite."
        )
