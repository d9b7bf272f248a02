"""`push_to_hub=True`: pushing over HTTP to a small Hub on localhost."""

from __future__ import annotations

import json

import pytest
from hub_client import no_waiting, serving
from safetensors.torch import load
from tiny import distilling, same, segmenter, supervised, weights
from torch import nn
from transformers import AutoModelForSemanticSegmentation

from afdcd_hf import as_segmenter
from afdcd_hf.hub.card_facts import read_facts
from afdcd_hf.hub.model_card import MARKER

REPO = "street/student"
STUDENT = {
    "config.json", "model.safetensors", "preprocessor_config.json", "backbone_afdcd.py", "configuration_afdcd.py",
    "heads.py", "image_modes_afdcd.py", "image_processing_afdcd.py", "modeling_afdcd.py",
}  # fmt: skip
PUSHING = {"push_to_hub": True, "hub_model_id": REPO}
SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}


@pytest.fixture
def hub(tmp_path):
    with serving(tmp_path) as server:
        yield server


def pushed(hub, revision: str = "main", repo: str = REPO) -> dict[str, bytes]:
    return {name: data for name, data in hub.repos[repo].files(revision).items() if name != ".gitattributes"}


def test_only_the_student_is_pushed_and_loads_as_trained(hub, tmp_path, caplog):
    options = {**PUSHING, **SAVING, "hub_always_push": True, "hub_token": "hf_writer"}
    trainer = distilling(tmp_path / "run", **options, save_total_limit=1)
    trainer.train()
    with caplog.at_level("INFO", logger="afdcd_hf"):
        commit = trainer.push_to_hub()
    assert commit.oid == hub.repos[REPO].branches["main"] and f"pushed: {commit.commit_url}" in caplog.text
    assert pushed(hub).keys() == STUDENT | {"README.md", "card_facts.json"}
    assert not (tmp_path / "run" / "training_args.bin").exists()
    card = pushed(hub)["README.md"].decode()
    assert MARKER in card and "automatically generated" not in card and f'name = "{REPO}"' in card
    assert read_facts(tmp_path / "run").training.iterations == 3
    settings = (tmp_path / "run" / "training_args.json").read_text()
    assert json.loads(settings)["hub_model_id"] == REPO and "hf_writer" not in settings
    loaded = AutoModelForSemanticSegmentation.from_pretrained(REPO)
    assert same(weights(loaded), {name: tensor.cpu() for name, tensor in weights(trainer.student).items()})
    steps = [f"Training in progress, step {step}" for step in (1, 2, 3)]
    assert hub.repos[REPO].messages[1:] == [*steps, "End of training"]
    assert (tmp_path / "run" / "checkpoint-3" / "distillation.safetensors").is_file()  # kept locally, not pushed:
    students = segmenter().state_dict().keys()
    assert hub.lfs and all(load(content).keys() == students for content in hub.lfs.values())
    for files in hub.repos[REPO].commits.values():
        assert files.keys() <= STUDENT | {"README.md", "card_facts.json", ".gitattributes"}


def test_licence_and_tags_of_a_push_reach_the_card_and_a_hand_written_card_is_pushed_unchanged(hub, tmp_path):
    trainer = supervised(tmp_path / "run", **PUSHING)
    trainer.push_to_hub(license="apache-2.0", tags="street", finetuned_from="timm/resnet18.a1_in1k")
    trainer.push_to_hub(tags=["night"])  # earlier tags are kept
    facts = read_facts(tmp_path / "run")
    assert (facts.license, facts.tags, facts.base_model) == ("apache-2.0", ["street", "night"], "timm/resnet18.a1_in1k")
    assert "license: apache-2.0" in pushed(hub)["README.md"].decode()
    with pytest.raises(ValueError, match="our card does not support language"):
        trainer.push_to_hub(language="en")
    (tmp_path / "run" / "README.md").write_bytes(b"# Mine\n")
    trainer.push_to_hub()
    assert pushed(hub)["README.md"] == b"# Mine\n" == (tmp_path / "run" / "README.md").read_bytes()


def test_branch_name_visibility_and_strategy_follow_the_arguments(hub, tmp_path):
    options = {"push_to_hub": True, "hub_revision": "long", "hub_private_repo": True, "hub_strategy": "end"}
    trainer = supervised(tmp_path / "run", **options, **SAVING)
    trainer.train()
    assert hub.repos["street/run"].private and len(hub.repos["street/run"].commits) == 1  # nothing is pushed yet
    trainer.push_to_hub()
    assert STUDENT < pushed(hub, "long", "street/run").keys() and not pushed(hub, "main", "street/run")


def test_a_strategy_that_publishes_projector_and_optimizer_or_a_wrong_token_is_refused_at_the_start(hub, tmp_path):
    for strategy in ("checkpoint", "all_checkpoints"):
        with pytest.raises(ValueError, match="would publish optimizer and projector; use 'every_save' or 'end'"):
            distilling(tmp_path / "run", **PUSHING, hub_strategy=strategy)
    with pytest.raises(PermissionError, match="refuses the token"):
        supervised(tmp_path / "run", **PUSHING, hub_token="hf_wrong")
    assert not hub.repos


def test_a_failed_push_does_not_end_training_and_is_logged(hub, tmp_path, monkeypatch, caplog):
    no_waiting(monkeypatch)
    trainer = supervised(tmp_path / "run", **PUSHING, **SAVING)
    hub.break_uploads = 10_000
    trainer.train()
    assert trainer.state.global_step == 3 and (tmp_path / "run" / "checkpoint-3").is_dir()
    assert "A background push failed; training continues: http" in caplog.text
    with pytest.raises(ConnectionError, match="The model is saved in .*`afdcd push .*run street/student` retries it"):
        trainer.push_to_hub()
    hub.break_uploads = 0
    trainer.push_to_hub()
    assert STUDENT < pushed(hub).keys()


def test_a_model_without_a_configuration_can_be_pushed_and_a_background_push_can_be_awaited(hub, tmp_path):
    job = supervised(tmp_path / "run", as_segmenter(nn.Conv2d(3, 4, 1)), **PUSHING).push_to_hub(blocking=False)
    assert job.result(60).commit.oid == hub.repos[REPO].branches["main"]
    assert pushed(hub).keys() == STUDENT - {"config.json", "backbone_afdcd.py", "modeling_afdcd.py"}
