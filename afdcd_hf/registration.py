"""Makes transformers' Auto classes know our models, when they are first used and not before.

Importing `afdcd_hf` must stay cheap, and transformers' Auto modules, timm and torchvision are not. So the registration
waits for the import of the Auto modules, which every use of an Auto class or a pipeline goes through.
"""

from __future__ import annotations

import sys
from types import ModuleType

from wrapt import register_post_import_hook

_AUTO_PROCESSOR = "transformers.models.auto.image_processing_auto"
# What has to be complete before our processor can be registered: module -> the class it defines.
_PROCESSORS = {
    _AUTO_PROCESSOR: "AutoImageProcessor",
    "transformers.models.segformer.image_processing_segformer": "SegformerImageProcessor",
    "afdcd_hf.models.image_processing_afdcd": "AfDcdImageProcessor",
}


def register_when_used() -> None:
    """Register with transformers as soon as its Auto modules are imported (at once where they already are)."""
    register_post_import_hook(_register_config, "transformers.models.auto.configuration_auto")
    register_post_import_hook(_register_model, "transformers.models.auto.modeling_auto")
    for module in _PROCESSORS:
        register_post_import_hook(_register_processor, module)
    register_post_import_hook(_register_no_video, "transformers.models.auto.video_processing_auto")


def _register_config(auto: ModuleType) -> None:
    from .models.configuration_afdcd import AfDcdConfig

    AfDcdConfig.register_for_auto_class()
    auto.AutoConfig.register(AfDcdConfig.model_type, AfDcdConfig, exist_ok=True)


def _register_model(auto: ModuleType) -> None:
    from .models.configuration_afdcd import AfDcdConfig
    from .models.modeling_afdcd import AfDcdForSemanticSegmentation

    # register_for_auto_class makes save_pretrained put the model's source beside the weights, so that the folder also
    # works with trust_remote_code=True where this package is not installed.
    AfDcdForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
    auto.AutoModelForSemanticSegmentation.register(AfDcdConfig, AfDcdForSemanticSegmentation, exist_ok=True)
    # Pipelines look the class name up here, only to print an error where it is missing.
    auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[AfDcdConfig.model_type] = AfDcdForSemanticSegmentation.__name__


def _register_processor(_: ModuleType) -> None:
    # Called for each of _PROCESSORS: transformers imports the first in the midst of importing the second, and so also
    # of importing our own. Whichever is complete last gets past the check.
    started = {name: sys.modules[name] for name in _PROCESSORS if name in sys.modules}
    if _AUTO_PROCESSOR not in started or not all(hasattr(started[name], _PROCESSORS[name]) for name in started):
        return
    from .models.configuration_afdcd import AfDcdConfig
    from .models.image_processing_afdcd import AfDcdImageProcessor

    AfDcdImageProcessor.register_for_auto_class("AutoImageProcessor")
    started[_AUTO_PROCESSOR].AutoImageProcessor.register(
        AfDcdConfig, image_processor_classes={"torchvision": AfDcdImageProcessor}, exist_ok=True
    )


def _register_no_video(auto: ModuleType) -> None:
    # The image-segmentation pipeline also tries a video processor; it takes the image processor's custom code for one
    # and would stop to ask whether to run it, unless it finds an entry for the model. Ours says: there is none.
    from .models.configuration_afdcd import AfDcdConfig

    auto.VIDEO_PROCESSOR_MAPPING.register(AfDcdConfig, {}, exist_ok=True)
