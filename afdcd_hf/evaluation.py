"""Scoring a segmenter: one image at a time at the label's own size, in constant memory.

The Trainer, `afdcd evaluate` and the quickstart all come through here, so that a number means the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from .data.samples import check_labels
from .metrics import StreamingMeanIoU
from .models.modeling_afdcd import upsample_logits
from .modes import evaluating


class EvaluationSamples(Dataset):
    """Images as the network wants them, beside the label as it is.

    Args:
        dataset: indexable, with PIL images in `image` and `label` and, optionally, a `name`.
        processor: image processor of the network.
        num_labels: number of classes K; a label outside 0..K-1 that is not ignored is an error naming the image.
        ignore_index: label that is not counted.
    """

    def __init__(self, dataset: Sequence[Mapping[str, Any]], processor, num_labels: int, ignore_index: int = 255):
        self.dataset = dataset
        self.processor = processor
        self.num_labels = num_labels
        self.ignore_index = ignore_index

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = self.dataset[int(index)]
        name = row.get("name", f"image {index}")
        image, label = row["image"], np.asarray(row["label"])
        if (image.height, image.width) != label.shape:
            raise ValueError(
                f"{name}: the image is {image.height}x{image.width} pixels but its label "
                f"{'x'.join(map(str, label.shape))} (height x width); they must be equal."
            )
        check_labels(label, self.num_labels, self.ignore_index, name)
        pixel_values = self.processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        return pixel_values, torch.from_numpy(label.astype(np.int64))


def evaluate_segmenter(
    model: nn.Module,
    dataset: Sequence[Mapping[str, Any]],
    *,
    processor,
    id2label: Mapping[int, str] | None = None,
    num_labels: int | None = None,
    ignore_index: int | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    absent_as_zero: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Score a network on a labelled dataset: whole image, single scale, at the label's own size.

    Logits are stretched bilinearly to the label's size before the arg max. The network runs in eval mode, in the
    precision of its weights, on the device where it is, and its mode is restored. Several processes (torchrun,
    accelerate launch) share the images, each counted once, and return the same result.

    Args:
        model: returns `.logits` `(B, K, h, w)` for `model(pixel_values=...)`.
        dataset: indexable, with PIL images in `image` and `label` (class ids, one channel) and, optionally, `name`.
        processor: image processor of the network.
        id2label: class names; the configuration's where None.
        num_labels: number of classes; the configuration's where None.
        ignore_index: label that is not counted; the configuration's where None, 255 where it names none.
        batch_size: images per forward pass; images of different sizes are never padded, but run one size at a time.
        num_workers: processes that decode images.
        absent_as_zero: count a class absent from truth and prediction as IoU 0, as the released code does.
        progress: show a bar on the main process.

    Returns:
        `mean_iou`, `mean_accuracy`, `overall_accuracy` (0..1), `per_category_iou`, `per_category_accuracy`,
        `absent_classes`, `num_pixels`, `num_images` and `protocol` (everything above that influences the number).

    Raises:
        ValueError: an empty dataset, an unknown number of classes, an image and label of different size, or a label
            outside the class range; image and value are named.
    """
    if len(dataset) == 0:
        raise ValueError("There is nothing to evaluate: the dataset is empty.")
    config = getattr(model, "config", None)
    num_labels = num_labels or getattr(config, "num_labels", None)
    if num_labels is None:
        raise ValueError(
            f"The number of classes is unknown: {type(model).__name__} has no config.num_labels. Pass num_labels to "
            "evaluate_segmenter, or give the network such a config."
        )
    if ignore_index is None:
        ignore_index = getattr(config, "semantic_loss_ignore_index", 255)
    state = PartialState()
    metric = StreamingMeanIoU(
        num_labels,
        ignore_index,
        id2label=id2label or getattr(config, "id2label", None),
        absent_as_zero=absent_as_zero,
        device=_device(model),
    )
    samples = EvaluationSamples(dataset, processor, num_labels, ignore_index)
    mine = range(state.process_index, len(samples), state.num_processes)
    loader = DataLoader(samples, batch_size, sampler=mine, num_workers=num_workers, collate_fn=list)
    bar = tqdm(loader, desc="evaluate", unit="batch", disable=not (progress and state.is_main_process), leave=False)
    for predictions, labels in predict_label_maps(model, bar):
        metric.update(predictions, labels.to(predictions.device))
    metric.reduce(lambda counts: reduce(counts, "sum"))
    protocol = _protocol(model, processor, ignore_index, absent_as_zero)
    return {**metric.compute(), "num_images": len(samples), "protocol": protocol}


@torch.no_grad()
def predict_label_maps(
    model: nn.Module, batches: Iterable[Sequence[tuple[Tensor, Tensor]]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `(predictions, labels)`, both `(b, H, W)` int64, for batches of (pixel values, label) pairs."""
    with evaluating(model):
        for batch in batches:
            for pixel_values, labels in _group_by_size(batch):
                yield _predict(model, pixel_values, labels.shape[-2:]), labels


def segment_image(model: nn.Module, processor, image: Image.Image) -> np.ndarray:
    """Segment one picture: its `(H, W)` uint8 or uint16 label map, at the picture's size."""
    pixel_values = processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
    nothing = torch.zeros(image.height, image.width, dtype=torch.int64)
    predictions, _ = next(predict_label_maps(model, [[(pixel_values, nothing)]]))
    label_map = predictions[0].cpu().numpy()
    return label_map.astype(np.uint8 if label_map.max() < 256 else np.uint16)


def _predict(model: nn.Module, pixel_values: Tensor, size: tuple[int, int]) -> Tensor:
    logits = model(pixel_values=pixel_values.to(_device(model), _dtype(model))).logits
    align_corners = _align_corners(model)
    # One image at a time: K full-size score maps are what memory is needed for.
    return torch.stack([upsample_logits(one[None].float(), size, align_corners)[0].argmax(0) for one in logits])


def _group_by_size(batch: Sequence[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    groups: dict[tuple, list[tuple[Tensor, Tensor]]] = {}
    for pixel_values, labels in batch:
        groups.setdefault((*pixel_values.shape, *labels.shape), []).append((pixel_values, labels))
    for group in groups.values():
        images, labels = zip(*group, strict=True)
        yield torch.stack(images), torch.stack(labels)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _align_corners(model: nn.Module) -> bool:
    return getattr(getattr(model, "config", None), "align_corners", False)


def _protocol(model: nn.Module, processor, ignore_index: int, absent_as_zero: bool) -> dict[str, Any]:
    """Everything that influences the number, besides weights and images."""
    return {
        "scales": [1.0],
        "flip": False,
        "window": None,
        "scored_at": "label size",
        "logits_upsampling": "bilinear",
        "align_corners": _align_corners(model),
        "input_size": dict(processor.size) if getattr(processor, "do_resize", False) else "image size",
        "ignore_index": ignore_index,
        "absent_classes": "count as 0" if absent_as_zero else "left out of the mean",
        "dtype": str(_dtype(model)).removeprefix("torch."),
    }
