"""The web page, in Gradio."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..charts.label_maps import class_borders, line_colors
from .segmenters import LONGEST_SIDE, example_images, load_segmenters, read_upload, share_table

try:
    import gradio as gr
except ModuleNotFoundError as error:
    if error.name != "gradio":
        raise
    raise ModuleNotFoundError("The demo needs Gradio: pip install 'gradio>=6' 'pillow<13'", name="gradio") from error

logger = logging.getLogger(__name__)

TITLE = "Semantic segmentation, side by side"
_FONTS = ["Inter", "ui-sans-serif", "system-ui", "sans-serif"]  # fonts of the visitor's machine; none is downloaded


def build_app(
    models: Mapping[str, str | Path],
    examples: Sequence[str | Path] = (),
    *,
    device: str | torch.device | None = None,
    longest_side: int = LONGEST_SIDE,
) -> gr.Blocks:
    """Build the page, with its models loaded and its first example segmented.

    Args:
        models: title -> folder or Hub id.
        examples: images to offer; the page opens with the first one. Generated street scenes if empty.
        device: device to run on; by default a GPU if there is one.
        longest_side: larger images are shrunk to this many pixels.

    Raises:
        ValueError: no model is given, weights are missing, an example cannot be read, or `longest_side` is below 1.
        OSError: a model does not exist.
    """
    if longest_side < 1:
        raise ValueError(f"longest_side={longest_side}: images need at least one pixel.")
    examples = example_images(examples)
    segmenters = load_segmenters(models, device)

    def show(file: str) -> list[Any]:
        try:
            image, original = read_upload(file, longest_side)
        except ValueError as error:
            raise gr.Error(str(error)) from error
        panes: list[Any] = []
        maps, times = [], []
        for segmenter in segmenters:
            label_map, seconds = segmenter(image)
            lined, lines = np.array(image), class_borders(label_map, max(1, round(min(image.size) / 300)))
            lined[lines] = line_colors(segmenter.colors[label_map[lines]])
            masks = [((label_map == index) & ~lines, segmenter.classes[index]) for index in np.unique(label_map)]
            panes.append((lined, masks))
            maps.append(label_map)
            times.append(f"{_escaped(segmenter.title)} {1000 * seconds:.0f} ms")
        shrunk = f" (shrunk from {original[0]} × {original[1]})" if original != image.size else ""
        size = f"{image.size[0]} × {image.size[1]} pixels{shrunk}"
        note = f"Segmented at {size}. From image to label map: {', '.join(times)}."
        return [*panes, note, share_table(segmenters, maps)]

    show(str(examples[0]))  # warm-up: the first pass is slower than the others, so its time is not shown
    first = show(str(examples[0]))
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as app:  # uploads: one hour
        gr.Markdown(f"## {TITLE}\nUpload an image or choose an example. [afdcd_hf](https://arxiv.org/abs/2312.04168)")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                image = gr.Image(str(examples[0]), label="Your image", height=200, sources=["upload", "clipboard"])
                gr.Examples([[str(path)] for path in examples], image, label="Examples")
            with gr.Column(scale=3, min_width=320):
                panes = []
                for segmenter, value in zip(segmenters, first, strict=False):
                    named = zip(segmenter.classes, segmenter.colors, strict=True)
                    colors = {name: "#{:02x}{:02x}{:02x}".format(*color) for name, color in named}
                    panes.append(gr.AnnotatedImage(value, label=segmenter.title, color_map=colors))
                    # below the image, since a long label would cover its top
                    gr.Markdown(_escaped(f"{segmenter.title}: {segmenter.facts}"))
                note = gr.Markdown(first[-2])
                headers = ["class, share of pixels", *(segmenter.title for segmenter in segmenters)]
                table = gr.Dataframe(first[-1], headers=headers, interactive=False)
        # preprocess=False: for a file that is not an image, Gradio would show only "Error"
        image.change(
            lambda file: show(file["path"]) if file else [gr.skip()] * (len(panes) + 2),
            image, [*panes, note, table], preprocess=False, api_visibility="private",
        )  # fmt: skip
    return app


def _escaped(text: str) -> str:
    """Encode text as HTML entities, so that Gradio does not interpret a title as Markdown or HTML."""
    return "".join(f"&#{ord(one)};" for one in text)


def launch_demo(
    models: Mapping[str, str | Path],
    examples: Sequence[str | Path] = (),
    *,
    device: str | torch.device | None = None,
    longest_side: int = LONGEST_SIDE,
    port: int | None = None,
    share: bool = False,
) -> None:
    """Serve the page until Ctrl-C, to this machine only unless the environment (a Space's) or `share` says otherwise.

    Args:
        models, examples, device, longest_side: as in `build_app`, whose errors are raised too.
        port: by default the first free one from 7860 on; an OSError if it is taken.
        share: also create a public link through Gradio's servers.
    """
    app = build_app(models, examples, device=device, longest_side=longest_side)
    theme = gr.themes.Default(primary_hue="teal", font=_FONTS, font_mono=["ui-monospace", "monospace"])
    try:
        _, address, _ = app.queue(max_size=20).launch(
            server_port=port, share=share, theme=theme, footer_links=["gradio", "settings"], max_file_size="50mb",
            ssr_mode=False, quiet=True, prevent_thread_lock=True,
        )  # fmt: skip
    except OSError as error:
        if "empty port" not in str(error):
            raise
        raise OSError(f"Port {port or 'from 7860 on'} is taken: give another one, or leave it out.") from error
    logger.info("The page is at %s (stop with Ctrl-C).", address)
    if app.share_url:
        logger.info("Public link, for a week: %s", app.share_url)
    app.block_thread()
