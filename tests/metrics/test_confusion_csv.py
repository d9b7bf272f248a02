"""Confusion matrices as CSV: what a reader finds, what survives, and which files are refused."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from afdcd_hf.metrics.confusion_csv import read_confusion_csv, write_confusion_csv

NAMES = ["road", "car", "bus"]
MATRIX = np.array([[90, 9, 1], [4, 15, 1], [0, 0, 0]])


def test_the_csv_holds_the_counts_under_a_header_and_pandas_reads_it(tmp_path):
    import pandas

    path = write_confusion_csv(MATRIX, ["road", 'a "bus", or so', "Straße"], tmp_path / "new" / "confusion.csv")
    first, second, *_ = path.read_text(encoding="utf-8").splitlines()
    assert first == 'truth \\ prediction,road,"a ""bus"", or so",Straße' and second == "road,90,9,1"
    table = pandas.read_csv(path, index_col=0)
    assert table.loc["road", "Straße"] == 1 and table.to_numpy().tolist() == MATRIX.tolist()


def test_counts_beyond_32_bits_and_odd_names_survive_the_round_trip(tmp_path):
    matrix, names = np.array([[2**62, 0], [1, 2]]), ["wall, brick", "two\nlines"]
    counts, read_names = read_confusion_csv(write_confusion_csv(matrix, names, tmp_path / "a.csv"))
    assert counts.dtype == np.int64 and counts.tolist() == matrix.tolist() and read_names == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 lines"),
        ("truth,a,b\na,1,2\n", "2 lines and 3 columns"),
        ("truth,a,b\na,1,2\nc,3,4\n", "line 3.*'c'.*'b'"),
        ("truth,a,b\na,1\nb,3,4\n", "line 2.*1 numbers.*2 whole"),
        ("truth,a,b\na,1,x\nb,3,4\n", "line 2.*'x'"),
        ("truth,a,b\na,1,-2\nb,3,4\n", "-2 pixels of 'a' as 'b'"),
    ],
)
def test_a_csv_that_is_no_confusion_matrix_is_refused_by_line(text, message, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_confusion_csv(tmp_path / "a.csv")


def test_a_spreadsheets_byte_order_mark_and_line_ends_are_no_part_of_the_table(tmp_path):
    write_confusion_csv(MATRIX, NAMES, tmp_path / "a.csv")
    text = (tmp_path / "a.csv").read_text()
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read_confusion_csv(tmp_path / "b.csv")[1] == NAMES


def test_an_odd_matrix_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="float64"):
        write_confusion_csv(MATRIX / 2, NAMES, tmp_path / "new" / "a.csv")
    assert not list(tmp_path.iterdir())


def test_names_that_a_spreadsheet_would_compute_are_text_and_come_back_as_they_were(tmp_path):
    names = ["=cmd|' /C calc'!A0", "+1", "-road", "@SUM(A1)", "'=quoted", "'plain'", "\tcar"]
    path = write_confusion_csv(np.eye(7, dtype=int), names, tmp_path / "a.csv")
    with open(path, newline="") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert read_confusion_csv(path)[1] == names
