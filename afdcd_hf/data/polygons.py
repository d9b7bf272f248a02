"""Conversion of polygons and masks (COCO, YOLO, LabelMe) to a dataset of label maps: `images/` and `labels/`."""

from __future__ import annotations

import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..atomic_io import atomic_folder
from ..structured_files import read_json, read_yaml, write_json
from .benchmarks.finding import IMAGE_SUFFIXES
from .decoding import open_image

IGNORED = 255
BACKGROUND = "background"
_EXPECTED = "expected a COCO .json file, a YOLO folder with data.yaml, or a folder of LabelMe's .json files"


class Shape(NamedTuple):
    """One object in an image: the union of some polygons."""

    name: str | None  # of its class; None is ignored
    polygons: Sequence[np.ndarray]  # (N, 2) x and y of the corners, from the image's upper left corner
    relative: bool = False  # whether these are fractions of width and height, not pixels
    runs: Mapping[str, Any] | None = None  # COCO's run-length encoding, instead of polygons

    def mask(self, height: int, width: int) -> np.ndarray:
        """Return `(H, W)` bool: the pixels whose centres lie inside."""
        from matplotlib.path import Path as Outline

        mask = np.zeros((height, width), bool) if self.runs is None else _of_runs(self.runs, height, width)
        for corners in self.polygons:
            polygon = corners * (width, height) if self.relative else corners
            left, top = np.floor(polygon.min(0)).clip(0).astype(int)
            right, bottom = np.minimum(np.ceil(polygon.max(0)), (width, height)).astype(int)
            if left < right and top < bottom:
                rows, columns = np.mgrid[top:bottom, left:right] + 0.5
                inside = Outline(polygon).contains_points(np.c_[columns.ravel(), rows.ravel()])
                mask[top:bottom, left:right] |= inside.reshape(rows.shape)
        return mask


class Annotated(NamedTuple):
    """An image with its objects."""

    image: Path
    split: str
    shapes: Sequence[Shape]
    size: tuple[int, int] | None = None  # (height, width) for which they were drawn, if known


def import_annotations(
    source: str | Path, output: str | Path, data_dir: str | Path | None = None, *, progress: bool = False
) -> tuple[list[str], dict[str, int]]:
    """Write `images/<split>/`, `labels/<split>/` and `classes.json`: a dataset for `load_split`; see docs/data.md.

    Args:
        source: A COCO file or a folder with one per split, a YOLO folder, or a folder of LabelMe's files.
        output: A new folder.
        data_dir: Folder that holds a COCO file's images; by default its own, or the parent of `annotations/`.
        progress: Show a progress bar.

    Returns:
        The classes, and the number of images of each split.

    Raises ValueError or OSError, naming the file, if one is invalid, is missing, or exists already.
    """
    source, output = Path(source).expanduser().absolute(), Path(output).expanduser()
    if output.exists():
        raise FileExistsError(f"{output} exists: give a new folder for the dataset.")
    names, images = _read(source, None if data_dir is None else Path(data_dir).expanduser().absolute())
    classes = [BACKGROUND, *(name for name in dict.fromkeys(names) if name != BACKGROUND)]
    if not images or len(classes) > IGNORED:
        raise ValueError(f"{source} has {len(images)} images and {len(classes)} classes; expected 1 to {IGNORED}.")
    ids = {None: IGNORED} | {name: index for index, name in enumerate(classes)}
    with atomic_folder(output) as folder:
        for one in tqdm(images, "labels", unit="image", disable=not progress, leave=False):
            width, height = open_image(one.image, str(one.image)).size
            if one.size not in (None, (height, width)):
                raise ValueError(f"{one.image} is {height}x{width} pixels, but was annotated as {one.size}.")
            path = folder / "labels" / one.split / f"{one.image.stem}.png"
            if path.exists():
                raise ValueError(f"Two images of the split {one.split} are called {one.image.stem}: rename one.")
            for place in (path.parent, folder / "images" / one.split):
                place.mkdir(parents=True, exist_ok=True)
            shutil.copy2(one.image, folder / "images" / one.split)
            label = np.zeros((height, width), np.uint8)
            with _naming(one.image):
                drawn = [(ids[shape.name], shape.mask(height, width)) for shape in one.shapes]
            # ignored objects below all others, smaller over larger, later over earlier
            for value, mask in sorted(drawn, key=lambda pair: (pair[0] != IGNORED, -int(pair[1].sum()))):
                label[mask] = value
            Image.fromarray(label).save(path)
        write_json(folder / "classes.json", classes)
    return classes, dict(Counter(one.split for one in images))


