"""Evaluation of a segmenter at the label's own size, in constant memory, for the Trainer and all commands."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from PIL.Image import Resampling
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from tqdm.auto import tqdm

from ..data.checks import check_columns, check_labels, check_same_size, with_ignore_index
from ..data.decoding import with_decoding
from ..data.streaming import StreamedRows, is_stream
from ..inference.segment import WHOLE_IMAGE, InferenceSettings, Predictor, Sample, as_array, make_sample, prefetch
from ..metrics.boundary_iou import StreamingBoundaryIoU
from ..metrics.mean_iou import StreamingMeanIoU
from ..model_utils import align_corners_of, device_of, dtype_of, ignore_index_of
from ..models.loading import is_bgr

logger = logging.getLogger(__name__)


class EvaluationSamples(Dataset):
    """Images processed for the model, with their labels as they are; arguments as in `evaluate_segmenter`."""

    def __init__(self, dataset: Any, processor: Any, num_labels: int, ignore_index: int = 255) -> None:
        self.dataset, self.processor = with_decoding(dataset), processor
        self.num_labels, self.ignore_index = num_labels, ignore_index

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        row = self.dataset[int(index)]
        return self.sample(row, row.get("name") or f"image {index}")

    def sample(self, row: Mapping[str, Any], name: str) -> Sample:
        image, label = row["image"], None
        if row.get("label") is not None:
            ids = with_ignore_index(np.asarray(row["label"]), self.num_labels, self.ignore_index)
            check_same_size(image, ids, name)
            check_labels(ids, self.num_labels, self.ignore_index, name)
            label = torch.from_numpy(ids.astype(np.uint8 if ids.dtype == np.uint8 else np.int64))
        return make_sample(self.processor, image, name, label)


class EvaluationStream(IterableDataset):
    """`EvaluationSamples` from a stream, shared among processes and their workers."""

    def __init__(self, dataset: Any, samples: EvaluationSamples, process: int, processes: int) -> None:
        self.rows = dataset if isinstance(dataset, StreamedRows) else StreamedRows(dataset)
        self.samples, self.share = samples, (process, processes)

    def __iter__(self) -> Iterator[Sample]:
        return (self.samples.sample(row, row["name"]) for _, row in self.rows.part(*self.share))


def evaluate_segmenter(
    model: nn.Module,
    dataset: Sequence[Mapping[str, Any]] | Iterable[Mapping[str, Any]],
    *,
    processor: Any,
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
    """Score a model on a labelled dataset, at the label's own size.

    See `Predictor` for label maps, memory and modes. No random state is changed. Several processes (torchrun,
    accelerate launch) share the images, count each once, and return the same result. Images without a label are
    segmented but not scored.

    Args:
        model: returns `.logits` `(B, K, h, w)` for `model(pixel_values=...)`.
        dataset: indexable, with PIL images in `image` and `label` (class ids, one channel; None if there is no
            label) and, optionally, `name`; or a stream of such rows, which are not kept.
        processor: image processor of the model.
        id2label, num_labels: names and number of classes, two or more; by default the configuration's.
        ignore_index: label that is not counted; by default the configuration's, or 255 if it has none. With up to 255
            classes, the label 255, by which files mark such pixels, is not counted either.
        batch_size: images, or windows, per forward pass.
        num_workers: processes that decode images; 0 for a thread of this process.
        absent_as_zero: count a class absent from truth and prediction as IoU 0, as the released code does.
        settings: scales, flip, sliding window and precision; by default the whole image once, in the weights' dtype.
        boundary_ratio: also score Boundary IoU in bands of this share of the image diagonal; see
            `StreamingBoundaryIoU`.
        on_prediction: called once per image, in the process that segmented it, with its name, `image <position>` if it
            has none, and its `(H, W)` label map (uint8, or uint16 for models with more than 256 classes).
        progress: show a progress bar on the main process.

    Returns:
        The results of `StreamingMeanIoU.compute` (all NaN, and `num_pixels` 0, if no pixel is labelled) and, with
        `boundary_ratio`, of `StreamingBoundaryIoU.compute`; `confusion_matrix`, `(K, K)` int64, rows = truth;
        `num_images`, `num_labelled` of them, `seconds` (of this process: waiting for images, model, label maps,
        counting, all) and `protocol` (everything above that influences the numbers).

    Raises:
        ValueError: an empty dataset, missing columns, an unknown number of classes or only one, a bad `boundary_ratio`,
            an image and label of different size, a label out of range, or scores that are not finite; image and value
            are named.
    """
    check_columns(dataset)
    stream = is_stream(dataset)
    config, state = getattr(model, "config", None), PartialState()
    num_labels = num_labels or getattr(config, "num_labels", None)
    if num_labels is None:
        raise ValueError(
            f"The number of classes is unknown: {type(model).__name__} has no config.num_labels. Pass num_labels to "
            "evaluate_segmenter."
        )
    if num_labels < 2:
        raise ValueError(
            "A model of one class is right at every pixel, whatever it has learned: its score of 100 % means "
            "nothing. Give the background a class of its own."
        )
    if ignore_index is None:
        ignore_index = ignore_index_of(model)
    names = id2label or getattr(config, "id2label", None)
    options: dict[str, Any] = {"id2label": names, "absent_as_zero": absent_as_zero, "device": device_of(model)}
    metrics = [StreamingMeanIoU(num_labels, ignore_index, **options)]
    if boundary_ratio is not None:
        metrics.append(StreamingBoundaryIoU(num_labels, ignore_index, boundary_ratio, **options))
    predictor = Predictor(model, settings)
    share = state.process_index, state.num_processes
    samples: Any = EvaluationSamples([] if stream else dataset, processor, num_labels, ignore_index)
    mine = None if stream else range(share[0], len(samples), share[1])
    samples = EvaluationStream(dataset, samples, *share) if stream else samples
    # With its own generator, the loader draws nothing from torch's
    loader: DataLoader = DataLoader(
        samples, batch_size, sampler=mine, num_workers=num_workers, collate_fn=list, generator=torch.Generator()
    )
    silent, total = not (progress and state.is_main_process), None if mine is None else len(mine)
    with tqdm(total=total, desc="evaluate", unit="image", disable=silent, leave=False) as bar:
        with predictor.seconds.of("all"):
            num_images, num_labelled = _score(predictor, loader, metrics, on_prediction, bar.update)
    for metric in metrics:
        metric.reduce(lambda counts: reduce(counts, "sum"))
    found = torch.tensor([num_images, num_labelled, predictor.multiple > 1], device=device_of(model))
    num_images, num_labelled, padded = reduce(found, "sum").tolist()
    if num_images == 0:
        raise ValueError("There is nothing to evaluate: the dataset is empty.")
    matrix = metrics[0].confusion_matrix.cpu().numpy()
    [present] = np.nonzero(matrix.sum(1))
    if state.is_main_process and num_labelled == 0:
        logger.warning("None of the %d images has a label, so all scores are NaN.", num_images)
    if state.is_main_process and num_labelled > 1 and len(present) == 1:
        logger.warning(
            "All labelled pixels are %r: this score says little. Are the labels what the model expects? In masks of "
            '0 and 255, 255 is ignored; label_map {"255": 1} makes it a class.',
            metrics[0].class_names[present[0]],
        )
    return {
        **{name: value for metric in metrics for name, value in metric.compute().items()},
        "confusion_matrix": matrix,
        "num_images": num_images,
        "num_labelled": num_labelled,
        "seconds": {part: round(seconds, 3) for part, seconds in predictor.seconds.items()},
        "protocol": {
            **predictor.settings.describe(),
            **_protocol(model, processor),
            "ignore_index": ignore_index,
            "absent_classes": "count as 0" if absent_as_zero else "left out of the mean",
            "boundary_ratio": boundary_ratio,
            **({"input_padding": "zeros, to a multiple that the model takes"} if padded else {}),
        },
    }


def _score(
    predictor: Predictor, loader: DataLoader, metrics: Sequence[Any], on_prediction: Any, step: Callable[[], Any]
) -> tuple[int, int]:
    """Count and pass on every prediction; return the numbers of images and of labelled ones."""
    num_images, num_labelled, seconds = 0, 0, predictor.seconds

    def next_batch() -> list[Sample] | None:
        with seconds.of("waiting for images"):
            return next(batches, None)

    with (
        closing(prefetch(iter(loader))) as batches,
        closing(predictor.label_maps(iter(next_batch, None))) as predictions,
    ):
        for sample, label_map in predictions:
            if sample.label is not None:
                with seconds.of("counting"):
                    label = sample.label.to(label_map.device)
                    for metric in metrics:
                        metric.update(label_map, label)
                num_labelled += 1
            if on_prediction is not None:
                on_prediction(sample.name, as_array(label_map))
            num_images += 1
            step()
    return num_images, num_labelled


def _protocol(model: nn.Module, processor: Any) -> dict[str, Any]:
    """Return the properties of model and processor that influence the scores."""
    own = {what: getattr(processor, f"do_{what}", False) for what in ("resize", "rescale", "normalize")}
    return {
        "dtype": str(dtype_of(model)).removeprefix("torch."),
        "scored_at": "label size",
        "logits_upsampling": "bilinear",
        "align_corners": align_corners_of(model),
        "input_size": dict(processor.size) if own["resize"] else "image size",
        "input_resampling": Resampling(processor.resample).name.lower() if own["resize"] else None,
        "channel_order": "BGR" if is_bgr(processor) else "RGB",
        "rescale_factor": processor.rescale_factor if own["rescale"] else None,
        "image_mean": list(processor.image_mean) if own["normalize"] else None,
        "image_std": list(processor.image_std) if own["normalize"] else None,
    }
