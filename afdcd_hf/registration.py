"""Registration of our models with transformers' Auto classes, whichever of the two packages is imported first.

Importing `afdcd_hf` must stay cheap, and torch, timm and transformers are not. If transformers is not imported yet,
registration therefore waits until its import is complete, which also avoids circular imports.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def register_when_used() -> None:
    """Register now if transformers is already imported, otherwise right after its import."""
    if "transformers" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _AfterTransformers())


def register() -> None:
    """Register configuration, model and image processor with transformers' Auto classes."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
    from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING

    from .models.configuration_afdcd import AfDcdConfig
    from .models.image_processing_afdcd import AfDcdImageProcessor
    from .models.modeling_afdcd import AfDcdForSemanticSegmentation

    # register_for_auto_class makes save_pretrained put the source beside the weights, so that the folder also works
    # with trust_remote_code=True where this package is not installed.
    AfDcdConfig.register_for_auto_class()
    AfDcdForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
    AfDcdImageProcessor.register_for_auto_class("AutoImageProcessor")
    AutoConfig.register(AfDcdConfig.model_type, AfDcdConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(AfDcdConfig, AfDcdForSemanticSegmentation, exist_ok=True)
    AutoImageProcessor.register(
        AfDcdConfig, image_processor_classes={"torchvision": AfDcdImageProcessor}, exist_ok=True
    )
    # Pipelines look the class name up here, and print an error if it is missing.
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[AfDcdConfig.model_type] = AfDcdForSemanticSegmentation.__name__
    # Without an entry here, the image-segmentation pipeline also tries a video processor, takes the image processor's
    # custom code for one, and asks whether to run it. This entry says that there is none.
    VIDEO_PROCESSOR_MAPPING.register(AfDcdConfig, {}, exist_ok=True)


class _AfterTransformers:
    """Import hook that lets Python find and load transformers, then registers our classes."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        spec: Any = PathFinder.find_spec(fullname, path, target) if fullname == "transformers" else None
        if spec is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                sys.meta_path.remove(self)
                register()

            spec.loader.exec_module = load_and_register
        return spec
