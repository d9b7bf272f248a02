"""The segmentation model: timm backbone, decode head, optional auxiliary head.

This folder imports nothing else from the package, so that it can be saved with the weights as Hub custom code.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, initialization as init
from transformers.utils import ModelOutput, can_return_tuple, logging

from .backbone_afdcd import Backbone
from .configuration_afdcd import AfDcdConfig, WithoutGenericCard
from .heads import FCN, HEADS, SegmentationHead, upsample as upsample_logits

logger = logging.get_logger(__name__)


@dataclass
class AfDcdOutput(ModelOutput):
    """Output of a segmentation model.

    Attributes:
        loss: scalar, only if labels were given.
        logits: `(B, K, h/stride, w/stride)`.
        aux_logits: logits of the auxiliary head, only in training mode or if labels were given.
        hidden_states: the backbone's maps, shallow to deep, if requested.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    aux_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


def segmentation_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = 255,
    align_corners: bool = True,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Compute L_task: cross entropy at the label's size, in float32 even under autocast.

    Takes `(B, K, h, w)` logits and `(B, H, W)` int64 labels; averages over the pixels whose label is not
    `ignore_index`, weighted by `class_weights` `(K,)` as in PyTorch. If every pixel is ignored, the loss and its
    gradient are exactly 0.
    """
    counted = labels != ignore_index
    with torch.autocast(logits.device.type, enabled=False):
        scores = upsample_logits(logits.float(), labels.shape[-2:], align_corners)
        total = F.cross_entropy(scores, labels, weight=class_weights, ignore_index=ignore_index, reduction="sum")
        if class_weights is None:
            return total / counted.sum().clamp(min=1)
        return total / class_weights[labels[counted]].sum().clamp(min=torch.finfo(torch.float32).tiny)


class AfDcdPreTrainedModel(WithoutGenericCard, PreTrainedModel):
    """Loading, saving and weight initialisation."""

    config: AfDcdConfig
    config_class = AfDcdConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    # The loss is a mean over pixels: the Trainer must divide it by the number of accumulation steps itself.
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a model as transformers does, then move the weights to aligned memory."""
        # safetensors maps the file into memory, where a tensor may start at any multiple of 4 bytes; for some shapes
        # the CPU's matrix products then add up in another order, and the logits differ in the last bit
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple with output_loading_info=True
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu":
                tensor.data = tensor.data.clone()
        return loaded

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable | None = None, every_n_layers: int = 1
    ) -> None:
        """Checkpoint only the backbone; called by transformers' `gradient_checkpointing_enable` and `_disable`."""
        options = dict(getattr(gradient_checkpointing_func, "keywords", {}))
        offloads = getattr(gradient_checkpointing_func, "func", checkpoint) is not checkpoint
        if enable and (options.pop("use_reentrant", False) or options or every_n_layers != 1 or offloads):
            raise ValueError(
                "Gradient checkpointing is timm's own here (use_reentrant=False) and takes no further options: "
                "leave out gradient_checkpointing_kwargs."
            )
        self.backbone.set_gradient_checkpointing(enable)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if rebuild := getattr(module, "init_non_persistent_buffers", None):  # timm layers rebuilt on the meta device
            rebuild()
        elif isinstance(module, nn.Conv2d):
            # PyTorch's default, as in the released heads. transformers' own and Kaiming fan-out give initial scores so
            # large that the first cross entropy is two to three times ln K.
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)


