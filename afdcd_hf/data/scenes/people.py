"""People: legs, body, arms and head, and what they wear or carry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .canvas import PERSON, Canvas, Colour
from .chance import URBAN, pick

HAIRS = ((34, 28, 26), (88, 60, 40), (176, 142, 92), (150, 150, 150), (150, 44, 40))


@dataclass(frozen=True)
class Person:
    """Somebody `height` metres tall; `stride` (-1 to 1) is how far the legs are apart, 0 when standing."""

    x: float
    z: float
    height: float
    stride: float
    top: Colour
    legs: Colour
    skin: Colour
    hair: Colour
    wear: str  # "plain", "coat", "bag" or "umbrella"


def paint_person(canvas: Canvas, rng: np.random.Generator, person: Person) -> None:
    """Legs, body, arms and head, and what is worn or carried."""
    column, ground, scale = canvas.view.foot(person.x, person.z)
    tall = person.height * scale
    top, legs, skin, hair = (
        canvas.light.shine(colour, person.z) for colour in (person.top, person.legs, person.skin, person.hair)
    )
    hip, neck, half = ground - 0.48 * tall, ground - 0.84 * tall, 0.125 * tall
    for sign in (-1, 1):
        foot = column + sign * (0.05 + 0.13 * abs(person.stride)) * tall
        thigh = column + sign * 0.05 * tall
        canvas.shape([(thigh - 0.055 * tall, hip), (thigh + 0.055 * tall, hip), (foot + 0.045 * tall, ground),
                      (foot - 0.045 * tall, ground)], legs, PERSON, 20)  # fmt: skip
        hand = (column + sign * (0.15 + 0.06 * abs(person.stride)) * tall, hip + 0.02 * tall)
        canvas.stroke((column + sign * 0.1 * tall, neck + 0.04 * tall), hand, 0.065 * tall, top, PERSON)
    hem = hip + (0.2 * tall if person.wear == "coat" else 0.02 * tall)
    flare = 1.15 if person.wear == "coat" else 0.8
    canvas.shape([(column - half, neck), (column + half, neck), (column + flare * half, hem),
                  (column - flare * half, hem)], top, PERSON, 30)  # fmt: skip
    head = 0.068 * tall
    canvas.disc(column, neck - 1.05 * head, 0.85 * head, 1.15 * head, skin, PERSON)
    canvas.disc(column, neck - 1.7 * head, 0.85 * head, 0.6 * head, hair, PERSON)
    if person.wear in ("bag", "umbrella"):
        _paint_carried(canvas, rng, person, (column, neck, half, tall))


def _paint_carried(canvas: Canvas, rng: np.random.Generator, person: Person, body: tuple) -> None:
    column, neck, half, tall = body
    colour = canvas.light.shine(pick(rng, URBAN), person.z)
    side = 1 if person.stride >= 0 else -1
    if person.wear == "bag":
        canvas.disc(column - side * half, neck + 0.16 * tall, 0.08 * tall, 0.13 * tall, colour, PERSON)
        return
    rim, width = neck - 0.16 * tall, 0.32 * tall
    canvas.stroke((column + side * half, neck + 0.2 * tall), (column + side * half, rim), 1, colour, PERSON)
    middle = column + side * 0.5 * half
    canvas.shape([(middle - width, rim), (middle - 0.6 * width, rim - 0.1 * tall), (middle, rim - 0.15 * tall),
                  (middle + 0.6 * width, rim - 0.1 * tall), (middle + width, rim)], colour, PERSON)  # fmt: skip
