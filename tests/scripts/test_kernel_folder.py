"""The contrast as a folder for the `kernels` library, loaded from disk beside the package."""

import sys

import kernel_folder
import pytest
import torch
from kernels import get_local_kernel

from afdcd_hf import omni_contrast


def test_the_folder_is_loaded_by_kernels_and_computes_what_the_package_does(tmp_path):
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


def test_a_folder_in_use_is_left_alone(tmp_path, monkeypatch, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["kernel_folder.py", str(tmp_path)])
    with pytest.raises(SystemExit) as ending:
        kernel_folder.main()
    assert ending.value.code == 1 and "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
