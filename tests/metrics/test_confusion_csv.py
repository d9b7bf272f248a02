"""Confusion matrices as CSV: what a reader finds, what survives, and which files are refused."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from afdcd_hf.metrics.confusion_csv import read_confusion_csv, write_confusion_csv

MATRIX = np.array([[90, 9, 1], [4, 2**62, 1], [0, 0, 0]])
FORMULAS = ["=cmd|' /C calc'!A0", "+1", "-road", "@SUM(A1)", "'=quoted", "'plain'", "\tcar"]


def test_the_csv_holds_the_counts_under_a_header_and_pandas_reads_it(tmp_path):
    import pandas

    path = write_confusion_csv(MATRIX, ["road", 'a "bus", or so', "Straße"], tmp_path / "new" / "confusion.csv")
    first, second, *_ = path.read_text(encoding="utf-8").splitlines()
    assert first == 'truth \\ prediction,road,"a ""bus"", or so",Straße' and second == "road,90,9,1"
    table = pandas.read_csv(path, index_col=0)
    assert table.loc["road", "Straße"] == 1 and table.to_numpy().tolist() == MATRIX.tolist()


@pytest.mark.parametrize("names", [["wall, brick", "two\nlines", "bus"], FORMULAS])
def test_counts_and_names_survive_and_no_cell_is_a_formula_to_a_spreadsheet(names, tmp_path):
    matrix = MATRIX if len(names) == 3 else np.eye(7, dtype=int)
    path = write_confusion_csv(matrix, names, tmp_path / "a.csv")
    with open(path, newline="") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    # as a spreadsheet saves it: a byte order mark, other line ends
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    for one in (path, tmp_path / "b.csv"):
        counts, read_names = read_confusion_csv(one)
        assert counts.dtype == np.int64 and counts.tolist() == matrix.tolist() and read_names == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 columns"),
        ("truth,a,b\na,1,2\n", "2 columns and 1 lines"),
        ("truth,a,b\na,1,2\nc,3,4\n", "line 3.*'c'.*'b'"),
        ("truth,a,b\na,1\nb,3,4\n", "line 2.*1 numbers.*2 whole"),
        ("truth,a,b\na,1,x\nb,3,4\n", "line 2.*'x'"),
        ("truth,a,b\na,1,-2\nb,3,4\n", "-2 pixels"),
    ],
)
def test_a_csv_that_is_no_confusion_matrix_is_refused_by_line(text, message, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_confusion_csv(tmp_path / "a.csv")


def test_an_odd_matrix_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="float64"):
        write_confusion_csv(MATRIX / 2, ["road", "car", "bus"], tmp_path / "new" / "a.csv")
    assert not list(tmp_path.iterdir())
