"""`afdcd verify` and `afdcd card`: claims that hold, claims that do not, and claims that cannot be checked."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import answer, saved_model
from huggingface_hub import ModelCard
from miniatures import camvid_folder
from PIL import Image
from transformers import AutoImageProcessor

from afdcd_hf.cli import main
from afdcd_hf.data.loading import load_benchmark, load_split
from afdcd_hf.data.statistics import fingerprint
from afdcd_hf.hub import folder_facts
from afdcd_hf.hub.card_facts import FACTS_NAME, ReportedResults, read_facts, write_facts
from afdcd_hf.hub.model_card import write_card
from afdcd_hf.hub.push import plan_push
from afdcd_hf.hub.verify import read_claim, verify
from afdcd_hf.inference.segment import InferenceSettings, segment_image
from afdcd_hf.models.loading import load_model


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """`data` with three small images in CamVid's layout, and `model`, evaluated with flip, with a card and facts."""
    folder = tmp_path_factory.mktemp("verify")
    saved_model(folder / "model", "camvid")
    write_data_that_suits(folder / "model", folder / "data")
    where = ["--model", folder / "model", "--dataset", "camvid", "--data-dir", folder / "data", "--device", "cpu"]
    command = ["evaluate", *where, "--flip", "--scales", "1", "2", "--output", folder / "model" / "results.json"]
    assert main([str(word) for word in command]) == 0
    assert main(["card", str(folder / "model"), "--repo-id", "me/small-camvid", "--license", "mit"]) == 0
    return folder


def write_data_that_suits(model: Path, data: Path) -> None:
    """Write three images of noise; labels are the model's predictions with flip and two scales, except some columns."""
    camvid_folder(data, "val", 3, size=(24, 32))
    for index, path in enumerate(sorted((data / "val").iterdir())):
        noise = np.random.default_rng(index).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    images, processor = load_split("camvid", "val", data), AutoImageProcessor.from_pretrained(model)
    network = load_model(str(model)).eval()
    (classifier,) = [module for module in network.modules() if getattr(module, "out_channels", None) == 11]
    with torch.no_grad():  # random weights predict one class everywhere
        logits = network(**processor([row["image"] for row in images], return_tensors="pt")).logits
        classifier.bias -= logits.mean((0, 2, 3))
    network.save_pretrained(model)
    settings = InferenceSettings(scales=(1.0, 2.0), flip=True)
    for row in images:
        label = segment_image(network, processor, row["image"], settings).copy()
        label[:, :5] = (label[:, :5] + 1) % 11
        Image.fromarray(label).save(data / "valannot" / Path(row["name"]).name)


@pytest.fixture
def model(published, tmp_path) -> Path:
    """A copy of the model that tests may change."""
    return Path(shutil.copytree(published / "model", tmp_path / "model"))


def status(*words) -> int:
    """Run a command and return its exit status."""
    return main([str(word) for word in words])


def change_claim(model: Path, **changes) -> None:
    facts = read_facts(model)
    facts = replace(facts, measured=replace(facts.measured, **changes))
    write_facts(model, facts)
    write_card(model, facts)


def test_a_true_claim_holds_only_under_its_own_protocol(published, model, capsys):
    options = ["--data-dir", published / "data", "--device", "cpu", "--tolerance", "1e-9"]
    assert status("verify", model, *options) == 0
    out = capsys.readouterr().out
    assert "The claim holds." in out and "on camvid val (card_facts.json)" in out
    done = verify(model, published / "data", device="cpu")
    assert done.mean_iou == pytest.approx(json.loads((model / "results.json").read_text())["mean_iou"], abs=1e-12)
    assert 0.05 < done.mean_iou < 0.95  # so that the result could differ
    assert done.claim.protocol["flip"] is True and done.claim.protocol["scales"] == [1.0, 2.0]
    change_claim(model, protocol={**done.claim.protocol, "flip": False, "scales": [1.0]})
    assert not verify(model, published / "data", device="cpu", tolerance=1e-9).holds


