"""Run transformers' own tests of models and image processors on ours: `make test-upstream`.

Only transformers' source distribution has them. It is downloaded for the installed version to `runs/upstream`,
so this is not part of `make test`. `CANNOT_HOLD` lists the tests that our models cannot pass, and why.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import unittest
from importlib.metadata import version
from pathlib import Path

FOLDER = Path("runs/upstream")
# imported by the tests, but only in transformers' repository: a cache of Hub files, and tests of exporters and of text
# generation
NOT_DISTRIBUTED = {
    "fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
}
CANNOT_HOLD = {
    "the models have no input embeddings": ("test_model_get_set_embeddings",),
    "the backbone is a timm model, which cannot be saved by itself": ("test_correct_missing_keys",),
    "the layers to recompute are timm classes, which cannot derive from GradientCheckpointingLayer; timm's own "
    "checkpointing is used, which takes no options (tests/models/test_backbone.py)": (
        "test_gradient_checkpointing_enable_disable",
        "test_training_gradient_checkpointing",
        "test_training_gradient_checkpointing_use_reentrant_false",
        "test_training_gradient_checkpointing_use_reentrant_true",
    ),
}


def fetch() -> tuple[Path, Path]:
    """Fetch and unpack the source distribution, and create a folder with what its tests import in addition."""
    release = f"transformers-{version('transformers')}"
    source, extra = FOLDER / release, FOLDER / "packages"
    pip = [sys.executable, "-m", "pip", "--quiet"]
    if not source.is_dir():
        online = {**os.environ, "HF_HUB_OFFLINE": "1"}
        only_source = ["--no-deps", "--no-binary", "transformers", "--no-build-isolation"]
        command = [*pip, "download", *only_source, "--dest", str(FOLDER), release.replace("-", "==")]
        subprocess.run(command, check=True, env=online)
        with tarfile.open(FOLDER / f"{release}.tar.gz") as archive:
            archive.extractall(FOLDER, filter="data")
    if not extra.is_dir():
        subprocess.run([*pip, "install", "--no-deps", "--target", str(extra), "parameterized"], check=True)
        for name, text in NOT_DISTRIBUTED.items():
            (extra / name).parent.mkdir(parents=True, exist_ok=True)
            (extra / name).write_text(text)
    return source.resolve(), extra.resolve()


def main() -> int:
    """Fetch the tests if needed, run them on this file, and return pytest's exit status."""
    source, extra = fetch()
    paths = [str(extra), str(source), str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "AFDCD_UPSTREAM": str(source)}
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(source), "--noconftest"]
    options = ["-c", os.devnull, "--import-mode=importlib", *sys.argv[1:]]
    return subprocess.run([*pytest, *options, str(Path(__file__).resolve())], env=environment, cwd=source).returncode


if "AFDCD_UPSTREAM" in os.environ:  # under pytest, with the tests on the path
    import torch
    from tests.test_image_processing_common import (
        ImageProcessingTester,
        ImageProcessingTestMixin,
        PostProcessSemanticSegmentationTestMixin,
    )
    from tests.test_modeling_common import ModelTesterMixin

    from afdcd_hf import AfDcdConfig, AfDcdForSemanticSegmentation, AfDcdImageProcessor

    TINY = {"channels": [8, 16, 16, 32], "layers": [1, 1, 1, 1]}

    class ModelTester:
        """A small configuration and inputs for the mixins."""

        is_training = True
        batch_size, image_size, num_labels = 2, 32, 3

        def get_config(self) -> AfDcdConfig:
            return AfDcdConfig(
                backbone="resnet18", backbone_kwargs=TINY, head="fcn", head_channels=8, num_labels=self.num_labels
            )

        def prepare_config_and_inputs_for_common(self) -> tuple[AfDcdConfig, dict[str, torch.Tensor]]:
            return self.get_config(), {"pixel_values": torch.rand(self.batch_size, 3, self.image_size, self.image_size)}

    class AfDcdModelTest(ModelTesterMixin, unittest.TestCase):
        all_model_classes = (AfDcdForSemanticSegmentation,)
        has_attentions = False
        test_resize_embeddings = False

        def setUp(self) -> None:
            self.model_tester = ModelTester()

        def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
            inputs = dict(inputs_dict)
            if return_labels:
                inputs["labels"] = torch.zeros(*inputs["pixel_values"][:, 0].shape, dtype=torch.int64)
            return inputs

        def test_hidden_states_output(self) -> None:
            """Replaces the mixin's test, which expects sequences of tokens."""
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            model = AfDcdForSemanticSegmentation(config).eval()
            maps = model(**inputs, output_hidden_states=True).hidden_states
            assert [each.shape[1] for each in maps] == model.backbone.channels

    class Processor(ImageProcessingTester):
        """Settings for the image processor's mixin, which would otherwise find the class by this folder's name."""

        num_labels, size = 3, {"height": 24, "width": 32}

        def _get_image_processing_classes(self) -> dict[str, type]:
            return {"torchvision": AfDcdImageProcessor}

        def prepare_image_processor_dict(self) -> dict:
            return {"do_resize": True, "size": self.size}

        def expected_output_image_shape(self, images) -> tuple[int, int, int]:
            return self.num_channels, 24, 32

    class AfDcdImageProcessorTest(
        ImageProcessingTestMixin, PostProcessSemanticSegmentationTestMixin, unittest.TestCase
    ):
        image_processor_tester_class = Processor

    def skip(case: type, name: str, reason: str) -> None:
        if hasattr(case, name):
            setattr(case, name, unittest.skip(reason)(getattr(case, name)))

    for reason, names in CANNOT_HOLD.items():
        for name in names:
            skip(AfDcdModelTest, name, reason)
            skip(AfDcdImageProcessorTest, name, reason)


if __name__ == "__main__":
    sys.exit(main())
