"""Training and evaluation on a stream: resumed to the bit, and scored as stored rows are."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset, Image
from images import labelled_image
from tiny import distilling, same, saved, segmenter, supervised, weights

from afdcd_hf import AfDcdImageProcessor
from afdcd_hf.cli import main
from afdcd_hf.data import RandomScaleCropFlip, StreamedSamples
from afdcd_hf.evaluation import evaluate_segmenter
from afdcd_hf.training.arguments import parse_arguments


def rows(count: int, first: int = 0) -> Dataset:
    found = [labelled_image(first + index, 4, 32, 48) for index in range(count)]
    columns = Dataset.from_dict({name: [row[name] for row in found] for name in ("image", "label", "name")})
    return columns.cast_column("image", Image()).cast_column("label", Image())


def streamed(count: int = 6) -> StreamedSamples:
    transform = RandomScaleCropFlip(AfDcdImageProcessor(), (32, 48), scales=(0.75, 1.0, 1.25))
    return StreamedSamples(rows(count).to_iterable_dataset(2).shuffle(0, buffer_size=4), transform, num_labels=4)


def test_a_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(tmp_path):
    parts = {"eval_dataset": rows(3, 100).to_iterable_dataset(), "max_steps": 4, "save_strategy": "steps"}
    parts |= {"save_steps": 2, "loss": "kd", "loss_kwargs": None}  # the stream of 6 begins again within 4 steps of 4
    whole = distilling(tmp_path, train_dataset=streamed(), **parts)
    whole.train()
    resumed = distilling(tmp_path, segmenter(5), train_dataset=streamed(), **parts)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 4 and same(weights(resumed.student), weights(whole.student))
    stored = evaluate_segmenter(whole.student, rows(3, 100), processor=AfDcdImageProcessor(), progress=False)
    assert whole.evaluate()["eval_mean_iou"] == stored["mean_iou"] and stored["num_images"] == 3


def test_a_stream_needs_max_steps_and_rows(tmp_path):
    with pytest.raises(ValueError, match="max_steps"):
        supervised(tmp_path, train_dataset=streamed(), max_steps=-1, num_train_epochs=1)
    with pytest.raises(ValueError, match="nothing to evaluate: the dataset is empty"):
        evaluate_segmenter(segmenter(), iter([]), processor=AfDcdImageProcessor(), progress=False)


def test_the_command_line_trains_and_scores_on_a_stream_of_parquet_files(tmp_path):
    for split, found in (("train", rows(6)), ("validation", rows(3, 100))):
        found.to_parquet(tmp_path / "data" / f"{split}-0.parquet")
    data = ["--dataset", str(tmp_path / "data"), "--streaming"]
    command = ["train", *data, "--model", str(saved(tmp_path / "model", segmenter())), "--class_names", *"abcd"]
    command += ["--max_steps", "2", "--total_batch_size", "2", "--crop_size", "32", "48", "--use_cpu"]
    assert main([*command, "--output_dir", str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["num_images"] == 3 and (tmp_path / "run" / "README.md").is_file()
    for form in (data, data[:2]):  # streamed and stored
        scored = ["evaluate", "--model", str(tmp_path / "run"), *form, "--output", str(tmp_path / "r.json")]
        assert main([*scored, "--overwrite", "--device", "cpu"]) == 0
        assert json.loads((tmp_path / "r.json").read_text())["mean_iou"] == results["mean_iou"]


def test_what_no_stream_can_do_is_refused_before_anything_is_loaded():
    for words, message in (
        ("--num_train_epochs 1", "streaming needs max_steps"),
        ("--max_steps -1 --num_train_epochs 1", "streaming needs max_steps"),
        ("--cutmix_probability 0.5", "which rules out cutmix_probability: leave out that, or streaming"),
        ("--unlabelled_dataset scenes", "rules out unlabelled_dataset"),
        ("--class_weights balanced --eval_strategy epoch", "rules out class_weights balanced, eval_strategy epoch"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_arguments({"output_dir": "out"}, ["--streaming", "--loss", "cwd", *words.split()], distils=True)