def test_a_score_that_is_too_high_does_not_hold_and_the_classes_are_listed(published, model, capsys):
    scores, options = read_facts(model).measured, ["--data-dir", published / "data", "--device", "cpu"]
    name, iou = next((name, iou) for name, iou in scores.per_category_iou.items() if iou and iou < 0.7)
    change_claim(model, mean_iou=scores.mean_iou + 0.01, per_category_iou={**scores.per_category_iou, name: iou + 0.3})
    assert status("verify", model, *options) == 1
    out = capsys.readouterr().out
    assert "The claim does NOT hold." in out and "(-1.000; tolerance 0.05)" in out
    assert f"{100 * iou + 30:.2f} -> {100 * iou:.2f}" in out
    assert status("verify", model, *options, "--tolerance", "1.01") == 0


def test_a_score_edited_on_the_card_is_the_one_that_is_checked(published, model):
    text = (model / "README.md").read_text("utf-8")
    shown = text.split("value: ")[1].split("\n")[0]
    assert float(shown) == round(100 * read_claim(model).mean_iou, 2)
    (model / "README.md").write_text(text.replace(f"value: {shown}", "value: 99.5"), "utf-8")
    done = verify(model, published / "data", device="cpu")
    assert done.claim.mean_iou == 0.995 and not done.holds
    assert done.remarks[0].startswith("README.md says 99.50 %, card_facts.json")
    assert done.claim.protocol["flip"] is True  # the protocol still comes from the facts


def test_images_and_a_processor_that_differ_from_the_cards_are_reported(published, model, tmp_path):
    facts = read_facts(model)
    images = load_split("camvid", "val", published / "data")
    write_facts(model, replace(facts, dataset=replace(facts.dataset, fingerprint=fingerprint(images))))
    assert verify(model, published / "data", device="cpu").remarks == ()
    path = model / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_flip_channels": True}))
    other = camvid_folder(tmp_path / "data", "val", 2, size=(24, 32))
    first, second = verify(model, other, device="cpu").remarks
    assert "these are not the card's images and labels" in first
    assert second == "channel_order is BGR, but RGB on the card"
    change_claim(model, protocol={**facts.measured.protocol, "list_file": "mine.txt"})
    with pytest.raises(ValueError, match="'mine.txt'; pass yours"):
        verify(model, published / "data")


def test_claims_are_read_from_facts_results_or_card_and_without_any_there_is_nothing_to_check(published, model, capsys):
    facts = read_facts(model)
    (model / FACTS_NAME).unlink()
    assert read_claim(model).source == "results.json" and verify(model, published / "data", device="cpu").holds
    (model / "results.json").unlink()
    claim = read_claim(model)
    assert (claim.source, claim.protocol) == ("README.md", {"dataset": "camvid", "split": "val"})
    (model / "README.md").unlink()
    assert "claims no measured mean IoU" in answer(capsys, "verify", str(model))
    write_facts(model, replace(facts, measured=None, reported=ReportedResults(0.6927, "a paper")))
    only = "claims no measured mean IoU, only a reported one (69.27 %, a paper)"
    assert only in answer(capsys, "verify", str(model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("nowhere", "neither a local folder nor a Hub id"),
        ("MODEL", "give data_dir"),
        ("MODEL --data-dir DATA --tolerance -1", "fraction from 0 to 1"),
        ("MODEL --data-dir DATA --revision v1", "is for repositories on the Hub"),
    ],
)
def test_a_claim_that_cannot_be_checked_exits_with_status_2_and_says_why(published, capsys, options, message):
    places = {"MODEL": str(published / "model"), "DATA": str(published / "data")}
    assert message in answer(capsys, "verify", *(places.get(word, word) for word in options.split()))