def _read(source: Path, data_dir: Path | None) -> tuple[list[str], list[Annotated]]:
    """Return the names of the classes, in order, and the images of a file or folder."""
    described = source / "data.yaml" if source.is_dir() else source
    if described.suffix in (".yaml", ".yml") and described.is_file():
        facts = read_yaml(described)
        with _naming(described):
            return _yolo(facts, described)
    coco: list[str] = []
    labelme: set[str] = set()
    images: list[Annotated] = []
    for file in [source] if source.is_file() else _files_below(source, (".json",)):
        content = read_json(file, "annotations", object)
        with _naming(file):
            if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
                around = file.parent.parent if file.parent.name == "annotations" else file.parent
                names, more = _coco(content, file, data_dir or around)
                coco += names
                images += more
            elif isinstance(content, dict) and "shapes" in content:
                images.append(_labelme(content, file, source))
                labelme |= {shape.name for shape in images[-1].shapes if shape.name is not None}
    if bool(coco) == bool(labelme):
        raise ValueError(f"{source} is missing or in an unknown format: {_EXPECTED}.")
    return coco or sorted(labelme), images


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Prefix error messages with the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{file} does not follow its format: {type(error).__name__} {error}.") from error


def _coco(content: dict[str, Any], file: Path, root: Path) -> tuple[list[str], list[Annotated]]:
    names = {one["id"]: _name(one["name"]) for one in sorted(content["categories"], key=lambda one: one["id"])}
    shapes: dict[int, list[Shape]] = defaultdict(list)
    for one in content["annotations"]:
        drawn, name = one.get("segmentation"), None if one.get("iscrowd") else names[one["category_id"]]
        if not drawn:
            raise ValueError(f"annotation {one['id']} has no segmentation; boxes alone cannot be drawn.")
        polygons = [] if isinstance(drawn, dict) else [np.reshape(polygon, (-1, 2)) for polygon in drawn]
        shapes[one["image_id"]].append(Shape(name, polygons, runs=drawn if isinstance(drawn, dict) else None))
    below: dict[str, list[Path]] = defaultdict(list)
    for path in _files_below(root):
        below[path.name].append(path)
    split, images = _split_of(f"{file.parent.name}/{file.stem}"), []
    for one in content["images"]:
        name = one["file_name"]
        found = [path for path in below[Path(name).name] if path.as_posix().endswith(f"/{name}")]
        if len(found) > 1:
            found = [path for path in found if _split_of(path.parent.relative_to(root).as_posix()) == split]
        if len(found) != 1:
            raise FileNotFoundError(f"{file}: {name} was found {len(found)} times below {root}; expected it once.")
        images.append(Annotated(found[0], split, shapes[one["id"]], (one["height"], one["width"])))
    return list(names.values()), images


