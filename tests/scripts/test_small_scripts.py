"""Scripts for jobs, faults and kernels: headers for `uv run`, what they refuse, and the contrast as a kernel folder."""

from __future__ import annotations

import re
import sys

import kernel_folder
import pytest
import torch
from inject_faults import FAULTS, Faults, main
from kernels import get_local_kernel
from paths import ROOT

from afdcd_hf import __version__, omni_contrast

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


def test_a_mistyped_fault_is_refused_before_anything_is_trained_and_all_that_are_offered_are_there(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["inject_faults.py", "--only", "readonly"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "invalid choice: 'readonly'" in (said := capsys.readouterr().err) and "read_only" in said
    assert all(callable(getattr(Faults, name)) for name in FAULTS)


def test_the_kernel_folder_is_loaded_by_kernels_and_computes_what_the_package_does(tmp_path):
    folder = tmp_path / "contrast"
    kernel_folder.write(folder)
    kernel = get_local_kernel(folder, backend="cpu")
    student, teacher = torch.randn(2, 2, 32, 8, 12, generator=torch.Generator().manual_seed(0)).unbind()
    gradients = []
    for contrast in (omni_contrast, kernel.omni_contrast):
        own = student.clone().requires_grad_()
        loss = contrast(own, teacher, channel_groups=4, backend="torch")
        loss.backward()
        gradients.append((loss, own.grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    assert kernel.omni_contrast.__module__ not in ("afdcd_hf.ops.contrast", "ops.contrast")
    assert all((folder / "build" / f"torch-{backend}" / "metadata.json").is_file() for backend in ("cpu", "cuda"))


def test_a_kernel_folder_in_use_is_left_alone(tmp_path, monkeypatch, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["kernel_folder.py", str(tmp_path)])
    with pytest.raises(SystemExit) as ending:
        kernel_folder.main()
    assert ending.value.code == 1 and "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