def test_a_record_has_score_protocol_and_checksums_without_local_paths_and_is_pushed(published, model, capsys):
    path, weights = model / "verified.json", model / "model.safetensors"
    options = [str(word) for word in ("--data-dir", published / "data", "--device", "cpu")]
    assert status("verify", model, *options, "--output", path) == 0
    known, text = json.loads(path.read_text("utf-8")), path.read_text("utf-8")
    assert known["holds"] and known["mean_iou"] == pytest.approx(read_facts(model).measured.mean_iou, abs=1e-12)
    assert known["weights"] == {weights.name: hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert (known["protocol"]["dataset"], known["protocol"]["flip"]) == ("camvid", True) and str(published) not in text
    assert "exists; give another" in answer(capsys, "verify", str(model), *options, "--output", str(path))
    assert path.name in [file.name for file in plan_push(model, "me/small").files]
    load_model(model).float().half().save_pretrained(model)  # other weights, such as those of a resumed run
    plan = plan_push(model, "me/small")
    assert path.name not in [file.name for file in plan.files] and "run `afdcd verify` again" in " ".join(plan.notes)


def test_a_fingerprint_depends_on_names_sizes_and_order_but_not_on_the_folder(tmp_path):
    first = camvid_folder(tmp_path / "a", "val", 3, size=(24, 32))
    shutil.copytree(first, tmp_path / "b")
    here, there = (load_split("camvid", "val", tmp_path / name) for name in "ab")
    assert fingerprint(here) == fingerprint(there) != fingerprint(here.select([1, 0, 2]))
    longer = next(path for path in (tmp_path / "b").rglob("*.png"))
    longer.write_bytes(longer.read_bytes() + b"\0")
    assert fingerprint(there) != fingerprint(here) and len(fingerprint(here)) == 16
    first, second = (load_benchmark("scenes", "val", max_samples=count) for count in (2, 3))  # by pixels
    assert fingerprint(first, of_pixels=True) == fingerprint(second.select([0, 1]), of_pixels=True)
    assert fingerprint(first, of_pixels=True) != fingerprint(second, of_pixels=True)


def test_the_examples_on_the_card_run_unchanged(published, tmp_path, monkeypatch):
    text = (published / "model" / "README.md").read_text("utf-8").replace("me/small-camvid", str(published / "model"))
    Image.new("RGB", (48, 40), "grey").save(tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    first, second = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict = {}
    exec(first, names)
    exec(second, names)
    assert names["label_map"].shape == (40, 48) and names["masks"][0]["mask"].size == (48, 40)


def test_the_commands_on_the_card_of_a_model_scored_on_a_local_folder_run_with_the_readers_folder(
    published, model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(published / "data" / "val", "my data/images/val")
    shutil.copytree(published / "data" / "valannot", "my data/labels/val")
    words = ["--dataset", tmp_path / "my data", "--device", "cpu", "--output", "results.json"]
    assert status("evaluate", "--model", model, *words) == 0 and str(tmp_path) not in Path("results.json").read_text()
    (model / FACTS_NAME).unlink()
    assert status("card", model, "--results", "results.json") == 0
    text = (model / "README.md").read_text("utf-8")
    assert ModelCard(text).data.datasets is None and "| local_dataset | True |" in text
    commands = re.findall(r"^afdcd (?:evaluate|verify) .*", text, flags=re.MULTILINE)
    for command in (line.replace("path/to/", "").replace("FOLDER", "'my data'") for line in commands):
        assert main(shlex.split(command)[1:]) == 0
    assert len(commands) == 2


def test_new_scores_replace_the_number_of_images_and_drop_the_fingerprint_of_other_images(published, model, caplog):
    facts, path = read_facts(model), model / "results.json"
    write_facts(model, replace(facts, dataset=replace(facts.dataset, fingerprint="0123", train_split="train")))
    assert status("card", model, "--results", path) == 0 and read_facts(model).dataset.fingerprint == "0123"
    results = json.loads(path.read_text())
    results["protocol"]["max_samples"] = results["num_images"] = 2
    results["protocol"]["model"] = "checkpoint-500"
    path.write_text(json.dumps(results))
    assert not caplog.records and status("card", model, "--results", path) == 0
    assert f"has the scores of the model checkpoint-500: is that the one in {model}?" in caplog.text
    dataset = read_facts(model).dataset
    assert (dataset.num_images, dataset.fingerprint, dataset.train_split) == (2, None, "train")


def test_a_card_is_rendered_from_the_folder_alone_and_names_no_local_path(published):
    text = (published / "model" / "README.md").read_text("utf-8")
    data = ModelCard(text).data
    assert (data.license, data.datasets, data.model_name) == ("mit", ["camvid"], "small-camvid")
    assert "afdcd evaluate --model me/small-camvid --dataset camvid --split val --data_dir FOLDER" in text
    assert "![Confusion matrix of the evaluation.](<results_confusion.png>)" in text
    assert "measured on CamVid, split val" in text  # the usual name
    facts = (published / "model" / FACTS_NAME).read_text("utf-8")
    assert str(published) not in text and str(published) not in facts


def test_additions_are_kept_when_the_card_is_rendered_again(model, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "street.png")
    words = ["--picture", tmp_path / "street.png", "A street", "--reported", "76.43", "a paper", "--note", "Mind."]
    named = ["--license-name", "Ours", "--license-link", "https://example.org/terms"]
    assert status("card", model, *words, "--license", "other", *named) == 0
    assert status("card", model, "--title", "Renamed", "--tag", "streets", "--license-name", "Theirs") == 0
    text, facts = (model / "README.md").read_text("utf-8"), read_facts(model)
    (pushed,) = [file.read().decode() for file in plan_push(model, "me/other").files if file.name == "README.md"]
    assert (
        "# Renamed\n" in text
        and "# Renamed\n" in pushed
        and "me/other" in pushed
        and "![A street](<street.png>)" in text
        and "\nMind.\n" in text
    )
    assert "| mIoU | 76.43 |" in text and "streets" in ModelCard(text).data.tags
    assert (model / "street.png").is_file() and facts.reported.mean_iou == pytest.approx(0.7643)
    assert (facts.license_name, facts.license_link) == ("Theirs", named[-1])
    assert status("card", model, "--license", "apache-2.0") == 0  # removes name and link
    assert read_facts(model).license_link is None


def test_measured_speed_is_put_on_the_card_and_replaced_by_the_next_measurement(model, monkeypatch):
    monkeypatch.setattr(folder_facts, "ProfileSettings", partial(folder_facts.ProfileSettings, warmup=1, repeats=3))
    options = ["--latency", "--device", "cpu", "--size", "32", "64", "--size", "64", "64"]
    assert status("card", model, *options) == 0 and status("card", model, *options[:6]) == 0
    first, second = read_facts(model).latency
    assert (first.height, first.width, second.height) == (32, 64, 64) and first.setting == "fp32"
    assert 0 < first.median_seconds <= first.p95_seconds and first.images_per_second > 0
    assert f"| 32×64 | 1 | {first.device} | fp32 |" in (model / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--license Apache", "expected one of https"),
        ("--license other", "needs license_name and license_link"),
        ("--repo-id small", "USER/NAME"),
        ("--base-model /tmp/weights", "expected an id on the Hub"),
        ("--reported 7643 paper", "percentage from 0 to 100"),
        ("--picture nowhere.png Nothing", "nowhere.png does not exist"),
        ("--picture results_confusion.png Mine", "different image of the same name"),
        ("--results nowhere.json", "No such file or directory: 'nowhere.json'"),
        ("--size 64 64", "--size can only be used with --latency"),
    ],
)
def test_wrong_facts_are_refused_and_the_card_is_kept(published, capsys, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save("results_confusion.png")
    model = published / "model"
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    assert message in answer(capsys, "card", str(model), *options.split())
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert "no config.json" in answer(capsys, "card", str(tmp_path))
