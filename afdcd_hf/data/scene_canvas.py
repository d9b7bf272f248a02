"""The canvas of a generated scene: camera, light, and shapes whose colours and classes agree.

Positions are in metres: `x` to the right, `y` up from the ground, `z` ahead of the camera. Randomness comes only from
Python's `random()`, and floats only undergo sums, products, quotients and square roots, so that a seed gives the same
pixels on any platform.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Point = tuple[float, float]


class Label:
    """Class ids."""

    SKY, BUILDING, ROAD, SIDEWALK, TREE, POLE, CAR, PERSON = range(8)
    VOID = 255


class Chance(random.Random):
    """Random numbers, colours and noise."""

    def one_of(self, options: Sequence[Any]) -> Any:
        return options[int(self.random() * len(options))]

    def whole(self, low: int, high: int) -> int:
        """Draw a whole number from `low` up to and including `high`."""
        return low + int(self.random() * (high - low + 1))

    def colour(self, colours: Sequence[Colour]) -> Colour:
        """Draw one of `colours`, somewhat lighter or darker and tinted."""
        light = 14 * self.random() - 14
        red, green, blue = (max(0, int(value + light + 14 * self.random())) for value in self.one_of(colours))
        return red, green, blue

    def noise(self, height: int, width: int, channels: int) -> np.ndarray:
        """Draw (height, width, channels) float32 in [0, 1], each value independently."""
        drawn = np.frombuffer(self.randbytes(height * width * channels), np.uint8)
        return drawn.reshape(height, width, channels).astype(np.float32) / 255

    def smooth(self, height: int, width: int, cell: float, stretch: float = 1.0) -> np.ndarray:
        """Draw (height, width, 1) float32 in [0, 1], waves of about `cell` pixels, `stretch` times as wide as high."""
        rows, columns = max(2, round(height / cell)), max(2, round(width / (cell * stretch)))
        small = Image.frombytes("L", (columns, rows), self.randbytes(rows * columns))
        return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32)[..., None] / 255


@dataclass(frozen=True)
class Light:
    """Time of day and weather."""

    high: Colour  # of the sky above
    low: Colour  # of the sky at the horizon
    ambient: tuple[float, float, float]  # colour of the light
    haze: float  # how fast things fade into the low sky
    shadow: float  # how dark shadows are
    sunny: bool  # whether the sun casts them
    lit: float  # share of lit windows
    clouds: float  # their amount
    wet: float  # strength of reflections in the road


NOON = Light((96, 148, 214), (190, 210, 232), (1.06, 1.03, 0.97), 0.003, 0.45, True, 0.0, 0.5, 0.0)
OVERCAST = Light((182, 184, 188), (208, 210, 212), (0.9, 0.91, 0.93), 0.006, 0.25, False, 0.03, 0.6, 0.0)
RAIN = Light((150, 152, 158), (176, 178, 180), (0.78, 0.8, 0.84), 0.012, 0.2, False, 0.12, 0.8, 0.4)
DUSK = Light((96, 104, 150), (236, 172, 128), (0.8, 0.66, 0.62), 0.006, 0.35, True, 0.22, 0.8, 0.0)
NIGHT = Light((20, 24, 46), (66, 58, 70), (0.56, 0.54, 0.6), 0.005, 0.3, False, 0.42, 0.4, 0.3)
FOG = Light((186, 188, 190), (204, 204, 202), (0.88, 0.88, 0.88), 0.022, 0.2, False, 0.06, 0.2, 0.0)
LIGHTS = (NOON, NOON, NOON, NOON, OVERCAST, OVERCAST, RAIN, DUSK, NIGHT, FOG)


class Canvas:
    """Camera, light and painted shapes of a scene: at twice the size, each pixel holds a shape's number."""

    def __init__(self, chance: Chance, height: int, width: int) -> None:
        self.chance = chance
        self.height, self.width = 2 * height, 2 * width
        self.horizon = self.height * chance.uniform(0.4, 0.58)
        self.centre = self.width * chance.uniform(0.38, 0.62)
        self.focal = chance.uniform(1.25, 1.75) * min(self.height, self.width / 1.3)
        self.eye = chance.uniform(1.3, 2.2)
        self.bend = chance.uniform(-0.0028, 0.0028) if chance.random() < 0.5 else 0.0  # sideways, by bend * z * z
        self.light = chance.one_of(LIGHTS)
        self.sun = (chance.one_of((-1, 1)) * chance.uniform(0.3, 1.3), chance.uniform(-0.8, 0.8))  # shadow per metre
        self.looks: list[list[float]] = []  # red, green, blue, texture of each shape
        self.classes: list[int] = []
        self.shapes = Image.new("I", (self.width, self.height), self.ink(Label.SKY, self.light.low))
        self.shadows = Image.new("L", (width, height))
        self.pen, self.shadow_pen = ImageDraw.Draw(self.shapes), ImageDraw.Draw(self.shadows)

    def ink(
        self, class_id: int, colour: Colour, z: float = 0.0, gain: float = 1.0, grain: int = 0, glows: bool = False
    ) -> int:
        """Return a number to paint with: the colour in this light at z metres, with a texture of strength 0 to 255."""
        share = z * self.light.haze / (1 + z * self.light.haze)
        gain *= 1 - share
        ambient = (1.0, 1.0, 1.0) if glows else self.light.ambient
        seen = zip(ambient, colour, self.light.low, strict=True)
        self.looks.append([gain * own * value + share * low for own, value, low in seen] + [grain])
        self.classes.append(class_id)
        return len(self.classes) - 1

    def post(self, x: float, z: float) -> Point:
        """Return the column of a vertical line at (x, z), and the pixels per metre there."""
        z = max(z, 0.7)
        return self.centre + self.focal * (x / z + self.bend * z), self.focal / z

    def foot(self, x: float, z: float) -> tuple[float, float, float]:
        """Return column and row of a point on the ground, and the pixels per metre there."""
        column, scale = self.post(x, z)
        return column, self.horizon + scale * self.eye, scale

    def project(self, x: float, y: float, z: float) -> Point:
        column, scale = self.post(x, z)
        return column, self.horizon + scale * (self.eye - y)

    def panel(self, a: Point, b: Point, low: float, high: float, ink: int) -> None:
        """Paint an upright rectangle over the line on the ground from a to b, each (x, z)."""
        (xa, sa), (xb, sb), row, eye = self.post(*a), self.post(*b), self.horizon, self.eye
        foot, top = (row + sa * (eye - low), row + sb * (eye - low)), (row + sa * (eye - high), row + sb * (eye - high))
        self.pen.polygon(((xa, foot[0]), (xa, top[0]), (xb, top[1]), (xb, foot[1])), fill=ink)

    def disc(self, x: float, y: float, rx: float, ry: float, ink: int) -> None:
        self.pen.ellipse((x - rx, y - ry, x + rx, y + ry), fill=ink)

    def bar(self, x: float, top: float, bottom: float, width: float, ink: int) -> None:
        """Paint an upright rectangle around column x, at least two pixels wide: one pixel of the label."""
        left = round(x - width / 2)
        self.pen.rectangle((left, min(top, bottom), left + max(1, round(width) - 1), max(top, bottom)), fill=ink)

    def stroke(self, a: Point, b: Point, width: float, ink: int) -> None:
        self.pen.line((a, b), fill=ink, width=max(2, round(width)))

    def shade(self, outline: Sequence[Point]) -> None:
        """Paint a shadow on the ground with corners (x, z)."""
        corners = [self.project(x, 0, max(z, 1.0)) for x, z in outline]
        self.shadow_pen.polygon([(column / 2, row / 2) for column, row in corners], fill=255)

    def cast(self, x: float, z: float, half: float, height: float) -> None:
        """Paint the shadows under and behind an upright object, twice `half` wide."""
        self.shade(((x - half, z - half), (x - half, z + half), (x + half, z + half), (x + half, z - half)))
        if self.light.sunny:
            dx, dz = self.sun[0] * height, self.sun[1] * height
            self.shade(((x - half, z), (x + half, z + half), (x + dx + half, z + dz + half), (x + dx - half, z + dz)))

    def photograph(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the image, (H, W, 3) uint8, and the label, (H, W) uint8, at half the canvas's size."""
        shapes = np.asarray(self.shapes)
        label = halve_label(np.array(self.classes, np.uint8).take(shapes))
        # Red, green, blue and texture of a shape are looked up as one number, and averaged as the bands of an image.
        looks = np.array(self.looks).clip(0, 255).astype(np.uint8).view(np.uint32)[:, 0].take(shapes, mode="clip")
        bands = Image.frombuffer("CMYK", (self.width, self.height), looks.view(np.uint8), "raw", "CMYK", 0, 1)
        mean = np.asarray(bands.reduce(2), np.float32)
        height, width = label.shape
        chance = self.chance
        texture = chance.smooth(height, width, 1.3) + chance.smooth(height, width, 3) - 1
        image = mean[..., :3] * (1 + 0.6 / 255 * mean[..., 3:] * texture)
        self._light_ground(image, (label == Label.ROAD) | (label == Label.SIDEWALK))
        image = np.where((label == Label.SKY)[..., None], self._sky(height, width), image)
        if self.light.wet:  # mirror what is above the horizon in the road
            top = int(self.horizon / 2) + 1
            mirrored = image[np.maximum(2 * top - 2 - np.arange(top, height), 0)]
            image[top:] += self.light.wet * (label[top:] == Label.ROAD)[..., None] * (mirrored - image[top:])
        return self._expose(image), label

    def _light_ground(self, image: np.ndarray, ground: np.ndarray) -> None:
        """Apply shadows and haze to the ground, in place: they depend on the pixel, not on the shape."""
        top = int(self.horizon / 2) + 1
        rows = 2 * np.arange(top, len(image), dtype=np.float32)[:, None, None] + 1
        far = self.light.haze * np.minimum(self.focal * self.eye / (rows - self.horizon), 140)
        share = far / (1 + far)
        dark = np.asarray(self.shadows.filter(ImageFilter.BoxBlur(0.7)), np.float32)[top:, :, None] / 255
        lit = image[top:] * (1 - self.light.shadow * dark)
        lit += share * (np.array(self.light.low, np.float32) - lit)
        np.copyto(image[top:], lit, where=ground[top:, :, None])

    def _sky(self, height: int, width: int) -> np.ndarray:
        """Return the sky, (height, width, 3) float32: from the colour above to that at the horizon, with clouds."""
        high, low = np.array(self.light.high, np.float32), np.array(self.light.low, np.float32)
        down = np.minimum(2 * np.arange(height, dtype=np.float32) / np.float32(self.horizon), 1)[:, None, None]
        puffs = 0.65 * self.chance.smooth(height, width, height / 10, 2.5)
        puffs += 0.35 * self.chance.smooth(height, width, height / 30, 2)
        cover = np.clip(3 * (puffs - 0.7 + 0.4 * self.light.clouds), 0, 0.8)
        return high + (low - high) * down * down + cover * 0.5 * (250 * self.light.ambient[2] - high)

    def _expose(self, image: np.ndarray) -> np.ndarray:
        """Apply the blur, exposure, contrast, colour cast and noise of a random camera."""
        chance, (height, width, _) = self.chance, image.shape
        gain, contrast, strength = chance.uniform(0.82, 1.15), chance.uniform(0.85, 1.15), chance.uniform(2, 10)
        cast = np.array([gain * chance.uniform(0.93, 1.07) for _ in range(3)], np.float32)
        noise = chance.noise(height, width, 1) + chance.noise(height, width, 3) - 1
        blurred = Image.fromarray(image.clip(0, 255).astype(np.uint8))
        if chance.random() < 0.4:
            blurred = blurred.filter(ImageFilter.BoxBlur(chance.uniform(0.1, 0.4)))
        exposed = (np.asarray(blurred, np.float32) * cast - 118) * contrast + 118 + strength * noise
        return exposed.clip(0, 255).astype(np.uint8)


def halve_label(label: np.ndarray) -> np.ndarray:
    """Return the most common class of each 2 x 2 block; of two pairs the lower or right one, to keep thin lines."""
    a, b, c, d = label[::2, ::2], label[::2, 1::2], label[1::2, ::2], label[1::2, 1::2]
    return np.where((b == c) | (b == d), b, np.where(c == d, c, a))


def void_borders(label: np.ndarray) -> np.ndarray:
    """Ignore the pixels that touch a car or a person from outside, as if annotators had been unsure there."""
    thing = np.pad((label == Label.CAR) | (label == Label.PERSON), 1)
    near = thing[:-2, 1:-1] | thing[2:, 1:-1] | thing[1:-1, :-2] | thing[1:-1, 2:]
    return np.where(near & ~thing[1:-1, 1:-1], np.uint8(Label.VOID), label)
