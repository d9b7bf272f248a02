"""The image processor: from an image to the model's input, and from its output to a label map."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import SegformerImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, SizeDict
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.processing_utils import ImagesKwargs

from .configuration_afdcd import WithoutGenericCard
from .image_modes_afdcd import as_rgb

# The released models' input: BGR, 0..255, mean subtracted but not divided (mean and std in BGR order).
RELEASED_INPUT = {
    "do_flip_channels": True,
    "do_rescale": False,
    "image_mean": [104.00698793, 116.66876762, 122.67891434],
    "image_std": [1.0, 1.0, 1.0],
}


class AfDcdImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]  # a TypedDict
    """
    do_flip_channels (`bool`, *optional*, defaults to `self.do_flip_channels`):
        Whether to turn RGB into BGR before normalisation.
    align_corners (`bool`, *optional*, defaults to `self.align_corners`):
        How logits are upsampled in post-processing.
    """

    do_reduce_labels: bool
    do_flip_channels: bool
    align_corners: bool


class AfDcdImageProcessor(WithoutGenericCard, SegformerImageProcessor):
    """An image processor that rescales and normalises images, and can resize them and flip their channels.

    The defaults are those of timm's and torchvision's ImageNet weights: RGB, divided by 255, ImageNet mean and
    standard deviation, no resizing. The released models need `AfDcdImageProcessor(**RELEASED_INPUT)`.

    Images of different sizes must be returned as a list (`return_tensors=None`), resized (`do_resize=True,
    size={"height": ..., "width": ...}`) or padded at the right and the bottom with the mean, labels with 255
    (`do_pad=True, pad_size={"height": ..., "width": ...}`). Post-processing crops the padding off again if these were
    given here, to the constructor or `from_pretrained`, not to a call: it does not see the options of calls.
    """

    valid_kwargs = AfDcdImageProcessorKwargs
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_convert_rgb = True
    do_resize = False
    do_reduce_labels = False
    do_flip_channels = False
    align_corners = True

    def process_image(self, image: Any, do_convert_rgb: bool | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """Convert an image of any mode to a tensor of three channels; label maps (`do_convert_rgb=False`) are kept.

        Raises ValueError for a mode without defined colours, or an array of integers of more than 8 bits.
        """
        if do_convert_rgb:
            if isinstance(image, Image.Image):
                image = as_rgb(image)
            elif str(image.dtype).removeprefix("torch.") in ("int16", "uint16", "int32", "uint32"):
                raise ValueError(f"The image is an array of {image.dtype}; expected uint8 (0 to 255) or floats.")
        return super().process_image(image, do_convert_rgb, *args, **kwargs)

    def convert_to_rgb(self, image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Convert an array `(C, h, w)` to three channels; a fourth, transparency, is dropped as in `as_rgb`."""
        return super().convert_to_rgb(image[:3] if len(image) == 4 else image, *args, **kwargs)

    def _preprocess(  # type: ignore[override]  # transformers calls it by name
        self,
        images: list[Tensor],
        *,
        do_flip_channels: bool = False,
        do_pad: bool | None = None,
        pad_size: SizeDict | None = None,
        **kwargs: Any,
    ) -> Any:
        if do_pad and (pad_size is None or kwargs.get("do_resize")):
            raise ValueError(
                "do_pad=True needs pad_size={'height': ..., 'width': ...}, at least as large as every image, and no "
                "do_resize."
            )
        # Label maps come through here too, with one channel and do_normalize=False.
        if do_flip_channels:
            images = [image.flip(-3) if image.shape[-3] == 3 else image for image in images]
        images = super()._preprocess(images, **kwargs)
        if not do_pad:
            return images
        return self.pad(images, pad_size=pad_size, fill_value=0 if images[0].shape[-3] == 3 else 255)

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: list[tuple] | None = None, return_segmentation_scores: bool = False
    ) -> list[Any]:
        """Turn logits into one int64 label map `(height, width)` per image.

        Args:
            outputs: anything with `.logits` `(B, K, h, w)`.
            target_sizes: (height, width) per image; ValueError for another number of them. Logits are upsampled to it
                (with the processor's `align_corners`, without the padding) before the arg max. None: no upsampling.
            return_segmentation_scores: as in transformers, which then returns an object with map and scores.
        """
        stock = super().post_process_semantic_segmentation
        if target_sizes is None or not (self.align_corners or self.do_pad):
            return stock(outputs, target_sizes, return_segmentation_scores)
        if len(target_sizes) != len(outputs.logits):
            raise ValueError(f"{len(target_sizes)} target_sizes were given for {len(outputs.logits)} images.")
        results: list[Any] = []
        for logits, (height, width) in zip(outputs.logits, target_sizes, strict=True):
            size = (int(height), int(width))
            whole = (self.pad_size["height"], self.pad_size["width"]) if self.do_pad else size
            scores = F.interpolate(logits[None].float(), whole, mode="bilinear", align_corners=self.align_corners)
            scores = scores[..., : size[0], : size[1]]
            results += stock(SemanticSegmenterOutput(logits=scores), None, return_segmentation_scores)
        return results
