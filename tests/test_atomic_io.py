"""Files whole or not at all, and errors that name them."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from afdcd_hf.atomic_io import check_can_write, written_whole


def test_a_failure_leaves_the_old_file_and_no_part(tmp_path):
    (tmp_path / "x.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt), written_whole(tmp_path / "x.txt") as part:
        assert part.name.startswith(".") and part.suffix == ".part"
        part.write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"] and (tmp_path / "x.txt").read_text() == "old"


@pytest.mark.parametrize("names_the_part", [False, True])
def test_a_full_disk_is_told_with_the_path_that_was_asked_for(tmp_path, names_the_part):
    with pytest.raises(OSError, match=r"No space left on device; it cannot be written: .*x\.txt") as failure:
        with written_whole(tmp_path / "new" / "x.txt") as part:
            raise OSError(errno.ENOSPC, "No space left on device", str(part) if names_the_part else None)
    assert failure.value.errno == errno.ENOSPC and ".part" not in str(failure.value)


def test_errors_about_other_files_and_of_other_kinds_pass_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError, match="other"), written_whole(tmp_path / "x.txt"):
        open(tmp_path / "other")
    with pytest.raises(OSError, match="^truncated$"), written_whole(tmp_path / "x.txt"):
        raise OSError("truncated")


def test_a_place_that_cannot_be_written_is_named_before_the_work(tmp_path):
    check_can_write(tmp_path / "new" / "x.txt")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written: .*x.txt|file"):
        check_can_write(tmp_path / "file" / "x.txt")
    with pytest.raises(OSError, match=r"/proc/no/x.txt|/proc/no"):
        check_can_write(Path("/proc/no/x.txt"))
