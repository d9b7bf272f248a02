"""transformers' Auto classes know our models, whatever was imported first."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHECK = """
from afdcd_hf import AfDcdConfig, AfDcdForSemanticSegmentation, AfDcdImageProcessor
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
assert type(AutoConfig.for_model("afdcd")) is AfDcdConfig
assert MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING[AfDcdConfig] is AfDcdForSemanticSegmentation
assert IMAGE_PROCESSOR_MAPPING[AfDcdConfig] == {"torchvision": AfDcdImageProcessor}
"""


@pytest.mark.parametrize(
    "first",
    [
        "from afdcd_hf import AfDcdImageProcessor",
        "import afdcd_hf; from transformers import SegformerImageProcessor",
    ],
)
def test_the_auto_classes_know_our_models_whatever_was_imported_first(first):
    done = subprocess.run([sys.executable, "-c", first + CHECK], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
