"""The page itself, in Gradio."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch

from .examples import example_pictures
from .page import render_message, render_results
from .segmenters import Segmenter, load_segmenters
from .uploads import LONGEST_SIDE, read_upload

try:
    import gradio as gr
except ModuleNotFoundError as error:
    if error.name != "gradio":
        raise
    raise ModuleNotFoundError("The demo needs Gradio: pip install 'afdcd-hf[demo]'", name="gradio") from error

logger = logging.getLogger(__name__)

STYLE = Path(__file__).with_name("style.css")
TITLE = "Semantic segmentation, side by side"
_OPACITY = 60  # percent; the same in style.css
_SET_OPACITY = "(percent) => document.documentElement.style.setProperty('--afdcd-opacity', percent / 100)"
_LARGEST_FILE = "50mb"
_REMEMBERED = 16  # results, of about a megabyte each, so that examples are there at once
_FONTS = ["Inter", "ui-sans-serif", "system-ui", "sans-serif"]  # of the visitor's machine: none is fetched


def build_app(
    models: Mapping[str, str | Path],
    examples: Sequence[str | Path] = (),
    *,
    device: str | torch.device | None = None,
    longest_side: int = LONGEST_SIDE,
) -> gr.Blocks:
    """The page, with its networks loaded and its first example segmented.

    Args:
        models: Title -> folder or Hub id.
        examples: Pictures to offer, the first of which the page opens with; generated street scenes if there is none.
        device: Where to run; by default a GPU where there is one.
        longest_side: Larger pictures are shrunk to this many pixels.

    Raises:
        ValueError: If there is no model, weights are missing, an example is no picture, or `longest_side` is below 1.
        OSError: If a model or an example does not exist.
    """
    if longest_side < 1:
        raise ValueError(f"longest_side={longest_side}: pictures need at least one pixel.")
    examples = example_pictures(examples)
    segmenters = load_segmenters(models, device)
    show = _shower(segmenters, longest_side)
    for segmenter in segmenters:  # the very first run is slower than all others: it is not the one to show
        segmenter(read_upload(examples[0], longest_side)[0])
    first = show(str(examples[0]))
    with gr.Blocks(title=TITLE, analytics_enabled=False) as app:
        gr.HTML(_heading(segmenters), elem_classes="afdcd-block")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                picture = gr.Image(str(examples[0]), label="Your picture", height=260, sources=["upload", "clipboard"])
                gr.Examples([[str(path)] for path in examples], picture, label="Examples")
            with gr.Column(scale=3, min_width=320):
                opacity = gr.Slider(0, 100, _OPACITY, step=1, label="Opacity of the colours (%)")
                results = gr.HTML(first, elem_id="afdcd-results", elem_classes="afdcd-block")
        # preprocess=False: Gradio would answer a file that is no picture with "Error", and nothing else
        picture.change(
            lambda file: show(file and file["path"]), picture, results, preprocess=False, api_visibility="private"
        )
        opacity.change(None, opacity, None, js=_SET_OPACITY)
    return app


def launch_demo(
    models: Mapping[str, str | Path],
    examples: Sequence[str | Path] = (),
    *,
    device: str | torch.device | None = None,
    longest_side: int = LONGEST_SIDE,
    port: int | None = None,
    share: bool = False,
    block: bool = True,
) -> tuple[gr.Blocks, str]:
    """Serve the page; to this machine alone unless the environment (as on a Space) or `share` says otherwise.

    Args:
        models: As `build_app` takes them, and so the next three.
        examples: Pictures to offer.
        device: Where to run.
        longest_side: Larger pictures are shrunk.
        port: By default the first free one from 7860 on.
        share: Also make a public link through Gradio's servers.
        block: Return when the server ends (Ctrl-C); otherwise at once.

    Returns:
        The app, whose `close()` ends the server, and its address.

    Raises:
        ValueError, OSError: As `build_app`; OSError also if the port is taken.
    """
    app = build_app(models, examples, device=device, longest_side=longest_side)
    address = _launch(app, port, share)
    logger.info("The page is at %s (Ctrl-C ends it).", address)
    if app.share_url:
        logger.info("Public, for a week: %s", app.share_url)
    if block:
        app.block_thread()
    return app, address


def _launch(app: gr.Blocks, port: int | None, share: bool) -> str:
    try:
        _, address, _ = app.queue(max_size=20).launch(
            server_port=port,
            share=share,
            css=STYLE.read_text(encoding="utf-8"),
            theme=gr.themes.Default(primary_hue="teal", font=_FONTS, font_mono=["ui-monospace", "monospace"]),
            footer_links=["gradio", "settings"],
            max_file_size=_LARGEST_FILE,
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        if "empty port" not in str(error):
            raise
        raise OSError(f"Port {port or 'from 7860 on'} is taken: give another one, or leave it out.") from error
    return address


def _shower(segmenters: Sequence[Segmenter], longest_side: int) -> Callable[[str | None], str]:
    """What happens to a picture: its path in, HTML out."""

    @lru_cache(maxsize=_REMEMBERED)  # Gradio's paths hold a hash of the content: the same path is the same picture
    def show(path: str | None) -> str:
        if path is None:
            return render_message("Upload a picture, or choose an example.")
        try:
            picture, size = read_upload(path, longest_side)
        except ValueError as error:
            return render_message(str(error))
        return render_results(picture, size, segmenters, [segment(picture) for segment in segmenters])

    return show


def _heading(segmenters: Sequence[Segmenter]) -> str:
    networks = "a network sees" if len(segmenters) == 1 else f"{len(segmenters)} networks see"
    return (
        f'<div class="afdcd-heading"><h1>{TITLE}</h1><p>Upload a picture or choose an example: what {networks} in it, '
        "how much of it each class takes, and how long that took. A page of afdcd_hf, which trains small networks by "
        'distillation (<a href="https://arxiv.org/abs/2312.04168">Af-DCD</a>).</p></div>'
    )
