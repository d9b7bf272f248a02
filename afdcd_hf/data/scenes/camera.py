"""What our own car and camera add: the bonnet, reflections, lamp light, blur, exposure, noise, and labels to match."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .canvas import CAR, PERSON, ROAD, VOID, Canvas
from .chance import URBAN, between, pick, smooth_noise


def paint_bonnet(canvas: Canvas, rng: np.random.Generator) -> None:
    """The front of our own car at the lower edge, which data sets ignore."""
    view, colour = canvas.view, pick(rng, URBAN)
    top = view.height * between(rng, 0.91, 0.96)
    width, lift = view.width, 0.35 * (view.height - top)
    body = [(0, view.height), (0, top + 2 * lift), (0.2 * width, top + 0.5 * lift), (0.5 * width, top),
            (0.8 * width, top + 0.5 * lift), (width, top + 2 * lift), (width, view.height)]  # fmt: skip
    canvas.shape(body, canvas.light.shine(colour, 0, 0.7), VOID, 5)
    shine = [(x, y + 0.5 * (view.height - y)) for x, y in body]
    canvas.shape(shine, canvas.light.shine(colour, 0, 0.9))


def shrink_label(label: np.ndarray) -> np.ndarray:
    """The commonest class of each 2 x 2 block; of two pairs the lower or right one, so that thin lines survive."""
    a, b, c, d = label[::2, ::2], label[::2, 1::2], label[1::2, ::2], label[1::2, 1::2]
    return np.where((b == c) | (b == d), b, np.where(c == d, c, a))


def void_borders(label: np.ndarray) -> np.ndarray:
    """Ignore the pixels that touch a car or a person from outside, as where annotators were unsure."""
    thing = (label == CAR) | (label == PERSON)
    near = np.zeros_like(thing)
    near[:, 1:] |= thing[:, :-1]
    near[:, :-1] |= thing[:, 1:]
    near[1:] |= thing[:-1]
    near[:-1] |= thing[1:]
    return np.where(near & ~thing, np.uint8(VOID), label)


def photograph(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Texture, reflections and lamp light, then half the size with blur, colour cast and noise."""
    view = canvas.view
    picture = np.asarray(canvas.image, np.float32)
    grain = np.asarray(canvas.grain, np.float32) * np.float32(1 / 255)
    texture = 0.6 * smooth_noise(rng, view.height, view.width, 1.6) + 0.6 * smooth_noise(
        rng, view.height, view.width, 5
    )
    picture = picture * (1 + grain * (texture - 0.6))[..., None]
    if canvas.light.wet:
        _reflect(canvas, picture)
    if canvas.glows:
        picture += _glow(canvas)
    image = Image.fromarray(picture.clip(0, 255).astype(np.uint8)).reduce(2)
    blur = between(rng, -0.3, 0.7)
    if blur > 0.2:
        image = image.filter(ImageFilter.BoxBlur(0.5 * blur))
    return _expose(rng, np.asarray(image, np.float32))


def _reflect(canvas: Canvas, picture: np.ndarray) -> None:
    """Mirror what is above the horizon in the wet road, in place."""
    height, horizon = canvas.view.height, int(canvas.view.horizon)
    rows = np.arange(horizon + 1, height)
    source = np.clip(2 * horizon - rows, 0, height - 1)
    road = (np.asarray(canvas.label)[horizon + 1 :] == ROAD)[..., None]
    picture[horizon + 1 :] += canvas.light.wet * road * (picture[source] - picture[horizon + 1 :])


def _glow(canvas: Canvas) -> np.ndarray:
    """Light around lamps, (height, width, 3) float32."""
    size = (max(1, canvas.view.width // 4), max(1, canvas.view.height // 4))
    layer = Image.new("RGB", size)
    pen = ImageDraw.Draw(layer)
    for x, y, radius, colour in canvas.glows:
        x, y, radius = x / 4, y / 4, min(radius / 4, 9) + 0.5
        pen.ellipse((round(x - radius), round(y - radius), round(x + radius), round(y + radius)), fill=colour)
    soft = layer.filter(ImageFilter.BoxBlur(2)).filter(ImageFilter.BoxBlur(2))
    soft = soft.resize((canvas.view.width, canvas.view.height), Image.Resampling.BILINEAR)
    return 0.5 * np.asarray(soft, np.float32)


def _expose(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Exposure, contrast, colour cast and sensor noise of a random camera; returns uint8."""
    gain, contrast = between(rng, 0.82, 1.15), between(rng, 0.85, 1.15)
    cast = (0.93 + 0.14 * rng.random(3)).astype(np.float32) * np.float32(gain)
    strength = np.float32(between(rng, 1, 5))
    noise = rng.standard_normal(picture.shape[:2], dtype=np.float32)[..., None]
    speckle = rng.random(picture.shape, dtype=np.float32) - np.float32(0.5)
    picture = (picture * cast - 118) * np.float32(contrast) + 118
    return (picture + strength * (noise + speckle)).clip(0, 255).astype(np.uint8)
