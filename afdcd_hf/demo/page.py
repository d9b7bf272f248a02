"""What the page shows of a picture, as HTML: a pane for each network, and a table of the classes.

Photo and class colours lie one above the other, and the browser mixes them: the slider needs no server.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from ..charts.label_maps import draw_overlay
from .segmenters import Segmentation, Segmenter

Pair = tuple[Segmenter, Segmentation]
_SHOWN = 0.0005  # a smaller share would read 0.0 %


def render_results(
    picture: Image.Image,
    original_size: tuple[int, int],
    segmenters: Sequence[Segmenter],
    segmentations: Sequence[Segmentation],
) -> str:
    """The page's part about one picture.

    Args:
        picture: What was segmented, RGB.
        original_size: (width, height) before it was shrunk.
        segmenters: The networks.
        segmentations: What each made of the picture, in the same order.

    Returns:
        HTML that stands for itself: pictures are part of it. Names are escaped.
    """
    photo = _data_uri(picture, "JPEG", quality=90)
    pairs = list(zip(segmenters, segmentations, strict=True))
    panes = "".join(_pane(one, result, picture, photo) for one, result in pairs)
    tables = "".join(_table(group) for group in _by_classes(pairs))
    note = _note(picture.size, original_size, pairs)
    return f'<div class="afdcd-panes">{panes}</div><p class="afdcd-note">{note}</p>{tables}'


def render_message(text: str) -> str:
    """A message in the place of the results; `text` is escaped."""
    return f'<p class="afdcd-message" role="alert">{escape(text)}</p>'


def milliseconds(seconds: float) -> str:
    """A duration as the page writes it: `8.3 ms`, `214 ms`, `1,204 ms`."""
    value = 1000 * seconds
    return f"{value:.1f} ms" if value < 10 else f"{value:,.0f} ms"


def _pane(segmenter: Segmenter, result: Segmentation, picture: Image.Image, photo: str) -> str:
    colored = Image.fromarray(draw_overlay(picture, result.label_map, segmenter.colors, opacity=1.0))
    title = escape(segmenter.title)
    return (
        '<figure class="afdcd-pane"><figcaption>'
        f'<span class="afdcd-title">{title}</span><span class="afdcd-time">{milliseconds(result.seconds)}</span>'
        f'<span class="afdcd-facts">{_unbroken(escape(segmenter.facts))}</span></figcaption>'
        f'<div class="afdcd-layers"><img src="{photo}" alt="The picture">'
        f'<img class="afdcd-colors" src="{_data_uri(colored, "PNG")}" alt="Classes that {title} sees"></div></figure>'
    )


def _note(size: tuple[int, int], original: tuple[int, int], pairs: Sequence[Pair]) -> str:
    device = next(pairs[0][0].network.parameters()).device.type
    runs = "the shorter of two runs" if all(result.runs == 2 for _, result in pairs) else "of one or two runs"
    shrunk = f" (shrunk from {original[0]} × {original[1]})" if size != original else ""
    return (
        f"Segmented at {size[0]} × {size[1]} pixels{shrunk}. Time: from picture to label map on the server's "
        f"{'GPU' if device == 'cuda' else device.upper()}, {runs}."
    )


def _by_classes(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Networks of the same classes and colours share a table."""
    groups: dict[tuple, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault((pair[0].classes, pair[0].colors.tobytes()), []).append(pair)
    return list(groups.values())


def _table(group: Sequence[Pair]) -> str:
    first = group[0][0]
    shares = np.stack([result.shares(len(first.classes)) for _, result in group])  # (networks, K)
    shown = [index for index in np.argsort(-shares.mean(0), kind="stable") if shares[:, index].max() >= _SHOWN]
    rows = "".join(_row(first.classes[index], first.colors[index], shares[:, index]) for index in shown)
    heads = "".join(f"<th>{escape(segmenter.title)}</th>" for segmenter, _ in group)
    absent = [escape(name) for index, name in enumerate(first.classes) if index not in shown]
    lines = [_agreement(group), f"Not seen: {_listed(absent)}." if absent else ""]
    return (
        '<div class="afdcd-scroll"><table class="afdcd-table"><thead><tr><th>Class, share of pixels</th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
        f'<p class="afdcd-note">{" ".join(filter(None, lines))}</p>'
    )


def _row(name: str, color: np.ndarray, shares: np.ndarray) -> str:
    swatch = "#{:02x}{:02x}{:02x}".format(*color)
    cells = "".join(
        f'<td style="--share:{100 * share:.1f}%;--color:{swatch}"><span>{_percent(share)}</span></td>'
        for share in shares
    )
    label = f'<span class="afdcd-class"><i style="background:{swatch}"></i>{escape(name)}</span>'
    return f'<tr><th scope="row">{label}</th>{cells}</tr>'


def _percent(share: float) -> str:
    if share == 0:
        return "–"
    return f"{100 * share:.1f} %" if share >= _SHOWN else "&lt; 0.1 %"


def _agreement(group: Sequence[Pair]) -> str:
    if len(group) < 2:
        return ""
    maps = np.stack([result.label_map for _, result in group])
    who = "Both" if len(group) == 2 else f"All {len(group)}"
    return f"{who} give {100 * (maps == maps[0]).all(0).mean():.1f} % of the pixels the same class."


def _unbroken(text: str) -> str:
    """No line ends between a number and its unit, or the score and its number."""
    return re.sub(r"(?<=\d) (?=[M%])|(?<=mIoU) ", "\N{NO-BREAK SPACE}", text)


def _listed(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _data_uri(picture: Image.Image, kind: str, **options) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
