"""Training samples: random state, errors, unlabelled images, and pasted parts of other images."""

from __future__ import annotations

import math

import datasets
import numpy as np
import pytest
import torch
from miniatures import camvid_folder
from PIL import Image
from stored_images import grey_png, png
from tiny import loss_options, segmenter, settings
from torch.utils.data import DataLoader

from afdcd_hf import DistillationTrainer, DistillationTrainingArguments
from afdcd_hf.data.checks import check_classes, check_labels
from afdcd_hf.data.loading import load_benchmark, load_split
from afdcd_hf.data.samples import TrainingSamples, classmix_mask, collate_samples
from afdcd_hf.data.transforms import RandomScaleCropFlip
from afdcd_hf.models.image_processing_afdcd import AfDcdImageProcessor
from afdcd_hf.training.options import DataArguments, TeacherArguments


def rows(count=4, label_value=1, **extra):
    image, label = Image.new("RGB", (6, 4)), Image.new("L", (6, 4), label_value)
    return [{"image": image, "label": label, **extra} for _ in range(count)]


def draw(image, label, rng):
    """Transform that returns what it drew."""
    return {"pixel_values": torch.full((3, 2, 2), rng.random()), "labels": torch.zeros(2, 2, dtype=torch.int64)}


def drawn(samples):
    return [float(sample["pixel_values"][0, 0, 0]) for sample in samples]


def test_each_item_depends_on_seed_epoch_and_index_but_no_global_state():
    samples = TrainingSamples(rows(), draw, num_labels=2, seed=7)
    before, first = torch.get_rng_state(), drawn(samples)
    samples.set_epoch(3)
    np.random.seed(1)
    assert drawn(samples) == pytest.approx([np.random.default_rng([7, 3, i]).random() for i in range(4)], rel=1e-6)
    assert drawn([samples[index] for index in (2, 3, -1)]) == [*drawn(samples)[2:], drawn(samples)[3]]
    samples.set_epoch(0)
    assert drawn(samples) == first and torch.equal(torch.get_rng_state(), before)
    assert not set(first) & set(drawn(TrainingSamples(rows(), draw, num_labels=2, seed=1)))


def test_persistent_workers_see_the_epoch():
    samples = TrainingSamples(rows(), draw, num_labels=2)
    options = {"num_workers": 1, "persistent_workers": True, "timeout": 60, "multiprocessing_context": "fork"}
    loader = DataLoader(samples, batch_size=4, collate_fn=collate_samples, **options)
    seen = []
    for epoch in range(3):
        samples.set_epoch(epoch)
        seen += [batch["pixel_values"][:, 0, 0, 0].tolist() for batch in loader]
    for epoch, values in enumerate(seen):
        samples.set_epoch(epoch)
        assert values == drawn(samples)


def test_a_self_decoding_dataset_is_read_like_ours():
    labels = [{"bytes": grey_png(np.uint8([[0, 1], [2, 3]]), 2), "path": None}] * 2
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    rows = {"image": [{"bytes": png(np.zeros((2, 2, 3), np.uint8)), "path": None}] * 2, "label": labels}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    assert np.asarray(dataset[0]["label"]).tolist() == [[0, 85], [170, 255]]  # Pillow's
    contents = datasets.Dataset.from_dict({name: [one["bytes"] for one in column] for name, column in rows.items()})
    for given in (dataset, contents):  # the latter as from pandas
        samples = TrainingSamples(given, RandomScaleCropFlip(AfDcdImageProcessor(), (2, 2), (1.0,), 0.0), num_labels=4)
        assert samples[1]["labels"].tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_label_gives_the_same_line_from_a_worker_as_from_the_main_process(tmp_path, workers):
    options = {"timeout": 60, "multiprocessing_context": "fork"} if workers else {}
    for content, kind, message in (
        (b"no image", OSError, r"the label \(.*annot/b\.png\) cannot be read: not an image\. .*"),
        (png(np.uint8([[30]])), ValueError, r"1 label pixels lie outside 0\.\.10 \(values 30\); .*"),
    ):
        (camvid_folder(tmp_path, stems="b") / "trainannot" / "b.png").write_bytes(content)
        samples = TrainingSamples(load_benchmark("camvid", "train", tmp_path), draw, num_labels=11)
        with pytest.raises(kind, match=rf"^train/b\.png: {message}$"):
            list(DataLoader(samples, collate_fn=collate_samples, num_workers=workers, **options))


