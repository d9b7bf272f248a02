"""Atomic writes, folder locks, and YAML and JSON files that were edited, truncated or replaced."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time

import pytest

from afdcd_hf.atomic_io import atomic_write, check_can_write
from afdcd_hf.folder_lock import LOCK_NAME, lock_folder
from afdcd_hf.structured_files import parse_yaml, read_json, read_yaml

# Atomic writes


def test_a_failure_leaves_the_old_file_and_no_partial_one(tmp_path):
    (tmp_path / "x.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "x.txt") as part:
        assert part.name.startswith(".") and part.suffix == ".part"
        part.write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"] and (tmp_path / "x.txt").read_text() == "old"


@pytest.mark.parametrize("names_the_part", [False, True])
def test_a_full_disk_is_reported_with_the_requested_path(tmp_path, names_the_part):
    with pytest.raises(OSError, match=r"No space left on device; it cannot be written: .*x\.txt") as failure:
        with atomic_write(tmp_path / "new" / "x.txt") as part:
            raise OSError(errno.ENOSPC, "No space left on device", str(part) if names_the_part else None)
    assert failure.value.errno == errno.ENOSPC and ".part" not in str(failure.value)


def test_errors_about_other_files_and_of_other_kinds_pass_unchanged(tmp_path):
    for error in (FileNotFoundError(2, "No such file", "other"), OSError("truncated")):
        with pytest.raises(OSError) as raised, atomic_write(tmp_path / "x.txt"):
            raise error
        assert raised.value is error


def test_an_unwritable_path_is_reported_before_the_work(tmp_path):
    check_can_write(tmp_path / "new" / "x.txt")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="file is a file; give a folder"):
        check_can_write(tmp_path / "file" / "x.txt")
    with pytest.raises(OSError, match=r"cannot be written: .*file/a/x\.txt"):
        check_can_write(tmp_path / "file" / "a" / "x.txt")


# One writer at a time

HOLD = "import sys, time; from afdcd_hf.folder_lock import lock_folder\nwith lock_folder(sys.argv[1]):\n"
PRINT_AND_WAIT = HOLD + "    print('held', flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder's lock."""
    process = subprocess.Popen([sys.executable, "-c", PRINT_AND_WAIT, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_folder_locked_by_another_process_is_rejected_until_that_process_is_gone(tmp_path, holder):
    with pytest.raises(FileExistsError, match=r"still writing to .*: wait for it.* give another --output_dir\."):
        with lock_folder(tmp_path):
            pass
    holder.kill()
    holder.wait()
    with lock_folder(tmp_path):
        assert (tmp_path / LOCK_NAME).is_file()
    assert not list(tmp_path.iterdir())


def test_nothing_but_output_is_left_behind_and_the_holder_may_lock_again(tmp_path):
    with lock_folder(tmp_path / "new" / "run"):
        pass
    assert not (tmp_path / "new" / "run").exists()
    with lock_folder(tmp_path / "run") as first, lock_folder(tmp_path / "run") as second:
        assert first == second
        (tmp_path / "run" / "file").write_text("mine")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("passed_on", [True, False])
def test_forked_children_release_the_lock_and_started_commands_keep_it(tmp_path, passed_on):
    """The process that held the lock has died; a child of it is still running."""
    start = "subprocess.Popen(['sleep', '2'], pass_fds=[lock])" if passed_on else "time.sleep(0.5 if os.fork() else 3)"
    code = "import os, subprocess, sys, time; from afdcd_hf.folder_lock import lock_folder\n"
    code += f"with lock_folder(sys.argv[1]) as lock:\n    {start}\n    os._exit(0)"
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    if passed_on:
        with pytest.raises(FileExistsError), lock_folder(tmp_path):
            pass
        time.sleep(2.5)
    with lock_folder(tmp_path):
        pass


# YAML and JSON

WORDS = {
    "2e-6": 2e-6, "1E-2": 0.01, "40": 40, "40_000": 40_000, ".5": 0.5, "5.": 5.0, "0": 0, "-1": -1, "0x1F": 31,
    "resnet18e": "resnet18e", "1.2.3": "1.2.3", "no": "no", "yes": "yes", "off": "off", "true": True, "false": False,
    "2026-01-01": "2026-01-01", "1:30": "1:30", "~": None, "null": None, "": None, "'010'": "010", '"2"': "2",
    "[5e-1, 1.0]": [0.5, 1.0], "{kd: {weight: 1e-1}}": {"kd": {"weight": 0.1}},
}  # fmt: skip


@pytest.mark.parametrize("written", WORDS)
def test_unquoted_words_mean_what_people_expect(written):
    value = parse_yaml(f"a: {written}")["a"]
    assert value == WORDS[written] and type(value) is type(WORDS[written])
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}"  # an anchor's keys are merged and may be overridden
    assert parse_yaml(text) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
BROKEN = {
    "broken": ("a: [1", "line 1: expected ',' or ']'"),
    "a list": ("- a\n- b", "not a list"),
    "nothing": ("", "not a NoneType"),
    "a key twice": ("a: 1\nb: 2\na: 3", "line 3: the key 'a' appears twice"),
    "a key twice inside": ("a: {b: 1, b: 2}", "the key 'b' appears twice"),
    "leading zero": ("max_steps: 010", "010 can mean an octal or a decimal number"),
    "a tag": ("a: !!python/name:os.system x", "could not determine a constructor"),
    "repeats itself": ("a: &a [*a]", "20 levels of nesting"),
    "a billion laughs": (LAUGHS, "more than 10,000 values"),
    "deep": ("a: " + "[" * 5_000, "20 levels of nesting"),
    "many keys": ("".join(f"k{i}: 1\n" for i in range(11_000)), "more than 10,000 values"),
    "digits": ("a: " + "1" * 5000, "digits"),
    "large": ("#" * 2**19, "larger than 256 KiB"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_file_that_is_not_a_recipe_is_an_immediate_one_line_error_that_names_it(tmp_path, what):
    text, message = BROKEN[what]
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    start = time.process_time()  # CPU time: the machine may be busy
    with pytest.raises(ValueError, match=f"mine.yaml .*{message}") as error:
        read_yaml(path)
    assert "\n" not in str(error.value) and time.process_time() - start < 10


def test_binary_files_and_json_of_another_type_are_errors_that_name_the_file(tmp_path):
    (tmp_path / "a.json").write_bytes(b"a: \xff\xfe")
    for read in (read_yaml, lambda path: read_json(path, "facts")):
        with pytest.raises(ValueError, match="a.json .*is not valid"):
            read(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[1]")
    assert read_json(tmp_path / "a.json", "rows", list) == [1]
    with pytest.raises(ValueError, match=r"a.json \(facts\) must hold an object, but holds list"):
        read_json(tmp_path / "a.json", "facts")