def _yolo(content: dict[str, Any], file: Path) -> tuple[list[str], list[Annotated]]:
    listed = content.get("names")
    if not isinstance(listed, (list, dict)):
        raise ValueError(f"names is {listed!r}; expected a list of the classes, in the order of their numbers.")
    names = [_name(listed[key]) for key in (sorted(listed) if isinstance(listed, dict) else range(len(listed)))]
    roots, images = (file.parent / str(content.get("path", "")), file.parent), []
    for key in ("train", "val", "valid", "test"):
        given = content.get(key) or []
        for place in given if isinstance(given, list) else [given]:
            # Roboflow writes ../train/images, and means ./train/images
            folders = [root / one for root in roots for one in (place, str(place).removeprefix("../"))]
            folder = next((path for path in folders if path.is_dir()), None)
            if folder is None:
                raise FileNotFoundError(f"{file}: {key} is {place}, but there is no such folder.")
            for image in _files_below(folder):
                before, images_folder, after = image.with_suffix(".txt").as_posix().rpartition("/images/")
                texts = [Path(f"{before}/labels/{after}")] if images_folder else []
                text = next((path for path in (*texts, image.with_suffix(".txt")) if path.is_file()), None)
                shapes = [] if text is None else _yolo_shapes(text, names)  # none: only background
                images.append(Annotated(image, _split_of(key), shapes))
    if not any(one.shapes for one in images):
        raise FileNotFoundError(f"{file}: no image has a .txt file in labels/ or beside it.")
    return names, images


def _yolo_shapes(file: Path, names: Sequence[str]) -> list[Shape]:
    shapes = []
    with _naming(file):
        for number, words in enumerate(map(str.split, file.read_text().splitlines()), 1):
            numbers: list[float] = []
            with suppress(ValueError):  # rejected below
                numbers = [float(word) for word in words]
            if words and (len(numbers) < 7 or len(numbers) % 2 == 0 or numbers[0] not in range(len(names))):
                raise ValueError(
                    f"line {number}: expected a class from 0 to {len(names) - 1} and three or more points x y, in "
                    f"numbers; found {len(words)} words, the first {words[0]} (five: a box, which cannot be drawn)."
                )
            if words:
                shapes.append(Shape(names[int(numbers[0])], [np.reshape(numbers[1:], (-1, 2))], relative=True))
    return shapes


def _labelme(content: dict[str, Any], file: Path, root: Path) -> Annotated:
    shapes = []
    for one in content["shapes"]:
        points, kind = np.array(one["points"], float), one.get("shape_type", "polygon")
        if kind == "rectangle" and points.shape != (2, 2):
            raise ValueError(f"{one['label']} is a rectangle of {len(points)} points; expected two opposite corners.")
        if kind == "rectangle":
            (left, top), (right, bottom) = points
            points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        elif kind != "polygon":
            raise ValueError(f"{one['label']} is a {kind}; only polygons and rectangles can be drawn.")
        shapes.append(Shape(None if one["label"] == "__ignore__" else _name(one["label"]), [points]))
    image = file.parent / content["imagePath"].replace("\\", "/")
    image = image if image.is_file() else file.parent / image.name  # a folder on another machine
    split = _split_of("" if root.is_file() else file.parent.relative_to(root).as_posix())
    return Annotated(image, split, shapes, (content["imageHeight"], content["imageWidth"]))


def _name(name: Any) -> str:
    return BACKGROUND if str(name).strip("_").lower() == BACKGROUND else str(name)


def _split_of(text: str) -> str:
    found = re.search("(?<![a-z])(train|val|test)", text.lower())
    return found[1] if found else "train"


def _files_below(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """List the files below a folder, except hidden ones such as macOS's `._x.png`."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _of_runs(runs: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """Decode runs of 0 and 1 down the columns, given as numbers or packed into a string."""
    if list(runs["size"]) != [height, width]:
        raise ValueError(f"run lengths for {runs['size']} (height, width) do not fit this image of {height}x{width}.")
    if isinstance(runs["counts"], str):
        try:
            from pycocotools import mask
        except ImportError as error:
            raise ValueError("Packed run lengths need pycocotools: pip install pycocotools.") from error
        return mask.decode(runs).astype(bool)
    values = np.arange(len(runs["counts"])) % 2 == 1
    return np.repeat(values, runs["counts"]).reshape(width, height).T.copy()
