"""Speed of the training data path, beside two ordinary ways to write it: images a second on one core.

    OMP_NUM_THREADS=1 python scripts/benchmark_data.py --images 8 --rounds 7 --output table.md

Cityscapes-size files (1024x2048 PNG, crop 512x1024) are generated, with texture and noise so that a file takes 2.5 MB,
and laid out as the benchmark's. CamVid's (360x480 JPEG, crop 360x360) are read from `--camvid-dir`, or generated. Each
way draws the same scales, crops and flips from the same files; the ways take turns, and medians of the rounds are
shown. Time is that of the process on its core, so that what else the machine does matters little.

- "float": decode image and label, resize both as a whole with PIL, subtract and divide the whole image in float32, pad,
  crop, flip, as training scripts commonly do.
- "uint8": decode both, resize them as a whole with PyTorch's fast uint8 kernels, crop, let the image processor
  normalise the crop, pad, flip.
- "ours": what `afdcd train` does: `load_benchmark`, `TrainingSamples` with `RandomScaleCropFlip`, and
  `collate_samples`. It decodes PNG images down to the crop's end only, and checks each label, too.
- "decoding alone": what the two ordinary ways begin with: the most that a way can reach that decodes whole files.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from afdcd_hf import AfDcdImageProcessor
from afdcd_hf.data import RandomScaleCropFlip, TrainingSamples, collate_samples, get_benchmark, load_benchmark
from afdcd_hf.data.benchmarks import find_files
from afdcd_hf.data.transforms import PAPER_SCALES
from afdcd_hf.evaluation.results import machine_name

CROPS = {"cityscapes": (512, 1024), "camvid": (360, 360)}
IGNORED = 255

Sample = dict[str, Tensor]


# Files


def photo(height: int, width: int, rng: np.random.Generator) -> Image.Image:
    """Soft shapes, texture and a little noise, in colours: as hard to compress as a photograph."""
    pixels = np.full((height, width, 3), 100, np.float32)
    for cells, contrast in ((4, 60), (8, 35), (32, 20), (96, 9)):
        coarse = rng.normal(0, contrast, (3, max(2, height * cells // 1024), max(2, width * cells // 1024)))
        planes = [Image.fromarray(plane.astype(np.float32)).resize((width, height), Image.BICUBIC) for plane in coarse]
        pixels += np.stack([np.asarray(plane) for plane in planes], axis=-1)
    pixels += rng.normal(0, 1, (height, width, 1)) + rng.normal(0, 0.4, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def label(height: int, width: int, values: Sequence[int], rng: np.random.Generator) -> Image.Image:
    """Blobs of class ids."""
    coarse = [rng.normal(0, 1, (9, 17)).astype(np.float32) for _ in values]
    fields = [np.asarray(Image.fromarray(field).resize((width, height), Image.BICUBIC)) for field in coarse]
    return Image.fromarray(np.asarray(values, np.uint8)[np.argmax(fields, axis=0)])


def write_cityscapes(root: Path, count: int) -> None:
    for index in range(count):
        rng = np.random.default_rng(index)
        stem = f"aachen_{index:06d}_000019"
        save(photo(1024, 2048, rng), root / "leftImg8bit/train/aachen" / f"{stem}_leftImg8bit.png")
        save(
            label(1024, 2048, (7, 8, 11, 21, 23, 26, 3), rng),
            root / "gtFine/train/aachen" / f"{stem}_gtFine_labelIds.png",
        )


def write_camvid(root: Path, count: int) -> None:
    for index in range(count):
        rng = np.random.default_rng(index)
        save(photo(360, 480, rng), root / "train" / f"{index}.jpg")
        save(label(360, 480, (0, 1, 3, 4, 5, 8, 11), rng), root / "trainannot" / f"{index}.png")


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


# Ordinary ways


def ordinary(augment: Callable[..., Sample], rows: Any, indices: Sequence[int], epoch: int) -> Sample:
    samples = []
    for index in indices:
        row = rows[index]
        samples.append(augment(row["image"], row["label"], np.random.default_rng([0, epoch, index])))
    return torch.utils.data.default_collate(samples)


def draw(size: tuple[int, int], crop: tuple[int, int], rng: np.random.Generator) -> tuple[tuple[int, int], ...]:
    scale = PAPER_SCALES[rng.integers(len(PAPER_SCALES))]
    scaled = tuple(round(side * scale) for side in size)
    corner = tuple(int(rng.integers(max(side - kept, 0) + 1)) for side, kept in zip(scaled, crop, strict=True))
    return scaled, corner, (rng.random() < 0.5,)


def whole_in_float(
    image: Image.Image, label: Image.Image, rng: np.random.Generator, *, crop: tuple[int, int], processor: Any
) -> Sample:
    (height, width), (top, left), (flip,) = draw((image.height, image.width), crop, rng)
    pixels = np.asarray(image.resize((width, height), Image.BILINEAR), np.float32)
    ids = np.asarray(label.resize((width, height), Image.NEAREST), np.int64)
    pixels = (pixels / 255 - np.array(processor.image_mean, np.float32)) / np.array(processor.image_std, np.float32)
    missing = [(0, max(kept - side, 0)) for side, kept in zip((height, width), crop, strict=True)]
    pixels = np.pad(pixels, [*missing, (0, 0)])[top : top + crop[0], left : left + crop[1]]
    ids = np.pad(ids, missing, constant_values=IGNORED)[top : top + crop[0], left : left + crop[1]]
    if flip:
        pixels, ids = pixels[:, ::-1], ids[:, ::-1]
    pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return {"pixel_values": torch.from_numpy(pixels), "labels": torch.from_numpy(np.ascontiguousarray(ids))}


def whole_in_uint8(
    image: Image.Image, label: Image.Image, rng: np.random.Generator, *, crop: tuple[int, int], processor: Any
) -> Sample:
    size, (top, left), (flip,) = draw((image.height, image.width), crop, rng)
    kept = (..., slice(top, top + crop[0]), slice(left, left + crop[1]))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=False)[0]
    normal = processor(images=resized[kept], return_tensors="pt", do_resize=False)["pixel_values"][0].contiguous()
    ids = torch.from_numpy(np.array(label))[None, None]
    ids = F.interpolate(ids, size=size, mode="nearest")[0, 0][kept].long()
    missing = (0, crop[1] - normal.shape[2], 0, crop[0] - normal.shape[1])
    normal, ids = F.pad(normal, missing), F.pad(ids, missing, value=IGNORED)
    return {"pixel_values": normal.flip(-1) if flip else normal, "labels": ids.flip(-1) if flip else ids}


class FileRows:
    """Image and label of each pair of files, decoded with PIL, the label's ids mapped by a table."""

    def __init__(self, files: Any) -> None:
        self.files = files
        self.table = np.array([files.label_map.get(value, value) for value in range(256)], np.uint8)

    def __len__(self) -> int:
        return len(self.files.images)

    def __getitem__(self, index: int) -> dict[str, Image.Image]:
        image = Image.open(self.files.images[index]).convert("RGB")
        return {"image": image, "label": Image.fromarray(self.table[np.asarray(Image.open(self.files.labels[index]))])}