class AfDcdForSemanticSegmentation(AfDcdPreTrainedModel):
    """A decode head of `heads.HEADS` on any timm backbone.

    Args:
        config: the architecture.
        pretrained_backbone: as in `from_backbone`; not in the configuration, so that loading never looks for it.
    """

    def __init__(self, config: AfDcdConfig, pretrained_backbone: bool | str | os.PathLike = False):
        super().__init__(config)
        options = config.backbone_kwargs or {}
        self.backbone = Backbone(config.backbone, config.output_stride, pretrained_backbone, **options)
        if not any(parameter.is_meta for parameter in self.backbone.parameters()):  # else from_pretrained fills it
            item: Any
            for item in (*self.backbone.parameters(), *self.backbone.buffers(), *self.backbone.modules()):
                item._is_hf_initialized = True  # by timm; `post_init` would overwrite weights and running statistics
        channels, strides = self.backbone.channels, self.backbone.strides
        self.head = SegmentationHead(HEADS[config.head], channels, strides, config)
        self.auxiliary_head = None
        if config.auxiliary_head:
            if len(channels) < 2:
                raise ValueError(f"auxiliary_head needs a second map, but backbone {config.backbone!r} gives only one.")
            self.auxiliary_head = SegmentationHead(partial(FCN, auxiliary=True), channels[:-1], strides[:-1], config)
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        backbone: str,
        *,
        pretrained_backbone: bool | str | os.PathLike | None = None,
        backbone_kwargs: dict[str, Any] | None = None,
        output_stride: int = 8,
        head: str = "deeplabv3",
        head_channels: int | None = None,
        atrous_rates: Sequence[int] | None = None,
        auxiliary_head: bool = False,
        auxiliary_loss_weight: float = 0.4,
        align_corners: bool = True,
        semantic_loss_ignore_index: int = 255,
        num_labels: int | None = None,
        id2label: Mapping[int, str] | None = None,
        label2id: Mapping[str, int] | None = None,
    ) -> AfDcdForSemanticSegmentation:
        """Build a new model with a random or an ImageNet-pretrained backbone.

        Args:
            backbone: timm model name.
            pretrained_backbone: True for timm's weights (from the Hub or its cache), the path of a local `.safetensors`
                file of the timm model, or False for random weights. The default is False, with a warning.
            num_labels: number of classes; 2 if neither it nor `id2label` is given.

        The other arguments are fields of `AfDcdConfig`, which describes them.
        """
        fields = {name: value for name, value in locals().items() if name not in ("cls", "pretrained_backbone")}
        classes = ("num_labels", "id2label", "label2id")
        given = {name: value for name, value in fields.items() if name not in classes or value is not None}
        if pretrained_backbone is None:
            logger.warning(f"{backbone} starts from random weights; pretrained_backbone=True uses ImageNet weights.")
        return cls(AfDcdConfig(**given), pretrained_backbone=pretrained_backbone or False)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> AfDcdOutput:
        """Segment a batch; `return_dict=False` returns a tuple of those fields of `AfDcdOutput` that are set.

        Args:
            pixel_values: `(B, 3, H, W)` float, from the image processor; any size.
            labels: `(B, H', W')` int64 class ids, `config.semantic_loss_ignore_index` where unlabelled.
            output_hidden_states: also return the backbone's maps.
            output_attentions: must be false; accepted because transformers' own code may pass it.

        Raises:
            ValueError: images of another shape, or `output_attentions=True`.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            raise ValueError(f"pixel_values must be (B, 3, H, W), got {tuple(pixel_values.shape)}.")
        if output_attentions:
            raise ValueError("output_attentions=True: timm's backbones return no attentions; leave it out.")
        maps = self.backbone(pixel_values)
        logits = self.head(maps)
        wants_auxiliary = self.training or labels is not None
        aux_logits = self.auxiliary_head(maps[:-1]) if self.auxiliary_head is not None and wants_auxiliary else None
        loss = None
        if labels is not None:
            settings = labels, self.config.semantic_loss_ignore_index, self.config.align_corners
            loss = segmentation_cross_entropy(logits, *settings)
            if aux_logits is not None:
                loss = loss + self.config.auxiliary_loss_weight * segmentation_cross_entropy(aux_logits, *settings)
        hidden_states = tuple(maps) if output_hidden_states or self.config.output_hidden_states else None
        return AfDcdOutput(loss=loss, logits=logits, aux_logits=aux_logits, hidden_states=hidden_states)
