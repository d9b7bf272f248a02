"""A fixture for the figure that a plotting function writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """`draw(plot, *args, **options)` calls a plotting function and returns the figure instead of the file."""

    def call(plot, *args, **options) -> Figure:
        with monkeypatch.context() as patch:
            figures = []
            patch.setattr(Figure, "savefig", lambda self, part, **_: (figures.append(self), Path(part).touch()))
            plot(*args, path=tmp_path / "figure.png", **options)
        return figures[0]

    return call
