"""Export: ONNX graphs against PyTorch, their int8 versions, and the backbone for timm."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shutil
from contextlib import redirect_stdout
from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch
from command_line import answer, saved_model
from images import TINY_RESNET, labelled_image
from miniatures import camvid_folder
from timm.layers import Conv2dSame
from tiny import saved, segmenter
from torch import nn
from torch.nn import functional as F
from transformers import MobileViTImageProcessor

from afdcd_hf import AfDcdImageProcessor, as_segmenter, evaluate_segmenter, segment_image
from afdcd_hf.cli import main
from afdcd_hf.export import onnx as onnx_export
from afdcd_hf.export.onnx import (
    PARITY_SHAPES,
    TOLERANCE,
    Graph,
    adaptive_avg_pool_as_matmul,
    check_parity,
    convolve_same,
    export_onnx,
)
from afdcd_hf.export.other_formats import export_executorch, export_openvino
from afdcd_hf.export.quantisation import calibration_inputs, quantise_onnx
from afdcd_hf.export.runtimes import compare_runtimes
from afdcd_hf.export.timm_backbone import export_timm_backbone
from afdcd_hf.inference.graphs import OnnxSegmenter, load_graph
from afdcd_hf.inference.predictions import write_pseudo_labels
from afdcd_hf.inference.segment import InferenceSettings, make_sample
from afdcd_hf.models.loading import FLIPS, load_model, load_processor

BGR = {"do_flip_channels": True, "do_rescale": False, "image_mean": [104.0, 117.0, 123.0], "image_std": [1, 1, 1]}
try:
    import onnx
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401
except ImportError:
    onnx = None
needs_onnx = pytest.mark.skipif(onnx is None, reason="needs the extra `export`")


def pictures(count=4, size=(48, 64), num_labels=4):
    return [labelled_image(index, num_labels, *size) for index in range(count)]


def trained_looking(model):
    """Set running statistics and weights so that scores differ between images, as after training."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def assert_gives_the_scores_of(model, graph, *shapes):
    for shape in shapes or [(2, 63, 65)]:
        images = torch.randn(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(1)) * 50
        with torch.no_grad():
            expected = model(pixel_values=images).logits
        first = graph(pixel_values=images).logits
        graph(pixel_values=-images)  # the runtime reuses its buffer, which must not change the result
        torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A PSPNet, its processor (BGR), its graph for all sizes, and the parity rows."""
    model, processor = trained_looking(segmenter(head="pspnet", channels=32)), AfDcdImageProcessor(**BGR)
    path = tmp_path_factory.mktemp("psp") / "model.onnx"
    model.head.train()
    rows = export_onnx(model, processor, path)
    assert model.head.training and not model.backbone.training  # only a copy is exported
    return model.eval(), processor, path, rows


@pytest.fixture(scope="module")
def by_command(tmp_path_factory):
    """Run the command: a label graph of 32x48 pixels and int8, from a model and images in CamVid's layout.

    Returns the folder, the arguments and the output.
    """
    folder = tmp_path_factory.mktemp("command")
    model = trained_looking(load_model(saved_model(folder / "model", "camvid")))
    inputs = load_processor(folder / "model")(images=pictures(1, (32, 48))[0]["image"], return_tensors="pt")
    with torch.no_grad():  # otherwise one class would win everywhere
        model.head.classifier.bias -= model(**inputs).logits.mean(dim=(0, 2, 3))
    model.save_pretrained(folder / "model")
    for split in ("train", "val"):
        camvid_folder(folder / "data", split, 2, size=(32, 48))
    words = ["export", str(folder / "model"), "--format", "onnx", "--output", str(folder / "out" / "m.onnx")]
    words += ["--size", "32", "48", "--upsample", "--argmax", "--int8", "--calibration-dataset", "camvid"]
    words += ["--data-dir", str(folder / "data"), "--evaluate-split", "val"]
    with redirect_stdout(io.StringIO()) as printed:
        assert main(words) == 0
    return folder, words, printed.getvalue()


@pytest.mark.parametrize("cells", [1, 3, 6, (2, 5), (None, 3), (4, None)])
@pytest.mark.parametrize("size", [(6, 6), (7, 11), (3, 2), (1, 13)])
def test_pooling_as_matrix_products_equals_adaptive_average_pooling(cells, size):
    maps = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(adaptive_avg_pool_as_matmul(maps, cells), F.adaptive_avg_pool2d(maps, cells))


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 1), (2, 2)])
def test_padding_as_tensorflow_with_a_constant_total_equals_timms(kernel, stride, dilation):
    layer = Conv2dSame(2, 3, kernel, stride=stride, dilation=dilation)
    for height in range(9, 15):
        maps = torch.randn(1, 2, height, height + 3)
        torch.testing.assert_close(convolve_same(layer, maps), layer(maps))


def test_sizes_after_strided_convolutions_padded_as_tensorflow_stay_plain_expressions():
    layers = nn.Sequential(*(Conv2dSame(3, 3, 3, stride=2) for _ in range(3)))
    traced, example = Graph(as_segmenter(layers, num_labels=3), AfDcdImageProcessor()).for_tracing()
    axes = dict.fromkeys((2, 3), torch.export.Dim.DYNAMIC)
    *_, last, _ = torch.export.export(traced, (example,), dynamic_shapes=(axes,)).graph.nodes
    assert re.fullmatch(r"\(*s\d+ - 1\)//8\)\)* \+ 1", str(last.meta["val"].shape[2]))


@needs_onnx
def test_a_graph_computes_the_models_scores_at_sizes_that_the_export_did_not_try(exported):
    model, _, path, rows = exported
    assert [(row.batch, row.height, row.width) for row in rows] == list(PARITY_SHAPES)
    assert_gives_the_scores_of(model, OnnxSegmenter(path), (1, 40, 200), (3, 63, 65), (2, 33, 47))


@pytest.mark.parametrize("processor", [AfDcdImageProcessor(**BGR), MobileViTImageProcessor(do_resize=False)])
def test_preprocessing_within_a_graph_equals_the_processors_and_is_not_repeated(processor):
    graph, image = Graph(segmenter(), processor, with_preprocessing=True), pictures(1)[0]["image"]
    found = graph.preprocessed(torch.from_numpy(np.array(image))[None])
    torch.testing.assert_close(found[0], make_sample(processor, image).pixel_values)
    described = json.loads(graph.description)["processor"]
    assert not any(described.get(name) for name in (*FLIPS, "do_rescale", "do_normalize", "do_center_crop"))
    with pytest.raises(ValueError, match="WrappedSegmenter has no config. Wrap .*num_labels"):
        Graph(as_segmenter(nn.Conv2d(3, 4, 1)), processor)


def scores_of(images):
    return torch.cat([images, -images], dim=1)


def parity(graph, *shapes, labels=False):
    return check_parity(scores_of, lambda a: graph(scores_of(torch.from_numpy(a)).numpy()), AfDcdImageProcessor(),
                        shapes, labels=labels)  # fmt: skip


def test_a_different_graph_is_refused_with_a_table_and_label_maps_only_if_another_class_scores_better():
    def off(error):
        return lambda scores: scores + np.float32(error if scores.shape[-1] == 20 else 0)

    def other(scores):  # one pixel where another class scores far better
        labels = scores.argmax(1)
        labels[0, 3, 3] = (labels[0, 3, 3] + 1) % 6
        return labels

    for error in (100 * TOLERANCE, float("nan")):
        with pytest.raises(ValueError, match=r"(?s)model differ by more than.*1x16x20.*--size"):
            parity(off(error), (1, 16, 16), (1, 16, 20))
        assert parity(off(error), (1, 16, 16))[0].difference == 0
    with pytest.raises(ValueError, match=r"the graph's output is \(1, 6, 4, 4\), the model's \(1, 6, 8, 8\)"):
        parity(lambda _: np.zeros((1, 6, 4, 4)), (1, 8, 8))
    assert parity(lambda scores: scores.argmax(1), (1, 8, 8), labels=True)[0].other_labels == 0
    with pytest.raises(ValueError, match="differ by more than"):
        parity(other, (1, 8, 8), labels=True)


@needs_onnx
def test_a_graph_that_fails_its_check_leaves_no_file(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "_trace", lambda *_: onnx.load(exported[2]))
    monkeypatch.setattr(onnx_export, "check_parity", Mock(side_effect=ValueError("differs")))
    (tmp_path / "model.onnx").write_text("earlier")
    with pytest.raises(ValueError, match="differs"):
        export_onnx(*exported[:2], tmp_path / "model.onnx", overwrite=True)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["earlier"]


@needs_onnx
def test_a_graph_is_scored_like_its_model_and_contains_its_image_processor(exported):
    model, processor, path, _ = exported
    options = {"processor": processor, "progress": False}
    expected = evaluate_segmenter(model, pictures(), **options)
    found = evaluate_segmenter(OnnxSegmenter(path), pictures(), **options)
    assert np.array_equal(found["confusion_matrix"], expected["confusion_matrix"])
    assert len(np.unique(found["confusion_matrix"].sum(0))) > 1  # not one class everywhere
    assert list(found["per_category_iou"]) == list(expected["per_category_iou"])
    assert found["protocol"] == expected["protocol"]
    with pytest.raises(ValueError, match="precision='bf16': .* runs in the precision it was exported in"):
        evaluate_segmenter(OnnxSegmenter(path), pictures(), **options, settings=InferenceSettings(precision="bf16"))
    inputs = {"images": pictures(1)[0]["image"], "return_tensors": "pt"}
    given = load_graph(path)[1](**inputs)["pixel_values"]
    assert torch.equal(given, processor(**inputs)["pixel_values"])
    assert given.abs().max() > 50  # mean-subtracted, not divided


@needs_onnx
def test_a_label_graph_of_fixed_size_computes_the_models_label_maps(by_command, tmp_path):
    model, processor = load_model(by_command[0] / "model").eval(), load_processor(by_command[0] / "model")
    path = by_command[0] / "out" / "m.onnx"
    graph, picture = OnnxSegmenter(path), pictures(1, (32, 48))[0]["image"]
    labels = graph.run(processor(images=picture, return_tensors="np")["pixel_values"])
    assert labels.dtype == np.uint8 and labels.shape == (1, 32, 48) and len(np.unique(labels)) > 1
    assert np.array_equal(labels[0], segment_image(model, processor, picture))
    assert np.array_equal(labels[0], segment_image(graph, processor, picture))
    assert graph.run(np.zeros((5, 3, 32, 48), np.float32)).shape == (5, 32, 48)
    with pytest.raises(ValueError, match=r"32x48 pixels \(height x width\), not 32x49"):
        graph.run(np.zeros((1, 3, 32, 49), np.float32))
    picture.save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="gives classes without scores, hence no confidence"):
        write_pseudo_labels(path, [tmp_path / "x.png"], tmp_path / "out", progress=False)
    # applied as a sliding window to larger images, like the model
    rows = compare_runtimes(model, {"ONNX": path}, processor, pictures(2, (40, 64), 11), repeats=1)
    assert rows[1].mean_iou == pytest.approx(rows[0].mean_iou, abs=0.05)  # labels are joined, not scores


@needs_onnx
def test_files_that_are_not_exported_graphs_are_refused(tmp_path, exported):
    proto = onnx.load(exported[2])
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "foreign.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    for name, error, message in (
        ("absent", FileNotFoundError, "There is no graph at"),
        ("noise", ValueError, "onnxruntime cannot read"),
        ("foreign", ValueError, "was not made by `afdcd export`"),
    ):
        with pytest.raises(error, match=message):
            OnnxSegmenter(tmp_path / f"{name}.onnx")


@needs_onnx
@pytest.mark.parametrize(
    ("package", "export", "name", "options"),
    [
        ("openvino", export_openvino, "model.xml", {}),
        pytest.param("executorch", export_executorch, "model.pte", {"size": (63, 65)}, marks=pytest.mark.slow),
    ],
)
def test_other_runtimes_compute_the_models_scores_and_are_chosen_by_file_suffix(
    exported, tmp_path, monkeypatch, package, export, name, options
):
    pytest.importorskip(package)
    model, processor, path, _ = exported
    monkeypatch.setattr(onnx_export, "_trace", lambda *_: onnx.load(path))
    found = export(model, processor, tmp_path / name, **options)
    shapes = [(batch, 63, 65) for batch in (1, 2, 3)] if options else list(PARITY_SHAPES)
    assert [(row.batch, row.height, row.width) for row in found] == shapes
    graph, loaded = load_graph(tmp_path / name)
    assert graph.config.id2label == model.config.id2label and loaded.do_flip_channels
    assert graph.size_in_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert_gives_the_scores_of(model, graph)
    with pytest.raises(FileExistsError, match=f"{name} exists"):
        export(model, processor, tmp_path / name, **options)
    if options:
        with pytest.raises(ValueError, match="takes images of 63x65 pixels"):
            graph(pixel_values=torch.zeros(1, 3, 64, 64))
        with pytest.raises(ValueError, match="give --size HEIGHT WIDTH"):
            export(model, processor, tmp_path / "other.pte")
    (tmp_path / name).write_bytes(b"noise")
    with pytest.raises(ValueError, match="cannot read"):
        load_graph(tmp_path / name)


@needs_onnx
def test_half_precision_halves_the_file_and_is_nearly_equal(exported, tmp_path):
    rows = export_onnx(*exported[:2], tmp_path / "half.onnx", fp16=True, opset=20, size=(63, 65))
    assert all(0 < row.difference < 0.02 * row.largest_score for row in rows)
    proto = onnx.load(tmp_path / "half.onnx")
    assert next(entry.version for entry in proto.opset_import if not entry.domain) == 20
    weights = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert {weights[node.input[1]] for node in proto.graph.node if node.op_type == "Conv"} == {onnx.TensorProto.FLOAT16}
    assert proto.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_without_onnx_the_message_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"onnxruntime.*pip install 'afdcd-hf\[export\]'"):
        export_onnx(nn.Identity(), None, tmp_path / "model.onnx")


@needs_onnx
def test_the_int8_graph_computes_in_integers_and_is_nearly_equal(exported, tmp_path):
    model, processor, path, _ = exported
    names = quantise_onnx(path, tmp_path / "int8.onnx", pictures(5), processor, samples=3)
    assert names == ["bands_0", "bands_2", "bands_4"]
    quantise_onnx(path, tmp_path / "ends.onnx", pictures(5), processor, samples=1, float_ends=True)
    inputs = [node.input[1] for node in onnx.load(tmp_path / "ends.onnx").graph.node if node.op_type == "Conv"]
    assert [name.endswith("_DequantizeLinear_Output") for name in inputs] == [False, *[True] * (len(inputs) - 2), False]
    graph = onnx.load(tmp_path / "int8.onnx").graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    sources = {node.output[0]: node for node in graph.node}
    scaled = [sources[node.input[1]] for node in graph.node if node.op_type == "Conv"]
    assert {(node.op_type, kinds[node.input[0]]) for node in scaled} == {("DequantizeLinear", onnx.TensorProto.INT8)}
    loaded, _ = load_graph(tmp_path / "int8.onnx")
    assert loaded.config.id2label == model.config.id2label
    images = processor(images=pictures(1)[0]["image"], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected, found = model(pixel_values=images).logits, loaded(pixel_values=images).logits
    assert 0 < (found - expected).abs().max() < 0.2 * expected.abs().max()
    with pytest.raises(ValueError, match="at least one image; 0 of 5"):
        quantise_onnx(path, tmp_path / "no.onnx", pictures(5), processor, samples=0)
    assert {path.name for path in tmp_path.iterdir()} == {"int8.onnx", "ends.onnx"}


def test_a_graph_of_fixed_size_is_calibrated_on_centre_crops():
    processor = AfDcdImageProcessor(do_normalize=False, do_rescale=False)
    (centre,) = calibration_inputs(pictures(1), [0], processor, (8, 12), [])
    whole = np.asarray(pictures(1)[0]["image"]).transpose(2, 0, 1)
    assert np.array_equal(centre["pixel_values"][0], whole[:, 20:28, 26:38])
    with pytest.raises(ValueError, match="bands_0 has 48x64 pixels, fewer than the graph's 64x64"):
        next(calibration_inputs(pictures(1), [0], processor, (64, 64), []))


@needs_onnx
def test_runtimes_are_compared_on_size_latency_and_mean_iou(exported):
    model, processor, path, _ = exported
    images = [row["image"] for row in pictures()]
    rows = compare_runtimes(model, {"ONNX": path}, processor, pictures(), images=images, repeats=2)
    expected = evaluate_segmenter(model, pictures(), processor=processor, progress=False)["mean_iou"]
    assert [row.runtime for row in rows] == ["PyTorch", "ONNX"]
    assert [row.mean_iou for row in rows] == [expected, expected] and rows[1].mean_iou_change == 0
    assert [row.other_labels for row in rows] == [None, 0]
    assert rows[1].megabytes == path.stat().st_size / 1e6
    assert all(0 < row.latency_median <= row.latency_p95 for row in rows)
    assert compare_runtimes(model, {}, processor, repeats=1)[0].mean_iou is None


@pytest.mark.parametrize(
    "config",
    [
        {"backbone": "resnet18", "backbone_kwargs": TINY_RESNET, "output_stride": 8},
        {"backbone": "resnet18", "backbone_kwargs": {**TINY_RESNET, "out_indices": [2, 4]}, "output_stride": 32},
        {"backbone": "mobilenetv2_035", "backbone_kwargs": {}, "output_stride": 16},
        {"backbone": "convnext_zepto_rms", "backbone_kwargs": {}, "output_stride": 32},
    ],
    ids=["dilated", "some maps", "layers behind the maps", "renamed stages"],
)
def test_timm_loads_the_exported_backbone(config, tmp_path):
    model = trained_looking(segmenter(**config))
    folder, lacking = export_timm_backbone(model, AfDcdImageProcessor(), tmp_path / "backbone")
    features = {"out_indices": (2, 4)} if "out_indices" in config["backbone_kwargs"] else {}
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True, **features).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected, found = model.backbone(images), loaded(images)
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))
    assert bool(lacking) == ("resnet" not in config["backbone"])
    assert {path.name for path in tmp_path.iterdir()} == {"backbone"}
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    readme = (folder / "README.md").read_text()
    assert all(name in readme for name in lacking) and ("out_indices=(2, 4)" in readme) == bool(features)


def test_a_whole_backbone_is_also_a_plain_timm_model(tmp_path):
    saved(tmp_path / "model", model := trained_looking(segmenter(output_stride=8)))
    AfDcdImageProcessor(**BGR).save_pretrained(tmp_path / "model")
    folder = tmp_path / "backbone"
    assert main(["export", str(tmp_path / "model"), "--format", "timm", "--output", str(folder)]) == 0
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.forward_features(images), model.backbone(images)[-1])
    assert loaded.pretrained_cfg["mean"] == pytest.approx([104 / 255, 117 / 255, 123 / 255])
    assert loaded.pretrained_cfg["std"] == pytest.approx([1 / 255] * 3)
    assert "BGR" in (folder / "README.md").read_text()


def test_a_backbone_that_timm_cannot_reproduce_is_refused_and_no_files_are_left(tmp_path):
    with pytest.raises(FileExistsError, match="exists; give another"):
        export_timm_backbone(segmenter(), AfDcdImageProcessor(), tmp_path)
    with pytest.raises(ValueError, match="not Conv2d"):
        export_timm_backbone(nn.Conv2d(3, 4, 1), AfDcdImageProcessor(), tmp_path / "new")
    model = segmenter()
    with torch.no_grad():
        model.backbone.net.conv1.weight[0] = float("nan")  # equal to nothing
    with pytest.raises(ValueError, match="computes different maps"):
        export_timm_backbone(model, AfDcdImageProcessor(), tmp_path / "backbone")
    assert not list(tmp_path.iterdir())


@needs_onnx
def test_the_command_writes_graph_int8_and_report_and_other_commands_accept_the_graphs(by_command, tmp_path, capsys):
    folder, words, printed = by_command
    assert "3x32x48" in printed and "ONNX int8" in printed and "mIoU %" in printed
    assert {p.name for p in (folder / "out").iterdir()} == {
        "m.onnx", "m_int8.onnx", "m_export.json", "preprocessor_config.json",
    }  # fmt: skip
    report = json.loads((folder / "out" / "m_export.json").read_text())
    assert [row["runtime"] for row in report["runtimes"]] == ["PyTorch", "ONNX", "ONNX int8"]
    assert report["runtimes"][0]["mean_iou"] == report["runtimes"][1]["mean_iou"]
    assert report["calibration"]["images"] == ["train/a.png", "train/b.png"]
    assert report["evaluated_on"] == {"dataset": "camvid", "split": "val", "num_images": 2}
    assert "onnxruntime" in report["versions"]
    data = ["--dataset", "camvid", "--data-dir", str(folder / "data"), "--device", "cpu"]
    for name, expected in (("m", report["runtimes"][1]), ("m_int8", report["runtimes"][2])):
        results = tmp_path / f"{name}.json"
        graph = ["--model", str(folder / "out" / f"{name}.onnx")]
        assert main(["evaluate", *graph, *data, "--output", str(results)]) == 0
        scores = json.loads(results.read_text())  # sliding windows, since the graph has a fixed size
        assert scores["mean_iou"] == expected["mean_iou"] and scores["protocol"]["window"] == [32, 48]
        images, out = str(folder / "data" / "val"), str(tmp_path / f"{name}_out")
        assert main(["predict", images, *graph, "--output", out, "--device", "cpu"]) == 0
        assert len(list((tmp_path / f"{name}_out" / "ids").iterdir())) == 2
    for place, own in (("images", "val"), ("labels", "valannot")):  # the same files, as a user's own
        shutil.copytree(folder / "data" / own, tmp_path / "own" / place / "val")
    own_data = ["--calibration_dataset", str(tmp_path / "own"), "--labels_as", "camvid", "--evaluate_split", "val"]
    raw = [*words[: words.index("--int8")], "--output", str(tmp_path / "raw.onnx"), *own_data]
    assert main([*raw, "--with_preprocessing"]) == 0
    scores = [row["mean_iou"] for row in json.loads((tmp_path / "raw_export.json").read_text())["runtimes"]]
    assert scores == [report["runtimes"][0]["mean_iou"]] * 2  # PyTorch and a graph of raw pixels
    before = (folder / "out" / "m.onnx").read_bytes()
    assert "m.onnx exists" in answer(capsys, *words)
    assert (folder / "out" / "m.onnx").read_bytes() == before


@needs_onnx
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--int8"], "--int8 needs images: give --calibration_dataset"),
        (["--evaluate_split", "val"], "--evaluate_split needs images"),
        (["--calibration_dataset", "camvid"], "is for --int8 or --evaluate_split"),
        (["--float_ends"], "--float_ends is for --int8"),
        (["--data_dir", "d"], "--data_dir needs --calibration_dataset"),
        (["--label_map", "{}"], "--label_map needs --calibration_dataset"),
        (["--max_samples", "3"], "--max_samples limits --evaluate_split"),
        (["--calibration_samples", "3"], "--calibration_samples is for --int8"),
        (["--argmax", "--evaluate_split", "val", "--calibration_dataset", "camvid"], "add --upsample"),
        (["--output", "folder"], "ends in .onnx"),
        (["--format", "openvino"], "ends in .xml"),
        (["--format", "openvino", "--int8", "--calibration_dataset", "camvid"], "--int8 is for --format onnx"),
        (["--int8", "--fp16", "--calibration_dataset", "camvid"], "leave out --fp16"),
        (["--format", "executorch"], "ExecuTorch plans memory for one image size: give --size"),
        (["--format", "executorch", "--size", "64", "64", "--opset", "20"], "--opset is for ONNX and OpenVINO"),
        (["--with_preprocessing", "--int8", "--calibration_dataset", "camvid"], "without preprocessing"),
        (["--format", "timm", "--argmax"], "--argmax cannot be used with --format timm"),
    ],
)
def test_options_that_exclude_each_other_are_refused_before_anything_is_loaded(options, message, tmp_path, capsys):
    words = ["export", "nowhere", "--format", "onnx", "--output", str(tmp_path / "m.onnx"), *options]
    assert message in answer(capsys, *words)
    assert not list(tmp_path.iterdir())