# Measurement


def seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def measured(ways: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each way. The ways take turns, each round another goes first, and the first is dropped."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for epoch in range(rounds + 1):
        names = list(ways)[epoch % len(ways) :] + list(ways)[: epoch % len(ways)]
        for name in names:
            times[name].append(seconds(partial(ways[name], epoch)))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def benchmark(name: str, root: Path, count: int, batch_size: int, rounds: int) -> list[str]:
    """Lines of the table: one a way."""
    crop, row = CROPS[name], get_benchmark(name)
    processor = AfDcdImageProcessor()
    files = FileRows(find_files(row, root, "train"))
    transform = RandomScaleCropFlip(processor, crop)
    samples = TrainingSamples(load_benchmark(name, "train", root), transform, num_labels=row.num_labels)
    count = min(count, len(files))
    batches = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]

    def ordinary_pass(augment: Callable[..., Sample], epoch: int) -> None:
        for batch in batches:
            ordinary(augment, files, batch, epoch)

    def our_pass(epoch: int) -> None:
        samples.set_epoch(epoch)
        for batch in batches:
            collate_samples([samples[index] for index in batch])

    def decoding_pass(epoch: int) -> None:
        for index in range(count):
            files[index]

    float_way, uint8_way = (partial(way, crop=crop, processor=processor) for way in (whole_in_float, whole_in_uint8))
    check_equal(uint8_way, files, samples, count)
    ways: dict[str, Callable[[int], None]] = {
        "float": partial(ordinary_pass, float_way),
        "uint8": partial(ordinary_pass, uint8_way),
        "ours": our_pass,
        "decoding alone": decoding_pass,
    }
    times = measured(ways, rounds)
    return [line(name, crop, way, times[way] / count, times["float"] / count) for way in ways]


def check_equal(augment: Callable[..., Sample], files: FileRows, samples: TrainingSamples, count: int) -> None:
    """Raises unless ours and the uint8 way give the same samples, up to a grey level."""
    for index in range(count):
        row, ours = files[index], samples[index]
        expected = augment(row["image"], row["label"], np.random.default_rng([0, 0, index]))
        difference = (ours["pixel_values"] - expected["pixel_values"]).abs().max()
        if difference > 0.02 or not torch.equal(ours["labels"], expected["labels"]):
            raise RuntimeError(f"The ways differ on image {index}, by up to {difference}: nothing to compare.")


def line(name: str, crop: tuple[int, int], way: str, per_image: float, float_per_image: float) -> str:
    cells = [name, f"{crop[0]}x{crop[1]}", way, f"{1000 * per_image:.1f}", f"{1 / per_image:.1f}"]
    return f"| {' | '.join([*cells, f'{float_per_image / per_image:.2f}'])} |"


def table(lines: Sequence[str], rounds: int) -> str:
    libraries = ("torch", "numpy", "pillow", "transformers", "datasets")
    header = ["data", "crop", "way", "ms/image", "images/s and core", "times float"]
    return "\n".join(
        [
            f"{machine_name()}, one thread, {', '.join(f'{name} {version(name)}' for name in libraries)}; medians of "
            f"{rounds} rounds; {date.today().isoformat()}",
            "",
            f"| {' | '.join(header)} |",
            "|---|---|---|---:|---:|---:|",
            *lines,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=list(CROPS), default=list(CROPS))
    parser.add_argument("--images", type=int, default=8, help="images of each data set")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7, help="passes over the images, beside one to warm up")
    parser.add_argument("--camvid-dir", type=Path, help="folder with CamVid's files (default: generated ones)")
    parser.add_argument("--output", type=Path, help="Markdown file for the table (default: the terminal only)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("afdcd_hf.data.loading").setLevel(logging.ERROR)  # fewer images than published, on purpose
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.data:
            root = Path(folder) / name
            if name == "cityscapes":
                write_cityscapes(root, args.images)
            elif args.camvid_dir is not None:
                root = args.camvid_dir
            else:
                write_camvid(root, args.images)
            lines += benchmark(name, root, args.images, args.batch_size, args.rounds)
    result = table(lines, args.rounds)
    print(result)
    if args.output is not None:
        args.output.write_text(f"{result}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
