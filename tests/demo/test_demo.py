"""The demo page without a browser: uploads, results, the app, the command, and the Space folder."""

from __future__ import annotations

import ast
import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import SpaceCardData
from huggingface_hub.repocard import RepoCard
from PIL import Image
from tiny import segmenter

import afdcd_hf
from afdcd_hf import AfDcdImageProcessor
from afdcd_hf.cli import main
from afdcd_hf.demo import space, write_space
from afdcd_hf.demo.segmenters import Segmenter, example_images, load_segmenters, read_upload, share_table
from afdcd_hf.inference.segment import segment_image

ROOT = Path(afdcd_hf.__file__).parents[1]
NAMES = ["sky", "wall & floor", "lamp", "door"]
PHOTO = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
needs_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs gradio")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model folder with four classes, with a checkpoint in it."""
    folder = tmp_path_factory.mktemp("model")
    network = segmenter(id2label=dict(enumerate(NAMES)))
    with torch.no_grad():  # so that all classes occur
        network.head.classifier.weight.mul_(100)
    network.save_pretrained(folder)
    AfDcdImageProcessor().save_pretrained(folder)
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "model.safetensors").write_bytes(b"x")
    (folder / "optimizer.pt").write_bytes(b"x")
    return folder


@pytest.fixture
def photo(tmp_path) -> Path:
    return saved(tmp_path / "photo.png", Image.fromarray(PHOTO))


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("size", "shrunk"), [((40, 24), (40, 24)), ((300, 100), (90, 30)), ((9000, 2), (90, 1)), ((1, 1), (1, 1))]
)
def test_a_large_image_is_shrunk_to_the_longest_side_and_keeps_its_aspect_ratio(tmp_path, size, shrunk):
    path = saved(tmp_path / "large.png", Image.new("RGB", size, (10, 20, 30)))
    image, original = read_upload(path, longest_side=90)
    assert image.size == shrunk and original == size and image.getpixel((0, 0)) == (10, 20, 30)


def test_an_upload_is_converted_to_rgb_and_rotated_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # EXIF: rotate by 90 degrees clockwise, so the lower left corner becomes the upper left one
    stored = Image.new("RGB", (4, 2))
    stored.putpixel((0, 1), (255, 255, 255))
    image, size = read_upload(saved(tmp_path / "turned.png", stored.convert("LA"), exif=exif))
    assert image.mode == "RGB" and size == (2, 4) and image.getpixel((0, 0)) == (255, 255, 255)


def test_the_error_for_an_unreadable_file_does_not_reveal_the_servers_folder(tmp_path, photo, monkeypatch):
    half, whole = photo.read_bytes()[:400], photo.read_bytes()
    path = tmp_path / "holiday.jpg"
    for content, reason in ((b"", ": not an image"), (b"text", ": not an image"), (half, ""), (whole, ".* pixels")):
        path.write_bytes(content)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10 if content == whole else 10**6)
        with pytest.raises(ValueError, match=rf"^holiday\.jpg cannot be read{reason}") as error:
            read_upload(path)
        assert str(tmp_path) not in str(error.value)


def test_a_segmenter_returns_the_label_map_of_segment_image_and_describes_itself(model):
    [one] = load_segmenters({"mine": model}, "cpu")
    label_map, seconds = one(Image.fromarray(PHOTO))
    assert np.array_equal(label_map, segment_image(one.model, one.processor, Image.fromarray(PHOTO)))
    assert seconds > 0 and one.classes == tuple(NAMES)
    assert one.facts.startswith("FCN on resnet18") and one.facts.endswith("0.04 M parameters")


