"""The headers with which `uv run` and `hf jobs uv run` start the scripts; that they do so is in docs/scaling_out.md."""

from __future__ import annotations

import re
import sys

import pytest
from paths import ROOT

from afdcd_hf import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.mark.parametrize("name", ["train", "distill"])
def test_a_script_names_the_wheel_of_this_version_by_a_path_that_holds_in_a_job_too(name):
    (header,) = re.findall(r"^# /// script\n(.*?)^# ///$", (ROOT / "scripts" / f"{name}.py").read_text(), re.M | re.S)
    found = tomllib.loads("".join(line[2:] for line in header.splitlines(keepends=True)))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (found["dependencies"], found["requires-python"]) == ([project["name"]], project["requires-python"])
    wheel = found["tool"]["uv"]["sources"][project["name"]]["path"]
    assert wheel == f"../dist/afdcd_hf-{__version__}-py3-none-any.whl"
    assert found["tool"]["hf-jobs"] == {"volumes": ["./dist:/dist"]}  # beside /data, where a job has its script
