"""The page for the browser: the files written, and its behaviour in Chromium."""

from __future__ import annotations

import importlib.util
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from images import labelled_image
from tiny import segmenter

from afdcd_hf import AfDcdImageProcessor, segment_image
from afdcd_hf.charts.label_maps import class_borders, line_colors
from afdcd_hf.export.runtimes import compare_runtimes
from afdcd_hf.export.web import CDN, FILES, LOCAL, export_web
from afdcd_hf.inference.graphs import load_graph
from afdcd_hf.inference.predictions import class_legend

RUNTIME = Path(__file__).parents[2] / LOCAL
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")
pytest.importorskip("onnxscript", reason="needs the extra `export`")
PROCESSOR = AfDcdImageProcessor(do_flip_channels=True, do_rescale=False, image_mean=[104.0] * 3, image_std=[1, 1, 1])
BROWSER = shutil.which("chromium")
COLOURS = """() => { const c = document.getElementById("labels");
    return [c.width, c.height, [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data]]; }"""


@pytest.fixture(scope="module")
def model():
    model = segmenter(channels=32).eval()
    images = PROCESSOR(images=labelled_image(0, 4, 40, 56)["image"], return_tensors="pt")
    with torch.no_grad():  # otherwise one class would win everywhere
        model.head.classifier.bias -= model(**images).logits.mean(dim=(0, 2, 3))
    model.config.id2label = {**model.config.id2label, 0: "</script>"}
    return model


@pytest.fixture(scope="module")
def page(model, tmp_path_factory):
    """The page, with a fake runtime."""
    package = tmp_path_factory.mktemp("package")
    (package / "dist").mkdir()
    for name in FILES:
        (package / "dist" / name).write_text(name)
    folder = package / "page"
    assert export_web(model, PROCESSOR, folder, title="<b>", runtime=package)[1] is None
    return folder


def test_a_page_has_the_graph_the_classes_and_the_runtime(page, model, tmp_path):
    files = {str(path.relative_to(page)) for path in page.rglob("*") if path.is_file()}
    assert files == {"index.html", "model.onnx", *(f"runtime/{name}" for name in FILES)}
    text = (page / "index.html").read_text()
    assert "<title>&lt;b&gt;</title>" in text and text.count("</script>") == 1 and '"size": null' in text
    assert "</script>" in model.config.id2label.values()
    assert 'from "./runtime/ort.wasm.min.mjs"' in text and "connect-src 'self' ;" in text and "@" not in text
    with pytest.raises(FileExistsError, match="exists; give another --web"):
        export_web(model, PROCESSOR, page, title="x")
    with pytest.raises(ValueError, match=r"no ort\.wasm\.min\.mjs in .*npm install"):
        export_web(model, PROCESSOR, tmp_path / "other", title="x", runtime=tmp_path)
    with pytest.raises(ValueError, match="resizes to .*shortest_edge.*--size"):
        processor = AfDcdImageProcessor(do_resize=True, size={"shortest_edge": 32})
        export_web(model, processor, tmp_path / "other", title="x", runtime=CDN)
    assert not list(tmp_path.iterdir())


def test_the_pages_graph_maps_pixels_to_the_models_label_maps(page, model):
    images = [labelled_image(index, 4, 33, 70)["image"] for index in range(2)]
    session = onnxruntime.InferenceSession(str(page / "model.onnx"), providers=["CPUExecutionProvider"])
    [labels] = session.run(["labels"], {"image": np.stack([np.asarray(image) for image in images])})
    graph, loaded = load_graph(page / "model.onnx")
    for found, image in zip(labels, images, strict=True):
        expected = segment_image(model, PROCESSOR, image)
        assert np.array_equal(found, expected) and np.array_equal(segment_image(graph, loaded, image), expected)
    assert len(np.unique(labels)) > 1
    rows = compare_runtimes(model, {"page": page / "model.onnx"}, PROCESSOR, images=images, repeats=1)
    assert rows[1].other_labels == 0


@pytest.mark.skipif(importlib.util.find_spec("playwright") is None or not BROWSER, reason="needs playwright, chromium")
@pytest.mark.skipif(not RUNTIME.is_dir(), reason="needs `npm install onnxruntime-web` in the repository's root")
def test_chromium_segments_as_python_does_and_sends_nothing(page, model, tmp_path):
    from playwright.sync_api import sync_playwright

    for name in FILES:
        shutil.copyfile(RUNTIME / "dist" / name, page / "runtime" / name)
    image = labelled_image(0, 4, 40, 56)["image"]
    image.save(tmp_path / "x.png")
    handler = partial(SimpleHTTPRequestHandler, directory=page)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    address, requests = f"http://127.0.0.1:{server.server_port}/", []
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
            tab = browser.new_page()
            tab.on("request", lambda request: requests.append(request.url))
            tab.goto(address)
            tab.get_by_text("Choose an image").wait_for(timeout=120_000)
            tab.set_input_files("#file", tmp_path / "x.png")
            tab.get_by_text("56 × 40 pixels").wait_for(timeout=60_000)
            width, height, values = tab.evaluate(COLOURS)
            legend = tab.locator("#legend li").all_inner_texts()
            outside = tab.evaluate("fetch('https://example.org').then(() => 'sent', () => 'refused')")
            browser.close()
    finally:
        server.shutdown()
    painted = np.array(values, np.uint8).reshape(height, width, 4)[..., :3]
    expected = segment_image(model, PROCESSOR, image)
    names, colours = class_legend(model.config.id2label)
    lines = class_borders(expected, 1)
    assert np.array_equal(painted[~lines], colours[expected][~lines]) and len(np.unique(expected)) > 1
    assert (painted[lines] == line_colors(colours[expected[lines]])).all()
    assert {line.rsplit(" ", 2)[0] for line in legend} == {names[index] for index in np.unique(expected)}
    assert outside == "refused" and all(url.startswith(address) for url in requests)
