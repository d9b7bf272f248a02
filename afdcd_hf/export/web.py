"""A static page that runs a model in the browser, with onnxruntime-web."""

from __future__ import annotations

import html
import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torch import nn

from ..atomic_io import atomic_folder
from ..charts.label_maps import line_colors
from ..inference.graphs import load_segmenter
from ..inference.predictions import class_legend
from .onnx import ParityRow, class_names, export_onnx, format_parity

LOCAL = Path("node_modules", "onnxruntime-web")  # where `npm install onnxruntime-web` puts it
CDN = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/"  # the version with which the page was tested
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def export_web(
    model: nn.Module,
    processor: Any,
    output: str | Path,
    *,
    title: str,
    runtime: str | Path | None = None,
    size: tuple[int, int] | None = None,
    **options: Any,
) -> tuple[list[ParityRow], str | None]:
    """Write a folder that any static web server can serve: `index.html`, `model.onnx`, and the runtime if copied.

    The page segments a chosen image or the camera stream. Preprocessing and argmax are within the graph; the
    browser resizes.

    Args:
        model, processor: segmenter and its image processor, as in `export_onnx`.
        output: folder to write; it must not exist.
        title: of the page.
        runtime: folder of the npm package onnxruntime-web, whose files are copied, or the https address of its
            `dist/`, from which the page then loads them. None: `node_modules/onnxruntime-web` if it exists, else `CDN`.
        size: height and width to which images are resized; None for the processor's size, if it resizes.
        options: `opset` and `fp16` of `export_onnx`, whose errors are raised too.

    Returns:
        The parity check's result, and the address from which the page loads the runtime, or None if it was copied.

    Raises:
        ValueError: a processor that does not resize to a fixed size, or a runtime that is neither folder nor address.
        OSError: the folder exists, or cannot be written.
    """
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"{output} exists; give another --web.")
    if size is None and processor.do_resize:
        sides = dict(processor.size)
        if set(sides) != {"height", "width"}:
            raise ValueError(f"The image processor resizes to {sides}: fix the page's size with --size HEIGHT WIDTH.")
        size = sides["height"], sides["width"]
    source, address = _find_runtime(runtime)
    names, colours = class_legend(class_names(model))
    rows_of_page = zip(names, colours.tolist(), line_colors(colours).tolist(), strict=True)
    classes = [{"name": name, "colour": colour, "line": [line] * 3} for name, colour, [line] in rows_of_page]
    values = {
        "TITLE": html.escape(title),
        "RUNTIME": address or "./runtime/",
        "ORIGIN": "{0.scheme}://{0.netloc}".format(urlsplit(address)) if address else "",
        "PAGE": json.dumps({"classes": classes, "size": size}).replace("<", "\\u003c"),
    }
    page = files(__package__).joinpath("web_page", "index.html").read_text(encoding="utf-8")
    for key, value in values.items():
        page = page.replace(f"@{key}@", value)
    with atomic_folder(output) as part:
        graph = {"upsample": True, "argmax": True, "with_preprocessing": True, "size": size, **options}
        rows = export_onnx(model, processor, part / "model.onnx", **graph)
        (part / "index.html").write_text(page, encoding="utf-8")
        if source is not None:
            (part / "runtime").mkdir()
            for name in FILES:
                shutil.copyfile(source / name, part / "runtime" / name)
    return rows, address


def export_saved_page(model: str, output: Path, onnxruntime_web: str | None = None, **options: Any) -> str:
    """Export a saved model as a page (see `export_web`) and return a message about it."""
    segmenter, processor = load_segmenter(model)
    title = Path(model).resolve().name if Path(model).exists() else model
    rows, address = export_web(segmenter, processor, output, title=title, runtime=onnxruntime_web, **options)
    runtime = f"the runtime is loaded from {address}" if address else "the runtime is in the folder"
    return (
        f"PyTorch and ONNX, same input:\n{format_parity(rows)}\nwritten: {output}; {runtime}. Try it with\n"
        f"  python3 -m http.server --directory {output}\nand http://localhost:8000, or copy it to any web server"
    )


def _find_runtime(runtime: str | Path | None) -> tuple[Path | None, str | None]:
    """Find the folder from which to copy the runtime, or the address from which to load it."""
    if runtime is None:
        runtime = LOCAL if LOCAL.is_dir() else CDN
    if str(runtime).startswith("https://"):
        return None, str(runtime).rstrip("/") + "/"
    folder = Path(runtime, "dist")
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        wanted = f"the folder that `npm install onnxruntime-web` created, or an https:// address such as {CDN}"
        raise ValueError(f"There is no {missing[0]} in {folder}: give --onnxruntime_web {wanted}")
    return folder, None
