"""The colour rule of Pascal VOC, which gives each of 256 ids a colour of its own."""

from __future__ import annotations

from .row import RGB


def voc_colour(index: int) -> RGB:
    """VOC's colour of an id 0..255.

    The id's bits are dealt to red, green and blue in turn, the lowest ones to the channels' highest bits: 1 is
    (128, 0, 0), 2 is (0, 128, 0), 15 is (192, 128, 128).
    """
    channels = [0, 0, 0]
    for place in range(8):
        channels[place % 3] |= ((index >> place) & 1) << (7 - place // 3)
    return channels[0], channels[1], channels[2]
