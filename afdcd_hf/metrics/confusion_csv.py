"""Confusion matrices as CSV files, for spreadsheets and pandas (`pandas.read_csv(path, index_col=0)`)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..atomic_io import atomic_write

_FORMULA = tuple("=+-@\t\r")  # first characters of what spreadsheets would compute as a formula


def check_confusion_matrix(matrix: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Return the matrix as `(K, K)` int64; ValueError unless it is square, of integers from 0 up, with K names."""
    counts, count = np.asarray(matrix), len(class_names)
    if counts.shape != (count, count) or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise ValueError(
            f"The confusion matrix has shape {counts.shape} and dtype {counts.dtype}, and {count} class names; "
            "pass (K, K) pixel counts, none negative, rows = truth, such as evaluate_segmenter's 'confusion_matrix'."
        )
    return counts.astype(np.int64)


def write_confusion_csv(matrix: np.ndarray, class_names: Sequence[str], path: str | Path) -> Path:
    """Write pixel counts with a header line of the predicted classes and the true class first in each line.

    A name that a spreadsheet would take for a formula gets a leading apostrophe, which `read_confusion_csv` removes. An
    existing file is replaced atomically. See `check_confusion_matrix` for matrix, names and errors.
    """
    counts, path = check_confusion_matrix(matrix, class_names), Path(path)
    names = [text_cell(name) for name in class_names]
    with atomic_write(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["truth \\ prediction", *names])
        writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
    return path


def text_cell(text: str) -> str:
    """Return the text as a CSV cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.lstrip("'").startswith(_FORMULA) else text


def read_confusion_csv(path: str | Path) -> tuple[np.ndarray, list[str]]:
    """Read what `write_confusion_csv` wrote: `(K, K)` int64 counts, rows = truth, and the K class names."""
    with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets add a byte order mark
        lines = [[_name_in(cell) for cell in line] for line in csv.reader(file) if line]
    try:
        (_, *names), *lines = lines
        if [name for name, *_ in lines] != names:
            raise ValueError("the lines do not have the header's names")
        return check_confusion_matrix(np.array([list(map(int, line[1:])) for line in lines]), names), names
    except ValueError as error:
        expected = "a header with the predicted classes, then a line for each: its name and whole numbers of pixels"
        raise ValueError(f"{path} is not a confusion matrix: expected {expected} ({error}).") from error


def _name_in(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA) else cell
