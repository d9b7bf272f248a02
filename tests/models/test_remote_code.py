"""A pushed network where this package is not installed: a virtual environment of its own, over HTTP."""

from __future__ import annotations

import os
import site
import subprocess
import venv
from pathlib import Path

import pytest
import torch
from hub_client import serving
from hub_server import HubServer
from images import labelled_image
from safetensors.torch import load_file
from tiny import segmenter
from transformers import pipeline

from afdcd_hf import AfDcdImageProcessor
from afdcd_hf.hub.push import push_folder

REPO = "street/tiny"
WITHOUT_PACKAGE = """
import importlib.util, sys
assert importlib.util.find_spec("afdcd_hf") is None, "the package is installed here"
import numpy, torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
repo, picture, output = sys.argv[1:]
torch.set_num_threads(1)
segment = pipeline("image-segmentation", model=repo, trust_remote_code=True)
found = {entry["label"]: torch.from_numpy(numpy.array(entry["mask"])) for entry in segment(picture)}
processor = AutoImageProcessor.from_pretrained(repo, trust_remote_code=True)
model = AutoModelForSemanticSegmentation.from_pretrained(repo, trust_remote_code=True).eval()
with torch.no_grad():
    found["logits"] = model(**processor(images=Image.open(picture), return_tensors="pt")).logits
save_file({name: tensor.contiguous() for name, tensor in found.items()}, output)
print(*(type(part).__module__ for part in (segment.model, segment.image_processor, model, processor)))
"""


def environment_without_package(folder: Path) -> Path:
    """A virtual environment that sees all that is installed here, but for this package; its Python."""
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    packages = next(folder.rglob("site-packages"))
    # The installed packages are linked one by one. A .pth file that names their folder would do only where this
    # package is an editable installation.
    for installed in (Path(path) for path in dict.fromkeys([*site.getsitepackages(), site.getusersitepackages()])):
        for path in installed.iterdir() if installed.is_dir() else ():
            ours = path.name.startswith(("afdcd_hf", "__editable__")) or path.suffix == ".pth"
            if not ours and path.name != "__pycache__" and not (packages / path.name).exists():
                (packages / path.name).symlink_to(path)
    return folder / ("Scripts" if os.name == "nt" else "bin") / "python"


def run_without_package(hub: HubServer, folder: Path, *arguments: str | Path) -> str:
    """Run the script there with empty caches and no token; what it prints."""
    python = environment_without_package(folder / "venv")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment = {**kept, **hub.client_settings(token=None), "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-c", WITHOUT_PACKAGE, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout


@pytest.mark.slow
def test_a_pushed_network_works_with_pipeline_where_the_package_is_not_installed(tmp_path):
    model = segmenter(3, head="deeplabv3", auxiliary_head=True, id2label=dict(enumerate("abcd"))).eval()
    processor = AfDcdImageProcessor(do_flip_channels=True)
    with torch.no_grad():  # or one class would win everywhere
        logits = model(**processor(images=labelled_image(0, 4, 32, 48)["image"], return_tensors="pt")).logits
        model.head.classifier.bias -= logits.mean(dim=(0, 2, 3))
    for part in (model, processor):
        part.save_pretrained(tmp_path / "run")
    picture = tmp_path / "picture.png"
    labelled_image(0, 4, 32, 48)["image"].save(picture)
    with serving(tmp_path) as hub:
        push_folder(tmp_path / "run", REPO)
        printed = run_without_package(hub, tmp_path, REPO, picture, tmp_path / "found.safetensors")
    assert printed.count("transformers_modules.") == 4
    there = load_file(tmp_path / "found.safetensors")
    image = labelled_image(0, 4, 32, 48)["image"]
    with torch.no_grad():
        assert torch.equal(there.pop("logits"), model(**processor(images=image, return_tensors="pt")).logits)
    here = pipeline("image-segmentation", model=model, image_processor=processor)(image)
    assert there.keys() == {entry["label"] for entry in here} and len(there) > 1
    for entry in here:
        mask = torch.frombuffer(bytearray(entry["mask"].tobytes()), dtype=torch.uint8).reshape(32, 48)
        assert torch.equal(there[entry["label"]], mask)
