"""results.json: what it says, and the command it names."""

from __future__ import annotations

import argparse
import json
import shlex

import pytest

from afdcd_hf.cli import _parser
from afdcd_hf.cli.command import inference_settings
from afdcd_hf.evaluation.results import check_writable, dataset_context, evaluate_command

DEFAULTS = {"model": "runs/m", "dataset": "scenes", "split": "val", "scales": [1.0], "flip": False, "window": None,
            "stride": None, "precision": "fp32", "absent_classes": "left out of the mean"}  # fmt: skip


def parsed(protocol):
    program, name, *words = shlex.split(evaluate_command(protocol))
    assert (program, name) == ("afdcd", "evaluate")
    command = _parser()[1].choices["evaluate"]
    return argparse.Namespace(**command.options(words))


def test_the_command_of_a_plain_evaluation_is_short():
    assert evaluate_command(DEFAULTS) == "afdcd evaluate --model runs/m --dataset scenes --split val"
    assert evaluate_command({**DEFAULTS, "dataset": "voc"}).endswith("--dataset voc --split val --data_dir FOLDER")


def test_the_command_sets_everything_that_influences_the_number():
    asked = {"scales": [0.5, 1.25], "flip": True, "window": [512, 1024], "stride": [256, 512], "precision": "bf16"}
    asked |= {"absent_classes": "count as 0", "boundary_ratio": 0.005, "max_samples": 7, "list_file": "a.lst"}
    asked |= {"image_column": "pixels", "label_column": "mask", "labels_as": "ade20k", "label_map": {"0": 255}}
    args = parsed({**DEFAULTS, "dataset": "me/mine", **asked})
    settings = inference_settings(vars(args))
    assert (settings.scales, settings.flip, settings.precision) == ((0.5, 1.25), True, "bf16")
    assert (settings.window, settings.stride) == ((512, 1024), (256, 512))
    assert args.absent_as_zero and args.boundary_ratio == 0.005
    assert (args.max_samples, args.list_file, args.dataset) == (7, "a.lst", "me/mine")
    assert (args.image_column, args.label_column, args.labels_as) == ("pixels", "mask", "ade20k")
    assert json.loads(args.label_map) == {"0": 255}


def test_where_the_files_lie_is_not_part_of_the_protocol():
    context = dataset_context(name="voc", split="val", data_dir="/home/me/voc", max_samples=3)
    assert context == {"dataset": "voc", "split": "val", "max_samples": 3}


@pytest.mark.parametrize(
    "given",
    [
        {"dataset": "my data"},
        {"dataset": "x; touch PWNED #"},
        {"model": "$(touch PWNED)"},
        {"split": "train[:80%]"},
        {"list_file": "it's my list.txt"},
        {"label_map": {"it's": 1}},
    ],
)
def test_every_word_of_the_command_stays_one_word_for_a_shell(given):
    ((name, value),) = given.items()
    args = parsed({**DEFAULTS, "dataset": "d", **given})
    assert getattr(args, name) == (json.dumps(value) if name == "label_map" else value)


def test_results_that_cannot_be_written_are_told_before_the_evaluation(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IsADirectoryError, match="is a folder; give --output the name of a file"):
        check_writable(tmp_path)
    with pytest.raises(OSError, match="file"):
        check_writable(tmp_path / "file" / "results.json")
    with pytest.raises(OSError, match="/proc/results.json"):
        check_writable("/proc/results.json")
    (tmp_path / "r_confusion.csv").write_text("mine")
    with pytest.raises(FileExistsError, match="r_confusion.csv exists"):
        check_writable(tmp_path / "r.json")
