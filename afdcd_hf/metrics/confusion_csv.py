"""Confusion matrices as CSV files, for spreadsheets and pandas (`pandas.read_csv(path, index_col=0)`)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..atomic_io import written_whole

_FORMULA = tuple("=+-@\t\r")  # what spreadsheets take for the beginning of a formula, and would compute


def check_confusion_matrix(matrix: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """The matrix as `(K, K)` int64.

    Raises:
        ValueError: If it is not square, not of integers or holds negative ones, or if there are not K class names.
    """
    counts = np.asarray(matrix)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(
            f"The confusion matrix has shape {counts.shape} and dtype {counts.dtype}; pass (K, K) pixel counts, rows = "
            "truth, such as evaluate_segmenter's 'confusion_matrix'."
        )
    if len(class_names) != len(counts):
        raise ValueError(f"{len(class_names)} class names came with a confusion matrix of {len(counts)} classes.")
    if (counts < 0).any():
        raise ValueError(f"The confusion matrix counts {counts.min()} pixels somewhere; counts cannot be negative.")
    return counts.astype(np.int64)


def write_confusion_csv(matrix: np.ndarray, class_names: Sequence[str], path: str | Path) -> Path:
    """Writes pixel counts with a header line of the predicted classes and the true class first in each line.

    A name that a spreadsheet would take for a formula gets an apostrophe in front, which `read_confusion_csv` removes.
    An existing file is replaced, in one step. See `check_confusion_matrix` for matrix, names and errors.
    """
    counts, path = check_confusion_matrix(matrix, class_names), Path(path)
    names = [text_cell(name) for name in class_names]
    with written_whole(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["truth \\ prediction", *names])
        writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
    return path


def text_cell(text: str) -> str:
    """The text as a CSV cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.lstrip("'").startswith(_FORMULA) else text


def read_confusion_csv(path: str | Path) -> tuple[np.ndarray, list[str]]:
    """Reads what `write_confusion_csv` wrote: `(K, K)` int64 counts, rows = truth, and the K class names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such table; the message names the line.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets put a byte order mark in front
        header, *lines = [[_name_in(cell) for cell in line] for line in csv.reader(file) if line] or [[]]
    names = header[1:]
    if not names or len(lines) != len(names):
        raise ValueError(
            f"{path} has {len(names)} columns and {len(lines)} lines of counts; expected a header with the predicted "
            "classes, then one line for each class in the same order, its name first."
        )
    counts = []
    for number, (name, line) in enumerate(zip(names, lines, strict=True), 2):
        try:
            if line[0] != name or len(line) != len(names) + 1:
                raise ValueError(f"{line[0]!r} and {len(line) - 1} numbers")
            counts.append([int(cell) for cell in line[1:]])
        except ValueError as error:
            expected = f"expected the class {name!r}, as in the header, and {len(names)} whole numbers of pixels"
            raise ValueError(f"{path}, line {number}: {error}; {expected}.") from error
    return check_confusion_matrix(np.array(counts, np.int64), names), names


def _name_in(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA) else cell
