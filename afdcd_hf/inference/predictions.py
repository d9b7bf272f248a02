"""Predictions of a saved model on a user's images: label maps to view, pseudo-labels to train on, figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ..atomic_io import atomic_write, check_can_write, refuse_existing
from ..charts import plot_predictions
from ..charts.figures import shorten
from ..charts.label_maps import TITLE_LENGTH, distinct_palette, draw_overlay
from ..data.benchmarks import BENCHMARKS, Benchmark, get_benchmark
from ..data.checks import check_classes
from ..data.loading import load_split
from ..structured_files import read_json, write_json
from .files import find_images, open_rgb, save_png
from .graphs import GraphSegmenter, load_segmenter
from .segment import (
    IGNORED,
    WHOLE_IMAGE,
    InferenceSettings,
    Predictor,
    Sample,
    as_array,
    make_sample,
    prefetch,
    segment_image,
)

_LEGEND = "classes.json"
_CORRECT = 240, 240, 240  # pale, and lighter than the grey of any benchmark's class


def predict_images(
    model: str | Path,
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    dataset: str | None = None,
    settings: InferenceSettings = WHOLE_IMAGE,
    device: str | torch.device | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[Path, dict[str, Path]]:
    """Segment images: `<output>/ids/a/b.png`, `color/a/b.png` and `overlay/a/b.png` for the image `a/b.jpg`.

    All three are upright, at the size that viewers show. `<output>/classes.json` lists name and colour of each class
    id. An image that cannot be read does not stop the others: an OSError names it at the end.

    Args:
        model: Folder, Hub id or exported graph.
        inputs: Images, and folders of them; see `find_images`.
        output: Folder to write to, which may exist.
        dataset: Benchmark whose colours to use; by default the one with the model's classes, else generated ones.
        settings: Scales, flip, window and precision.
        device: Device to run on; by default a GPU, if there is one.
        overwrite: Replace files of an earlier run.
        progress: Show a progress bar.

    Returns for each image its files by kind: "ids" (class ids, 8 bits, or 16 for a model of more than 256 classes),
    "color" (each class in its colour) and "overlay" (the image under these colours, with lines between classes).
    """
    benchmark = None if dataset is None else get_benchmark(dataset)
    output = Path(output).expanduser()
    folders = {kind: output / kind for kind in ("ids", "color", "overlay")}
    images = find_images(inputs, skip=[*folders.values()])
    plan = {image: {kind: folder / name for kind, folder in folders.items()} for name, image in images.items()}
    _check_outputs(plan, output, overwrite)
    segmenter, processor = _loaded(model, device)
    names, colors = class_legend(segmenter.config.id2label, benchmark)
    pairs = enumerate(zip(names, colors.tolist(), strict=True))
    legend = {str(index): {"name": name, "color": color} for index, (name, color) in pairs}
    if (output / _LEGEND).exists() and not overwrite and read_json(output / _LEGEND, "the classes", object) != legend:
        raise FileExistsError(f"{output} holds another model's predictions: give another --output_dir, or --overwrite.")
    write_json(output / _LEGEND, legend)
    predictor = Predictor(segmenter, settings)
    for path, image, label_map in _segment_files(predictor, processor, list(plan), progress):
        # The same bit depth for all images of a model, whichever classes occur in one
        save_png(label_map.astype(np.uint8 if len(colors) <= 256 else np.uint16), plan[path]["ids"])
        save_png(colors[label_map], plan[path]["color"])
        save_png(draw_overlay(image, label_map, colors), plan[path]["overlay"])
    return plan


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
    """Segment unlabelled images, and write them and their labels as a dataset to train on (`dataset: <output>`).

    It is a folder for `datasets`' imagefolder: `train/images`, `train/labels` (PNGs of class ids, 255 = ignored) and
    `train/metadata.jsonl`; `classes.json` lists the class names in order, for `class_names`. Images are copied. Pixels
    whose class has a probability below `confidence` are ignored; the other options are those of `predict_images`.

    Returns the number of images, and the share of their pixels that is labelled.
    """
    if not 0 <= confidence <= 1:
        raise ValueError(f"confidence is a probability from 0 to 1, not {confidence}.")
    output = Path(output).expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} is not empty: give a new folder for the dataset.")
    names = {image: name for name, image in find_images(inputs, skip=[output]).items()}
    folder = output / "train"
    check_can_write(folder / "metadata.jsonl")
    segmenter, processor = _loaded(model, device)
    classes = [segmenter.config.id2label[index] for index in range(segmenter.config.num_labels)]
    if len(classes) > IGNORED:
        raise ValueError(f"The model has {len(classes)} classes; with 255 as the ignored label, 255 is the limit.")
    if isinstance(segmenter, GraphSegmenter) and segmenter.facts["output"] == "labels":
        raise ValueError(f"{model} gives classes without scores, hence no confidence: export it without --argmax.")
    predictor = Predictor(segmenter, settings, min_confidence=confidence)
    rows, labelled, pixels = [], 0, 0
    try:
        for path, _, label_map in _segment_files(predictor, processor, list(names), progress):
            row = {"image_file_name": f"images/{Path(names[path]).with_suffix(path.suffix)}"}
            row["label_file_name"] = f"labels/{names[path]}"
            save_png(label_map, folder / row["label_file_name"])
            with atomic_write(folder / row["image_file_name"]) as part:
                shutil.copyfile(path, part)
            rows.append(row)
            labelled, pixels = labelled + int(np.count_nonzero(label_map != IGNORED)), pixels + label_map.size
    finally:  # keep finished images usable after an unreadable file or Ctrl-C
        with atomic_write(folder / "metadata.jsonl") as part:
            part.write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_json(output / _LEGEND, classes)
    return len(rows), labelled / max(pixels, 1)


def draw_predictions(
    models: Mapping[str, str | Path],
    path: str | Path,
    *,
    dataset: str,
    split: str = "val",
    indices: Sequence[int] = (0, 1, 2, 3, 4),
    errors: bool = False,
    notes: Mapping[str, str] | None = None,
    **options: Any,
) -> Path:
    """Draw a row per image, with columns for image, ground truth and each model.

    Args:
        models: Column title -> folder or Hub id, at least one.
        path: Image to write.
        dataset: As for `load_split`; classes and colours are the benchmark's, or those of the first model.
        split, indices: Which of its images, all of them labelled.
        errors: Add, below each prediction, its wrong pixels in the colours of the predicted classes, and their share.
        notes: A line under some columns' titles, e.g. `{"teacher": "mIoU 61.2 %"}`.
        options: Of `load_split`, such as `data_dir` or `label_map`.
    """
    images = load_split(dataset, split, **options)
    if max(indices) >= len(images):
        raise ValueError(f"{dataset}'s {split} split has {len(images)} images; index {max(indices)} is out of range.")
    rows = [images[index] for index in indices]
    if unlabelled := [index for index, row in zip(indices, rows, strict=True) if row["label"] is None]:
        raise ValueError(f"{dataset}'s {split} split has no labels for images {unlabelled}; choose others.")
    loaded = {title: load_segmenter(str(folder)) for title, folder in models.items()}
    benchmark = BENCHMARKS.get(options.get("labels_as") or dataset)
    names, colors = class_legend(next(iter(loaded.values()))[0].config.id2label, benchmark)
    columns: dict[str, list[Any]] = {"image": [np.asarray(row["image"]) for row in rows]}
    truths = columns["truth"] = [np.asarray(row["label"]) for row in rows]
    for title, (model, processor) in loaded.items():
        check_classes(model, names, dataset)
        columns[title] = [segment_image(model, processor, row["image"]) for row in rows]
    if errors:
        columns = _with_errors(columns, truths, len(names))
        names, colors = [*names, "correct"], np.array([*colors, _CORRECT])
    unlined = [len(names) - 1] if errors else []  # mistakes are often narrower than lines
    notes = {"image": f"{Path(dataset).name} {split}", **(notes or {})}
    return plot_predictions(columns, colors, names, path, notes=notes, unlined=unlined)


def _with_errors(columns: Mapping[str, list[Any]], truths: Sequence[np.ndarray], right: int) -> dict[str, list[Any]]:
    """Add below each row another with the models' errors, and their shares in the truth's column."""
    below: dict[str, list[Any]] = {title: [""] * len(truths) for title in columns}
    for row, truth in enumerate(truths):
        lines = ["Wrong pixels, in the colour", "of the class predicted", ""]
        for title in list(columns)[2:]:
            found = columns[title][row]
            below[title][row] = np.where(truth == IGNORED, IGNORED, np.where(found == truth, right, found.astype(int)))
            wrong = (found != truth)[truth != IGNORED]
            lines.append(f"{shorten(title, TITLE_LENGTH)}: {100 * wrong.sum() / max(wrong.size, 1):.1f} %")
        below["truth"][row] = "\n".join(lines)
    pairs = {title: zip(cells, below[title], strict=True) for title, cells in columns.items()}
    return {title: [cell for pair in rows for cell in pair] for title, rows in pairs.items()}


def class_legend(id2label: Mapping[int, str], benchmark: Benchmark | None = None) -> tuple[list[str], np.ndarray]:
    """Return names and colours, `(K, 3)` uint8 RGB, of a model's classes.

    They are the benchmark's (names only if the model just has `LABEL_0`, `LABEL_1`, ...), by default of the one with
    the same classes; colours are generated if there is none.
    """
    names = [str(id2label.get(index, f"LABEL_{index}")) for index in range(len(id2label))]
    same = (one for one in BENCHMARKS.values() if _plain(one.classes) == _plain(names))
    benchmark = benchmark or next(same, None)
    if benchmark is None:
        return names, distinct_palette(len(names))
    if benchmark.num_labels != len(names):
        raise ValueError(f"The model has {len(names)} classes, but {benchmark.name} has {benchmark.num_labels}.")
    unnamed = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    return list(benchmark.classes) if unnamed else names, np.array(benchmark.palette, np.uint8)


def _loaded(model: str | Path, device: str | torch.device | None) -> tuple[Any, Any]:
    segmenter, processor = load_segmenter(str(model))
    return segmenter.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), processor


def _segment_files(
    predictor: Predictor, processor: Any, paths: Sequence[Path], progress: bool
) -> Iterator[tuple[Path, Image.Image, np.ndarray]]:
    """Yield each readable image file, upright as RGB, with its label map; at the end, an OSError names the others."""
    unreadable: list[str] = []

    def opened() -> Iterator[tuple[Path, Image.Image, Sample]]:
        for path in paths:
            try:
                image = open_rgb(path)
            except OSError as error:
                unreadable.append(str(error))
            else:
                yield path, image, make_sample(processor, image, str(path))

    with tqdm(total=len(paths), desc="predict", unit="image", disable=not progress, leave=False) as bar:
        for path, image, sample in prefetch(opened()):
            [(_, label_map)] = predictor.label_maps([[sample]])
            yield path, image, as_array(label_map)
            bar.update()
    if unreadable:
        raise OSError(
            f"{len(unreadable)} of {len(paths)} images could not be read; the others are written. Not read:\n  "
            + "\n  ".join(unreadable)
        )


def _check_outputs(plan: Mapping[Path, Mapping[str, Path]], output: Path, overwrite: bool) -> None:
    """Raise before any work if output would replace the user's files or cannot be written."""
    given = {image.resolve() for image in plan}
    written = [file for files in plan.values() for file in files.values()]
    for path in written:
        if path.resolve() in given:
            raise ValueError(f"{path} is an image to segment and would be overwritten: give another output folder.")
    refuse_existing(written, overwrite, "--output_dir")
    check_can_write(output / _LEGEND)


def _plain(names: Iterable[str]) -> list[str]:
    return [name.lower().replace("_", " ").replace("-", " ") for name in names]