def test_labels_that_are_not_class_ids_or_do_not_fit_are_rejected_naming_the_image():
    check_labels(np.array([[0, 10, 255]], np.uint16), 11, 255, "x")
    check_labels(np.array([[False, True]]), 2, 255, "a binary mask")
    for label, message in (
        (np.array([[0, -1, 255, *range(11, 19)]]), r"9 label pixels .* \(values -1, 11, 12, 13, 14, \.\.\.\)"),
        (np.zeros((2, 2, 3), np.uint8), "the label has shape .* one integer class id per pixel"),
        (np.zeros((2, 2), np.float32), "the label has shape .* one integer class id per pixel"),
    ):
        with pytest.raises(ValueError, match=f"x: {message}"):
            check_labels(label, 11, 255, "x")
    transform = RandomScaleCropFlip(AfDcdImageProcessor(), (2, 2))
    other_size = {"image": Image.new("RGB", (5, 4)), "name": "street.png"}
    for extra, message in (
        ({"label_value": 30, **other_size}, r"street\.png: 24 label pixels lie outside 0\.\.10 \(values 30\)"),
        ({"label_value": 30, "name": None}, "image 2: 24 label pixels .*index=255"),
        (other_size, "street.png: the image is 4x5 pixels but its label 4x6"),
        ({"image": Image.new("RGB", (4, 6))}, "image 2: .* must be equal. If the image was turned by its EXIF"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainingSamples(rows(**extra), transform, num_labels=11)[2]


def test_bad_settings_are_refused(caplog):
    for dataset, options, message in (
        (rows(), {"num_labels": 0}, "num_labels=0"),
        (rows(), {"seed": -1}, "seed=-1"),
        (datasets.Dataset.from_dict({"pixels": [0], "label": [0]}), {}, r"columns \['pixels', 'label'\].*rename"),
        (load_split("scenes", "train", max_samples=1).with_format(None), {}, "lost the transform that decodes"),
        (rows(), {"classmix_probability": 1.5}, r"classmix_probability=1.5: expected a probability between 0 and 1"),
        *((rows(), {"unlabelled_share": share}, "a share above 0 and below 1") for share in (0, 1, float("nan"))),
    ):
        with pytest.raises(ValueError, match=message):
            TrainingSamples(dataset, draw, **{"num_labels": 2, **options})
    samples = TrainingSamples(rows(), draw, num_labels=2, unlabelled=rows(), unlabelled_share=0.2)
    samples.check_batch(5)
    with pytest.raises(ValueError, match=r"unlabelled_share=0\.2 of a batch of 4 is less than one image"):
        samples.check_batch(4)
    samples.check_batch(5, 4)
    samples.check_batch(9)  # rounded down, as documented
    assert not caplog.records
    samples.check_batch(9, 2)
    assert (
        "each of the 2 batches of 9 images that make up a step: 2 of its 18 images are unlabelled, not 3" in caplog.text
    )


def test_labels_of_255_get_the_ignore_index_of_the_model_which_the_transform_must_share():
    label = Image.fromarray(np.array([[0, 255, 1]], np.uint8))
    row = {"image": Image.new("RGB", (3, 1)), "label": label}
    expected = {(2, -100): [0, -100, 1], (2, 255): [0, 255, 1], (300, -100): [0, 255, 1]}  # 255 may be a class
    for (num_labels, ignore_index), ids in expected.items():
        samples = TrainingSamples([row], colour_and_draw, num_labels=num_labels, ignore_index=ignore_index)
        assert samples[0]["labels"].tolist() == [ids]
    transform = RandomScaleCropFlip(AfDcdImageProcessor(), (32, 32))
    with pytest.raises(ValueError, match="pads labels with ignore_index=255, but these samples have -100: give both"):
        TrainingSamples([row], transform, num_labels=2, ignore_index=-100)


def test_a_different_number_of_classes_is_an_error_and_different_names_a_warning(caplog):
    named = segmenter(id2label=dict(enumerate(["a", "B", "x", "d"])))
    with pytest.raises(ValueError, match="model has 4 classes, but camvid has 3: it was made for other data"):
        check_classes(named, ["a", "b", "c"], "camvid")
    check_classes(named, ["a", "b", "c", "d"], "camvid")
    (warning,) = caplog.records
    assert "1 of the model's 4 class names differ from those of camvid; class 2 is 'x'" in warning.getMessage()
    caplog.clear()
    check_classes(segmenter(num_labels=2), ["a", "b"])  # names that are placeholders
    check_classes(torch.nn.Conv2d(1, 1, 1), ["a", "b"])
    assert not caplog.records


# Unlabelled images


def grey_rows(first, count, **extra):
    """Make images that differ in colour."""
    return [{"image": Image.new("RGB", (6, 4), (first + index,) * 3), **extra} for index in range(count)]


def colour_and_draw(image, label, rng):
    """Transform to colour and a draw in two channels; the draw identifies the generator."""
    pixels = torch.zeros(3, image.height, image.width)
    pixels[0], pixels[1] = image.getpixel((0, 0))[0], rng.random()
    return {"pixel_values": pixels, "labels": torch.from_numpy(np.array(label)).long()}


@pytest.mark.parametrize(("share", "expected"), [(0.5, "LULULULU"), (0.75, "LUUULUUU"), (0.25, "LLLULLLU")])
def test_each_batch_has_its_share_of_unlabelled_images_with_all_pixels_ignored(share, expected):
    labelled = grey_rows(0, 16, label=Image.new("L", (6, 4), 1))
    more = {"unlabelled": grey_rows(100, 5, name="more.png"), "unlabelled_share": share}
    samples = TrainingSamples(labelled, colour_and_draw, num_labels=2, seed=4, **more)
    loaders = [DataLoader(samples, batch_size=size, collate_fn=collate_samples) for size in (8, 4)]
    whole, halves = ([sample for batch in loader for sample in zip(*batch.values(), strict=True)] for loader in loaders)
    kinds = ["U" if (labels == 255).all() else "L" if (labels == 1).all() else "?" for _, labels, _ in whole]
    assert "".join(kinds) == 2 * expected
    for index, (kind, (pixels, _, name)) in enumerate(zip(kinds, whole, strict=True)):
        assert (pixels.max() >= 100 and name == "more.png") if kind == "U" else int(pixels.max()) == index
    assert all(torch.equal(one[0], other[0]) for one, other in zip(whole, halves, strict=True))
    samples.set_epoch(1)
    assert not torch.equal(samples.__getitems__(range(8))[7]["pixel_values"], whole[7][0])
    assert (samples[3]["labels"] == 1).all()  # one by one, all are labelled


def test_the_unlabelled_dataset_uses_the_datasets_folder():
    data = DataArguments(dataset="camvid", data_dir="/d/camvid")
    assert TeacherArguments().unlabelled_choice(data) is None
    choice = TeacherArguments(unlabelled_dataset="camvid", unlabelled_list="a.txt").unlabelled_choice(data)
    same = {"name": "camvid", "split": "train", "data_dir": "/d/camvid", "labelled": False}
    assert choice == {**same, "list_file": "a.txt"}
    assert TeacherArguments(unlabelled_dataset="/d/photos").unlabelled_choice(data).get("data_dir") is None
    with pytest.raises(ValueError, match="need unlabelled_dataset"):
        TeacherArguments(unlabelled_list="a.txt").unlabelled_choice(data)


def test_unlabelled_images_enter_distillation_but_not_the_task_loss(tmp_path):
    """With half of a batch unlabelled, the task loss is the other half's; distillation uses all images."""
    labelled = grey_rows(0, 4, label=Image.new("L", (6, 4), 1))
    transform = RandomScaleCropFlip(AfDcdImageProcessor(), (32, 48), (8.0,), 0.0)
    samples = TrainingSamples(labelled, transform, num_labels=4, unlabelled=grey_rows(100, 5))
    options = {**loss_options(), "af_dcd": {**loss_options()["af_dcd"], "mask": "center"}}
    args = DistillationTrainingArguments(**settings(tmp_path, loss="kd+af_dcd", loss_kwargs=options))
    trainer = DistillationTrainer(segmenter(), segmenter(seed=1), args, train_dataset=samples)
    batch = collate_samples(samples.__getitems__(range(4)))
    pixels, labels = batch["pixel_values"], batch["labels"]
    model = trainer.trained_module.eval()
    whole = model(pixels, labels, trainer._teach(pixels))["terms"]
    task = model(pixels[::2], labels[::2])["terms"]
    assert all(torch.allclose(whole[name], value, rtol=1e-5) for name, value in task.items())
    assert len(whole) > len(task) and all(torch.isfinite(value) for value in whole.values())
    trainer.train()
    assert trainer.state.global_step == 2


# CutMix and ClassMix, against plain loops over the pixels


HEIGHT, WIDTH, SEED, EPOCH = 8, 12, 5, 2


def coloured_row(index):
    """Make an image of one colour, which identifies its pixels; one column of labels is ignored."""
    ids = np.random.default_rng(index).integers(0, 4, (HEIGHT, WIDTH)).astype(np.uint8)
    ids[:, index] = 255
    return {"image": Image.new("RGB", (WIDTH, HEIGHT), (index, 0, 0)), "label": Image.fromarray(ids)}


MIXED = [coloured_row(index) for index in range(6)]
UNLABELLED = [{"image": Image.new("RGB", (WIDTH, HEIGHT), (50, 0, 0))}]


def mixed_samples(**options):
    made = TrainingSamples(MIXED, colour_and_draw, num_labels=4, seed=SEED, **options)
    made.set_epoch(EPOCH)
    return made


def plain(index, kind):
    """Mix another sample into sample `index`, pixel by pixel; return it and its name."""
    draws = np.random.default_rng([SEED, EPOCH, index, 2])
    if kind == "classmix":
        draws.random()  # CutMix's, whose probability is 0
    draws.random()
    partner = int(draws.integers(len(MIXED)))
    other = colour_and_draw(MIXED[partner]["image"], MIXED[partner]["label"], draws)
    if kind == "cutmix":
        scale = math.sqrt(draws.random())
        tall, wide = int(HEIGHT * scale), int(WIDTH * scale)
        top, left = int(draws.integers(HEIGHT)) - tall // 2, int(draws.integers(WIDTH)) - wide // 2
    else:
        there = sorted({int(value) for value in other["labels"].flatten()} - {255})
        chosen = set(draws.choice(there, 2, replace=False).tolist())
    own = mixed_samples()[index]
    pixels, labels = own["pixel_values"].clone(), own["labels"].clone()
    for y in range(HEIGHT):
        for x in range(WIDTH):
            if kind == "cutmix":
                taken = top <= y < top + tall and left <= x < left + wide
            else:
                taken = int(other["labels"][y, x]) in chosen
            if taken:
                pixels[:, y, x], labels[y, x] = other["pixel_values"][:, y, x], other["labels"][y, x]
    return pixels, labels, f"image {index} with parts of image {partner}"


@pytest.mark.parametrize("kind", ["cutmix", "classmix"])
def test_pixels_and_labels_are_those_of_a_plain_loop_in_any_batch_and_from_workers(kind):
    mixed = mixed_samples(**{f"{kind}_probability": 1.0})
    options = {"num_workers": 1, "timeout": 60, "multiprocessing_context": "fork", "collate_fn": collate_samples}
    batches = list(DataLoader(mixed, batch_size=3, **options))
    seen = [sample for batch in batches for sample in zip(*batch.values(), strict=True)]
    changed = 0
    for index, (pixels, labels, name) in enumerate(seen):
        expected = plain(index, kind)
        assert torch.equal(pixels, expected[0]) and torch.equal(labels, expected[1]) and name == expected[2]
        assert torch.equal(mixed.__getitems__([4, index])[1]["labels"], labels)
        changed += bool((pixels[0] != index).any())
    assert changed >= 4  # except if the partner is the image itself, or the rectangle is empty


def test_half_of_the_samples_are_mixed_and_the_others_unchanged():
    mixed, usual = mixed_samples(cutmix_probability=0.5), mixed_samples()
    drawn = [np.random.default_rng([SEED, EPOCH, index, 2]).random() < 0.5 for index in range(6)]
    assert [" with parts of " in mixed[index]["name"] for index in range(6)] == drawn and 0 < sum(drawn) < 6
    assert torch.equal(mixed[drawn.index(False)]["pixel_values"], usual[drawn.index(False)]["pixel_values"])


def test_an_unlabelled_image_gets_labels_where_a_labelled_one_is_pasted():
    options = {"unlabelled": UNLABELLED, "classmix_probability": 1.0}
    sample = mixed_samples(**options).__getitems__([0, 1])[1]
    pasted = sample["pixel_values"][0] != 50
    assert (sample["labels"] != 255).equal(pasted) and 0 < pasted.sum() < HEIGHT * WIDTH


def test_one_class_alone_is_not_pasted():
    for labels in (torch.zeros(2, 2, dtype=torch.int64), torch.full((2, 2), 255)):
        assert not classmix_mask(labels, np.random.default_rng(0), 255).any()
