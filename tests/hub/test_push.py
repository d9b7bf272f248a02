"""Push and pull over HTTP, with the real client against a small Hub on localhost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from command_line import answer
from hub_client import no_waiting, serving
from huggingface_hub import HfApi, ModelCard, parse_eval_result_entries
from safetensors.torch import load_file, save_file
from tiny import same, saved, segmenter, weights
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from afdcd_hf import AfDcdImageProcessor
from afdcd_hf.cli import main
from afdcd_hf.hub.card_facts import CardFacts, DatasetFacts, MeasuredResults, Picture, read_facts, write_facts
from afdcd_hf.hub.model_card import MARKER, write_card
from afdcd_hf.hub.push import push_folder, shown_pictures

REPO = "street/tiny"
SOURCE = {
    "backbone_afdcd.py", "configuration_afdcd.py", "heads.py", "image_modes_afdcd.py", "image_processing_afdcd.py",
    "modeling_afdcd.py",
}  # fmt: skip
NETWORK = {"config.json", "model.safetensors", "preprocessor_config.json", *SOURCE}
PROTOCOL = {
    "model": "run", "dataset": "scenes", "split": "val", "scales": [1.0], "flip": False, "precision": "fp32",
    "absent_classes": "left out of the mean",
}  # fmt: skip
load = AutoModelForSemanticSegmentation.from_pretrained


@pytest.fixture
def hub(tmp_path):
    with serving(tmp_path) as server:
        yield server


@pytest.fixture
def folder(tmp_path) -> Path:
    """A saved model and its image processor, without a card."""
    return saved(tmp_path / "run", segmenter())


def with_card(folder: Path) -> CardFacts:
    """Results, facts, card and its image, as a training writes them."""
    measured = MeasuredResults(0.5, protocol=PROTOCOL, command="afdcd evaluate --model run --dataset scenes")
    data, pictures = DatasetFacts("scenes", split="val", hub_id="street/scenes"), [Picture("a.png", "A")]
    facts = CardFacts("run", "FCN", dataset=data, measured=measured, pictures=pictures)
    (folder / "a.png").write_bytes(b"picture")
    (folder / "results.json").write_text(json.dumps({"mean_iou": 0.5, "protocol": PROTOCOL}))
    write_facts(folder, facts)
    write_card(folder, facts)
    return facts


def pushed(hub, revision: str = "main") -> dict[str, bytes]:
    return {name: data for name, data in hub.repos[REPO].files(revision).items() if name != ".gitattributes"}


def edit_on_hub(text: str) -> None:
    HfApi().upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=REPO)


def test_a_pushed_model_loads_bit_for_bit_and_a_push_without_changes_creates_no_commit(hub, folder, tmp_path):
    plan = push_folder(folder, REPO)
    assert same(weights(load(REPO)), weights(segmenter(0))) and any((tmp_path / "cache").iterdir())
    assert type(AutoImageProcessor.from_pretrained(REPO)) is AfDcdImageProcessor
    assert plan.commit.oid == hub.repos[REPO].branches["main"] and plan.commit.oid in plan.commit.commit_url
    assert len(hub.repos[REPO].commits) == 2  # the Hub's initial commit and ours, with all files in one
    assert pushed(hub) == {name: (folder / name).read_bytes() for name in NETWORK}
    assert push_folder(folder, REPO).commit.oid == plan.commit.oid and len(hub.repos[REPO].commits) == 2


def test_push_to_hub_from_python_uploads_no_generic_card(hub):
    model, processor = segmenter(0), AfDcdImageProcessor()
    for part in (processor, model.config, model):
        part.push_to_hub(REPO)
        assert "README.md" not in pushed(hub)
    assert same(weights(load(REPO)), weights(model))
    edit_on_hub("# Mine\n")
    model.push_to_hub(REPO)
    assert pushed(hub)["README.md"].decode().endswith("# Mine\n")


def test_a_revision_does_not_change_main_and_sharded_weights_load_too(hub, tmp_path):
    push_folder(saved(tmp_path / "whole", segmenter(3)), REPO)  # a single file, which must no longer be loaded
    for seed, revision in enumerate([None, "long/schedule", "long/schedule"]):  # the branch is created, then reused
        other = saved(tmp_path / f"run{seed}", segmenter(seed), max_shard_size="60KB")
        commit = push_folder(other, REPO, revision=revision).commit
    assert len([name for name in pushed(hub) if name.startswith("model-")]) > 1
    assert same(weights(load(REPO)), weights(segmenter(0)))
    assert same(weights(load(REPO, revision="long/schedule")), weights(segmenter(2)))
    assert same(weights(load(REPO, revision=commit.oid)), weights(segmenter(2)))


def test_a_private_repository_is_hidden_from_others_and_a_public_one_stays_public(hub, folder, monkeypatch):
    push_folder(folder, REPO, private=True)
    assert hub.repos[REPO].private
    load(REPO, cache_dir=folder.parent / "owner")
    hub.repos[REPO].private = False
    for dry_run in (True, False):
        with pytest.raises(ValueError, match="street/tiny exists and is public.*settings"):
            push_folder(folder, REPO, private=True, dry_run=dry_run)
    hub.repos[REPO].private = True
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(OSError, match="street/tiny"):
        load(REPO, cache_dir=folder.parent / "other")


def test_no_training_state_is_pushed(hub, folder):
    with_card(folder)
    private = ["checkpoint-1/model.safetensors", "checkpoint-1/optimizer.pt", "distillation.safetensors", "notes.txt"]
    private += ["optimizer.pt", "trainer_state.json", "training_args.json", "other.png", "helper.py", "log/events"]
    for name in private:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"secret")
    plan = push_folder(folder, REPO)
    scores = {"results.json", "card_facts.json", ".eval_results/street_scenes.yaml"}
    assert pushed(hub).keys() == NETWORK | {"README.md", "a.png"} | scores
    assert not [data for data in (*hub.lfs.values(), *pushed(hub).values()) if b"secret" in data]
    assert set(plan.left_out) == {Path(name).parts[0] + "/" * ("/" in name) for name in private}


def test_only_images_in_the_folder_itself_count_as_shown(tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("a.png", "b c.jpg", "d.svg", "key.pem", "../outside.png"):
        (tmp_path / "run" / name).write_bytes(b"")
    (tmp_path / "run" / "link.png").symlink_to(tmp_path / "outside.png")
    shown = '![A](a.png) ![B](<b c.jpg>) <img width="9" src="./d.svg"> ![](../outside.png) ![](link.png) ![](key.pem)'
    shown += f" ![](https://example.com/x.png) ![](gone.png) ![]({tmp_path / 'run/a.png'})"
    assert shown_pictures(tmp_path / "run", shown) == ["a.png", "b c.jpg", "d.svg"]


def test_card_facts_and_scores_are_published_under_the_repositorys_name(hub, folder):
    facts = with_card(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    plan = push_folder(folder, REPO)
    card = pushed(hub)["README.md"].decode()
    assert f'name = "{REPO}"' in card and f"--model {REPO}" in card and "path/to" not in card
    assert ModelCard(card).data.pipeline_tag == "image-segmentation"
    (folder.parent / "facts.json").write_bytes(pushed(hub)["card_facts.json"])
    published = read_facts(folder.parent / "facts.json")
    assert published.repo_id == REPO and published.measured.mean_iou == facts.measured.mean_iou
    assert json.loads(pushed(hub)["results.json"])["protocol"] == {**PROTOCOL, "model": REPO}
    (entry,) = parse_eval_result_entries(yaml.safe_load(pushed(hub)[".eval_results/street_scenes.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("street/scenes", "semantic-segmentation", 50.0)
    assert entry.source_url == f"https://huggingface.co/{REPO}" and "split val" in entry.notes
    assert plan.notes == [] and before == {path.name: path.read_bytes() for path in folder.iterdir()}
    push_folder(folder.rename(folder.with_name("renamed")), REPO)
    assert pushed(hub)["README.md"].decode() == card and "\n# tiny\n" in card


def test_a_handwritten_card_is_published_unchanged_and_local_paths_are_pointed_out(hub, folder):
    with_card(folder)
    text = f"# Mine\r\nTrained in {folder.resolve().parent}/secret/runs.\r\n".encode()
    (folder / "README.md").write_bytes(text)
    plan = push_folder(folder, REPO)
    assert pushed(hub)["README.md"] == text and "does not name street/tiny" in plan.notes[0]
    assert f"README.md contains a local path, {folder.resolve().parent}/secret/runs." in plan.notes


def test_a_handwritten_card_on_the_hub_is_kept_and_a_generated_one_is_replaced(hub, folder):
    with_card(folder)
    push_folder(folder, REPO)
    edit_on_hub(f"{MARKER}\nold\n")
    push_folder(folder, REPO)
    assert "old" not in pushed(hub)["README.md"].decode().splitlines()
    edit_on_hub("---\nlicense: mit\n---\n# Mine\n")
    plan = push_folder(folder, REPO, dry_run=True)
    assert "street/tiny exists and is public" in plan.notes and "README.md" not in {file.name for file in plan.files}
    for revision in (None, "new-branch"):
        plan = push_folder(saved(folder, segmenter(1)), REPO, revision=revision)
        assert any("is kept; --overwrite_card" in note for note in plan.notes)
        assert pushed(hub, revision or "main")["README.md"].decode().endswith("# Mine\n")
    assert pushed(hub)["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    push_folder(folder, REPO, overwrite_card=True)
    assert MARKER in pushed(hub)["README.md"].decode()


def test_a_dry_run_shows_every_file_and_its_size_and_sends_nothing(hub, folder, capsys):
    with_card(folder)
    (folder / "training_args.json").write_text("{}")
    assert main(["push", str(folder), REPO, "--dry-run", "--private"]) == 0
    out = capsys.readouterr().out
    for name in NETWORK - {"README.md"}:
        assert f"{(folder / name).stat().st_size:,} bytes  {name}\n" in out
    for words in ("not uploaded: training_args.json", "street/tiny is new and would be private", "nothing was sent"):
        assert words in out
    assert {method for method, *_ in hub.requests} <= {"GET", "HEAD"} and not hub.repos


def test_a_dry_run_works_without_the_hub_and_says_what_is_missing(hub, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (folder / "preprocessor_config.json").unlink()
    notes = " ".join(push_folder(folder, REPO, dry_run=True).notes)
    assert all(words in notes for words in ("no README.md", "no preprocessor_config.json", "could not be reached: "))


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("hf_wrong", r"127.0.0.1:\d+ refuses the token for street/tiny \(401: Invalid credentials.*hf auth login"),
        ("", r"127.0.0.1:\d+ requires a token for street/tiny \(401: .*HF_TOKEN"),
        ("hf_other", r"refuses to write to street/tiny \(403: You don't have the rights.*write access to 'street'"),
    ],
)
def test_an_insufficient_token_is_a_one_line_error_and_changes_nothing(
    hub, folder, monkeypatch, capsys, token, message
):
    monkeypatch.setenv("HF_TOKEN", token)
    assert re.search(message, answer(capsys, "push", str(folder), REPO))
    assert not hub.repos and not hub.lfs
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="http://127.0.0.1:9 cannot be reached"):
        push_folder(folder, REPO)


def test_an_interrupted_upload_leaves_nothing_and_a_second_push_completes(hub, folder, monkeypatch):
    no_waiting(monkeypatch)
    hub.break_uploads = 100  # the client retries up to six times
    with pytest.raises(ConnectionError, match="the connection broke"):
        push_folder(folder, REPO)
    assert not pushed(hub) and not hub.lfs
    hub.break_uploads = 0
    push_folder(folder, REPO)
    assert pushed(hub).keys() == NETWORK and same(weights(load(REPO)), weights(segmenter(0)))


NAN = {"head.classifier.bias": torch.full((4,), float("nan"))}
CLAIM = {"mean_iou": 50, "protocol": {"dataset": "a", "split": "b"}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [  # text, a change to it, or None to remove the file
        ("model.safetensors", "\0" * 90, "model.safetensors is damaged, truncated or not a"),
        ("model.safetensors", {"projector": torch.zeros(2)}, r"1 unknown tensors \(projector 2\)"),
        ("model.safetensors", NAN, "1 not finite tensors"),
        ("model.safetensors", None, "has no model.safetensors"),
        ("config.json", None, "has weights but no config.json"),
        ("config.json", {"id2label": dict.fromkeys("0123", 7)}, "config.json does not describe a model"),
        ("config.json", {"backbone": 3}, "config.json does not describe a model"),
        ("heads.py", None, "lacks heads.py.*save_pretrained"),
        ("results.json", "[]", "results.json .*must hold an object"),
        ("results.json", json.dumps({"mean_iou": 0.5, "protocol": {"split": 3}}), "lacks dataset, split"),
        ("results.json", json.dumps(CLAIM), "expected a fraction"),
        ("README.md", "HF_TOKEN=hf_aAbBcCdDeEfFgGhH", "README.md contains what looks like an access token"),
    ],
)
def test_a_folder_that_would_not_load_is_refused_before_the_hub_is_contacted(hub, folder, name, content, message):
    path = folder / name
    if content is None:
        path.unlink()
    elif isinstance(content, str):
        path.write_text(content)
    elif path.suffix == ".json":
        path.write_text(json.dumps({**json.loads(path.read_text()), **content}))
    else:
        save_file({**load_file(path), **content}, path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        push_folder(folder, REPO)
    assert not hub.requests


def test_links_out_of_the_folder_are_not_followed(hub, folder, tmp_path, monkeypatch):
    (tmp_path / "secret.txt").write_text("password")
    (folder / "recipe.yaml").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ValueError, match="recipe.yaml is a link to .*secret.txt, and push follows no links out"):
        push_folder(folder, REPO)
    assert not hub.requests
    (folder / "recipe.yaml").unlink()
    blob = tmp_path / "cache" / "blobs" / "0a1b"  # the layout of a snapshot in the Hub's cache
    blob.parent.mkdir(parents=True)
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    push_folder(folder, REPO)
    assert pushed(hub)["model.safetensors"] == blob.read_bytes()


def test_a_name_that_the_hub_does_not_allow_is_refused(folder):
    for name in ("tiny", "a/b/c", "street/ti ny"):
        with pytest.raises(ValueError, match="not a repository name|Repo id"):
            push_folder(folder, name)