def test_a_measured_score_is_shown_without_local_paths_and_an_empty_list_of_models_is_refused(model, tmp_path):
    results = shutil.copytree(model, tmp_path / "model") / "results.json"
    results.write_text('{"mean_iou": 0.4598, "protocol": {"dataset": "/home/me/streets", "split": "val"}}')
    assert load_segmenters({"mine": results.parent}, "cpu")[0].facts.endswith("mIoU 46.0 % on streets val")
    [copied] = write_space({"mine": results.parent}, tmp_path / "space").glob("models/*/results.json")
    protocol = {"dataset": "streets", "split": "val", "local_dataset": True, "model": "mine"}
    assert json.loads(copied.read_text()) == {"mean_iou": 0.4598, "protocol": protocol}
    with pytest.raises(ValueError, match="at least one model"):
        load_segmenters({})


def test_the_table_lists_shares_by_class_largest_first_without_classes_that_do_not_occur():
    def table(*models):
        colors, network = np.zeros((4, 3), np.uint8), torch.nn.Identity()
        segmenters = [Segmenter("", "", tuple(names), colors, network, None) for names, _ in models]
        return share_table(segmenters, [np.array(label_map) for _, label_map in models])

    rows = table((NAMES, [[0, 0, 0, 2], [0, 2, 0, 0]]), (NAMES, [[0, 0, 2, 2], [0, 2, 0, 0]]))
    assert rows == [["sky", "75.0 %", "62.5 %"], ["lamp", "25.0 %", "37.5 %"]]
    rows = table((["sky", "car"], [[0, 1, 1]]), (["car", "tram"], [[0, 0, 1]]))
    assert rows == [["car", "66.7 %", "66.7 %"], ["sky", "33.3 %", "–"], ["tram", "–", "33.3 %"]]


def test_examples_are_read_once_and_without_any_there_are_street_scenes(tmp_path, photo):
    assert example_images([photo]) == [photo.resolve()]
    with pytest.raises(ValueError, match="none.png cannot be read"):
        example_images([tmp_path / "none.png"])
    assert [Image.open(path).size for path in example_images([])] == [(512, 256)] * 3


@needs_gradio
def test_the_served_page_starts_with_the_first_example_segmented_and_answers_uploads(model, photo):
    import gradio

    from afdcd_hf.demo.app import build_app

    app = build_app({"First": model, "Second": model}, [photo], device="cpu")
    kinds = [block["type"] for block in app.config["components"]]
    assert kinds.count("annotatedimage") == 2 and "dataframe" in kinds
    notes = [block["props"]["value"] for block in app.config["components"] if block["type"] == "markdown"]
    assert "Segmented at 40 × 24 pixels" in notes[-1] and "Second" in html.unescape(notes[-1])
    [handler] = [fn.fn for fn in app.fns.values() if fn.fn is not None and fn.targets and not fn.preprocess]
    *panes, _, table = handler({"path": str(photo)})
    assert len(panes) == 2 and {row[0] for row in table} <= set(NAMES)
    lined, masks = panes[0]
    covered = np.stack([mask for mask, _ in masks]).sum(0)
    assert covered.shape == (24, 40) and set(np.unique(covered)) <= {0, 1}
    assert set(lined[covered == 0].ravel()) <= {0, 255}  # lines between classes, which are in no mask
    assert len(handler(None)) == 4
    with pytest.raises(gradio.Error, match="config.json cannot be read: not an image"):
        handler({"path": str(model / "config.json")})
    with pytest.raises(ValueError, match="longest_side=0"):
        build_app({"a": model}, longest_side=0)


def test_without_gradio_the_command_says_what_to_install(model, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "afdcd_hf.demo.app", raising=False)
    assert main(["demo", str(model)]) == 2
    assert "pip install 'gradio>=6'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def written(model, tmp_path_factory) -> Path:
    """A Space with two copies of the model and one example."""
    folder = tmp_path_factory.mktemp("spaces") / "space"
    example = saved(folder.parent / "street.png", Image.fromarray(PHOTO))
    models = [f"My model's={model}", f"my MODEL s={model}"]
    argv = ["demo", *models, "--write-space", str(folder), "--example", str(example), "--title", "Streets: two models"]
    assert main([*argv, "--longest-side", "32"]) == 0
    return folder


