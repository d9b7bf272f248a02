"""Scoring a segmenter: one image at a time at the label's own size, in constant memory.

The Trainer, `afdcd evaluate` and the quickstart all come through here, so that a number means the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from PIL.Image import Resampling
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..data.checks import check_labels, check_same_size
from ..inference.segment import WHOLE_IMAGE, InferenceSettings, Sample, as_array, make_sample, predict_label_maps
from ..metrics.boundary_iou import StreamingBoundaryIoU
from ..metrics.mean_iou import StreamingMeanIoU
from ..model_utils import align_corners_of, device_of, dtype_of


class EvaluationSamples(Dataset):
    """Images as the network wants them, beside the label as it is.

    Args:
        dataset: indexable, with PIL images in `image` and `label` (None where there is none) and, optionally, a `name`.
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

    def __getitem__(self, index: int) -> Sample:
        row = self.dataset[int(index)]
        name, image = row.get("name") or f"image {index}", row["image"]
        if row.get("label") is None:
            return make_sample(self.processor, image, name)
        label = np.asarray(row["label"])
        check_same_size(image, label, name)
        check_labels(label, self.num_labels, self.ignore_index, name)
        label = torch.from_numpy(label.astype(np.uint8 if label.dtype == np.uint8 else np.int64))
        return make_sample(self.processor, image, name, label)


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
    settings: InferenceSettings = WHOLE_IMAGE,
    boundary_ratio: float | None = None,
    on_prediction: Callable[[str, np.ndarray], Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Score a network on a labelled dataset, at the label's own size.

    How label maps come about, and what memory that takes, is told at `predict_label_maps`. The network runs in eval
    mode on the device where it is, and its mode is restored. Several processes (torchrun, accelerate launch) share the
    images, each counted once, and return the same result.

    Images without a label are segmented, but not scored.

    Args:
        model: returns `.logits` `(B, K, h, w)` for `model(pixel_values=...)`.
        dataset: indexable, with PIL images in `image` and `label` (class ids, one channel; None where there is no
            label) and, optionally, `name`.
        processor: image processor of the network.
        id2label: class names; the configuration's where None.
        num_labels: number of classes; the configuration's where None.
        ignore_index: label that is not counted; the configuration's where None, 255 where it names none.
        batch_size: images, or windows, per forward pass; images of different sizes are never padded, but run one size
            at a time.
        num_workers: processes that decode images.
        absent_as_zero: count a class absent from truth and prediction as IoU 0, as the released code does.
        settings: scales, flip, sliding window and precision; by default the whole image once, as the weights are.
        boundary_ratio: also score Boundary IoU in bands of this share of the image diagonal; see
            `StreamingBoundaryIoU`.
        on_prediction: called with the name of each image, `image <position>` where it has none, and its `(H, W)` label
            map of class ids (uint8, or uint16 for networks with more than 256 classes): once per image, in the process
            that segmented it.
        progress: show a bar on the main process.

    Returns:
        `mean_iou`, `mean_accuracy`, `overall_accuracy`, `frequency_weighted_iou` (0..1), `per_category_iou`,
        `per_category_accuracy`, `absent_classes`, `num_pixels`, with `boundary_ratio` also `mean_boundary_iou` and
        `per_category_boundary_iou`; `confusion_matrix`, `(K, K)` int64, rows = truth; `num_images`, `num_labelled` of
        them, and `protocol` (everything above that influences the numbers). Where no pixel is labelled, `num_pixels`
        is 0 and all scores are NaN.

    Raises:
        ValueError: an empty dataset, an unknown number of classes, a `boundary_ratio` out of range, an image and label
            of different size, or a label outside the class range; image and value are named.
    """
    if len(dataset) == 0:
        raise ValueError("There is nothing to evaluate: the dataset is empty.")
    config, state = getattr(model, "config", None), PartialState()
    num_labels = _number_of_classes(model, num_labels)
    if ignore_index is None:
        ignore_index = getattr(config, "semantic_loss_ignore_index", 255)
    names = id2label or getattr(config, "id2label", None)
    options = {"id2label": names, "absent_as_zero": absent_as_zero, "device": device_of(model)}
    metrics = [StreamingMeanIoU(num_labels, ignore_index, **options)]
    if boundary_ratio is not None:
        metrics.append(StreamingBoundaryIoU(num_labels, ignore_index, boundary_ratio, **options))
    samples = EvaluationSamples(dataset, processor, num_labels, ignore_index)
    mine = range(state.process_index, len(samples), state.num_processes)
    loader = DataLoader(samples, batch_size, sampler=mine, num_workers=num_workers, collate_fn=list)
    bar = tqdm(loader, desc="evaluate", unit="batch", disable=not (progress and state.is_main_process), leave=False)
    with closing(predict_label_maps(model, bar, settings)) as predictions:
        num_labelled = _score(predictions, metrics, on_prediction)
    for metric in metrics:
        metric.reduce(lambda counts: reduce(counts, "sum"))
    scores = {name: value for metric in metrics for name, value in metric.compute().items()}
    return {
        **scores,
        "confusion_matrix": metrics[0].confusion_matrix.cpu().numpy(),
        "num_images": len(samples),
        "num_labelled": reduce(torch.tensor(num_labelled, device=device_of(model)), "sum").item(),
        "protocol": _protocol(model, processor, settings, ignore_index, absent_as_zero, boundary_ratio),
    }


def _number_of_classes(model: nn.Module, num_labels: int | None) -> int:
    num_labels = num_labels or getattr(getattr(model, "config", None), "num_labels", None)
    if num_labels is None:
        raise ValueError(
            f"The number of classes is unknown: {type(model).__name__} has no config.num_labels. Pass num_labels to "
            "evaluate_segmenter, or give the network such a config."
        )
    return num_labels


def _score(predictions: Iterable[tuple[Sample, torch.Tensor]], metrics: Sequence, on_prediction) -> int:
    """Count, and hand on, every prediction; how many had a label."""
    num_labelled = 0
    for sample, label_map in predictions:
        if sample.label is not None:
            label = sample.label.to(label_map.device)
            for metric in metrics:
                metric.update(label_map, label)
            num_labelled += 1
        if on_prediction is not None:
            on_prediction(sample.name, as_array(label_map))
    return num_labelled


def _protocol(
    model: nn.Module,
    processor,
    settings: InferenceSettings,
    ignore_index: int,
    absent_as_zero: bool,
    boundary_ratio: float | None,
) -> dict[str, Any]:
    """Everything that influences the number, besides weights and images."""
    return {
        **settings.describe(),
        "dtype": str(dtype_of(model)).removeprefix("torch."),
        "scored_at": "label size",
        "logits_upsampling": "bilinear",
        "align_corners": align_corners_of(model),
        **_processing(processor),
        "ignore_index": ignore_index,
        "absent_classes": "count as 0" if absent_as_zero else "left out of the mean",
        "boundary_ratio": boundary_ratio,
    }


def _processing(processor) -> dict[str, Any]:
    """What the image processor does to a picture; None for what it leaves out."""
    resizes, rescales, normalises = (
        getattr(processor, f"do_{what}", False) for what in ("resize", "rescale", "normalize")
    )
    return {
        "input_size": dict(processor.size) if resizes else "image size",
        "input_resampling": Resampling(processor.resample).name.lower() if resizes else None,
        "channel_order": "BGR" if getattr(processor, "do_flip_channels", False) else "RGB",
        "rescale_factor": processor.rescale_factor if rescales else None,
        "image_mean": list(processor.image_mean) if normalises else None,
        "image_std": list(processor.image_std) if normalises else None,
    }
