"""The notebook from data to the Hub, run from its first cell to its last."""

from __future__ import annotations

import pytest
from paths import DOCS

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")


def test_the_notebook_runs_and_is_kept_without_outputs(tmp_path):
    notebook = nbformat.read(DOCS / "from_data_to_hub.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.text for cell in cells for output in cell.outputs if output.output_type == "stream")
    assert "% mIoU**, measured on scenes, split val (a part of it: 8 images)" in printed
    assert "bytes  model.safetensors" in printed and "bytes  predictions.png" in printed
    pictures = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2  # an image of the data, and what the models see
