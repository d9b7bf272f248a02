"""YAML and JSON that someone has edited, cut short or replaced."""

from __future__ import annotations

import time

import pytest

from afdcd_hf.structured_files import parse_yaml, read_json, read_yaml

WORDS = {
    "2e-6": 2e-6, "1E-2": 0.01, "40": 40, "40_000": 40_000, ".5": 0.5, "5.": 5.0, "0": 0, "-1": -1, "0x1F": 31,
    "resnet18e": "resnet18e", "1.2.3": "1.2.3", "no": "no", "yes": "yes", "off": "off", "true": True, "false": False,
    "2026-01-01": "2026-01-01", "1:30": "1:30", "~": None, "null": None, "": None, "'010'": "010", '"2"': "2",
    "[5e-1, 1.0]": [0.5, 1.0], "{kd: {weight: 1e-1}}": {"kd": {"weight": 0.1}},
}  # fmt: skip


@pytest.mark.parametrize("written", WORDS)
def test_words_mean_what_people_mean(written):
    value = parse_yaml(f"a: {written}")["a"]
    assert value == WORDS[written] and type(value) is type(WORDS[written])


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
BROKEN = {
    "broken": ("a: [1", "line 1: expected ',' or ']'"),
    "a list": ("- a\n- b", "not a list"),
    "nothing": ("", "not a NoneType"),
    "a word": ("word", "not a str"),
    "a key twice": ("a: 1\nb: 2\na: 3", "line 3: the key 'a' stands twice"),
    "a key twice inside": ("a: {b: 1, b: 2}", "the key 'b' stands twice"),
    "leading zero": ("max_steps: 010", "010 can mean an octal or a decimal number"),
    "a list as a key": ("? [1, 2]\n: 3", "unhashable"),
    "a tag": ("a: !!python/name:os.system x", "could not determine a constructor"),
    "repeats itself": ("a: &a [*a]", "20 levels of nesting"),
    "unknown alias": ("a: *b", "undefined alias"),
    "a billion laughs": (LAUGHS, "more than 10,000 values"),
    "deep": ("a: " + "[" * 5_000, "20 levels of nesting"),
    "many keys": ("".join(f"k{i}: 1\n" for i in range(11_000)), "more than 10,000 values"),
    "control characters": ("a: \0", "special characters are not allowed"),
    "digits": ("a: " + "1" * 5000, "digits"),
    "large": ("#" * 2**19, "larger than 256 KiB"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_file_that_is_no_recipe_is_an_error_in_one_line_that_names_it_at_once(tmp_path, what):
    text, message = BROKEN[what]
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=f"mine.yaml .*{message}") as error:
        read_yaml(path)
    assert "\n" not in str(error.value) and time.perf_counter() - start < 10


def test_keys_of_an_anchor_are_merged_and_may_be_replaced():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}"
    assert parse_yaml(text) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}


def test_bytes_that_are_no_text_are_an_error_that_names_the_file(tmp_path):
    (tmp_path / "a").write_bytes(b"a: \xff\xfe")
    for read in (read_yaml, lambda path: read_json(path, "facts")):
        with pytest.raises(ValueError, match="a .*is not valid"):
            read(tmp_path / "a")


def test_json_of_another_type_is_an_error_that_says_so(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    assert read_json(tmp_path / "a.json", "rows", list) == [1]
    with pytest.raises(ValueError, match=r"a.json \(facts\) must hold an object, but holds list"):
        read_json(tmp_path / "a.json", "facts")