def test_a_space_contains_page_package_requirements_examples_and_the_model_files_for_inference(written):
    files = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    [folder] = (written / "models").iterdir()  # the same title and folder: copied once
    assert {path for path in files if not path.startswith("afdcd_hf/")} == {
        "README.md",
        "app.py",
        "requirements.txt",
        "examples/01-street.png",
        *(f"models/{folder.name}/{name}" for name in ("config.json", "model.safetensors", "preprocessor_config.json")),
    }
    assert {"afdcd_hf/demo/space_files/app.py", "afdcd_hf/recipes/__init__.py"} <= files
    assert not [path for path in files if "__pycache__" in path or path.endswith(".part")]
    text = (written / "README.md").read_text()
    settings = RepoCard(text).data
    assert settings.title == "Streets: two models" and settings.sdk == "gradio" and settings.app_file == "app.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+", settings.sdk_version) and settings.license == "apache-2.0"
    assert SpaceCardData(**settings.to_dict()).sdk == "gradio"
    assert f"- My model's: `models/{folder.name}` of this Space" in text and "{" not in text
    tree = ast.parse((written / "app.py").read_text())
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)}
    place = f"models/{folder.name}"
    assert values["MODELS"] == {"My model's": place, "my MODEL s": place} and values["LONGEST_SIDE"] == 32
    lines = (written / "requirements.txt").read_text().split()
    assert lines and all(f'"{line}"' in (ROOT / "pyproject.toml").read_text() for line in lines)


WITHOUT = ("accelerate", "datasets", "evaluate", "jinja2", "matplotlib", "scipy", "sklearn")
RUN_MODEL = f"""
import sys
sys.modules.update(dict.fromkeys({WITHOUT!r}))  # not to be found
from pathlib import Path
from afdcd_hf.demo.segmenters import example_images, load_segmenters, read_upload
import afdcd_hf
[one] = load_segmenters({{"a": next(Path("models").iterdir())}}, "cpu")
print(one(read_upload("examples/01-street.png")[0])[0].shape)
print(example_images([])[0])
print(afdcd_hf.__file__)
"""


@pytest.mark.slow
def test_a_space_needs_no_package_beyond_its_requirements_and_leaves_no_temporary_folder(written, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(written), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", RUN_MODEL], capture_output=True, text=True, cwd=written, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    shape, scene, source = done.stdout.splitlines()
    assert shape == "(24, 40)" and source.startswith(str(written))
    assert scene.startswith(str(tmp_path)) and not Path(scene).parent.exists()


def test_a_folder_that_is_not_empty_is_refused_and_keeps_its_own_files_when_overwritten(model, photo, tmp_path):
    folder = tmp_path / "space"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty.*--overwrite"):
        write_space({"a": model}, folder, [photo])
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    write_space({"a": model}, folder, [photo], overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine" and (folder / "app.py").is_file()


def test_an_invalid_model_is_refused_before_anything_is_written(tmp_path, photo):
    with pytest.raises(OSError, match="saved model: it has no config"):
        write_space({"a": tmp_path}, tmp_path / "space", [photo])
    with pytest.raises(OSError, match="nobody/nothing is neither a local folder nor a readable model on the Hub"):
        write_space({"a": "nobody/nothing"}, tmp_path / "space", [photo])
    assert not (tmp_path / "space").exists()


def test_a_model_of_the_hub_is_named_and_not_copied(tmp_path, photo, monkeypatch):
    monkeypatch.setattr(space.AutoConfig, "from_pretrained", lambda name, **_: None)  # pretends that it is on the Hub
    folder = write_space({"Small": "afdcd/deeplabv3-mbv2-cityscapes"}, tmp_path / "space", [photo])
    text = (folder / "README.md").read_text()
    assert RepoCard(text).data.models == ["afdcd/deeplabv3-mbv2-cityscapes"]
    assert "https://huggingface.co/afdcd/deeplabv3-mbv2-cityscapes" in text and not (folder / "models").exists()
    assert '"Small": "afdcd/deeplabv3-mbv2-cityscapes"' in (folder / "app.py").read_text()
