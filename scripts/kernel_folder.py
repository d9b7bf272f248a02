"""Write the contrast as a kernel repository for the `kernels` library: Python sources, and a C file for CPUs.

    python scripts/kernel_folder.py runs/contrast_kernel
    >>> from kernels import get_local_kernel
    >>> get_local_kernel("runs/contrast_kernel").omni_contrast(student, teacher)

The sources are those of `afdcd_hf/ops`. They do not depend on the package or the system, so there is nothing to build
(`torch-noarch`), and the variants for CPU and CUDA are identical copies.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "afdcd-contrast"
MODULE = "afdcd_contrast"
BACKENDS = ("cpu", "cuda")

BUILD = f"""[general]
name = "{NAME}"
version = 1
license = "Apache-2.0"
backends = [{", ".join(f'"{backend}"' for backend in BACKENDS)}]

[torch-noarch]
"""

CARD = """---
library_name: kernels
license: apache-2.0
tags: [kernels, knowledge-distillation, semantic-segmentation]
---

# Contrastive loss of dense features, in constant memory

The contrastive terms of Af-DCD (Fan et al., NeurIPS 2023, arXiv 2312.04168): `omni_contrast`, `spatial_contrast` and
`channel_contrast` of a student's and a teacher's feature map `(B, C, H, W)`, with gradients for the student's. Triton
kernels on CUDA, a C kernel (compiled on first use) on CPUs, PyTorch elsewhere; no distance matrix is stored.

```python
import torch
from kernels import get_kernel

contrast = get_kernel("REPO", trust_remote_code=True)
student, teacher = torch.randn(2, 2, 64, 16, 32).unbind()
print(contrast.omni_contrast(student, teacher, patch_size=4, channel_groups=16))
```
"""


def sources() -> dict[str, str]:
    """Return file name -> content, self-contained: includes the module that `ops` imports from the package."""
    ops = ROOT / "afdcd_hf" / "ops"
    found = {path.name: path.read_text(encoding="utf-8") for path in sorted(ops.iterdir()) if path.is_file()}
    found["atomic_io.py"] = (ROOT / "afdcd_hf" / "atomic_io.py").read_text(encoding="utf-8")
    # operators can be registered only once per process, and the package may be imported too
    return {
        name: text.replace("from ..atomic_io", "from .atomic_io").replace('"afdcd::', f'"{MODULE}::')
        for name, text in found.items()
    }


def write(folder: Path) -> None:
    """Write the repository into a new folder.

    Raises:
        FileExistsError: the folder is not empty.
        RuntimeError: the sources import modules of the package that are not copied.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: give a new folder.")
    files = sources()
    if strays := [name for name, text in files.items() if "from .." in text or "import afdcd_hf" in text]:
        raise RuntimeError(f"{', '.join(strays)} in afdcd_hf/ops imports from the rest of the package: copy that too.")
    places = [folder / "torch-ext" / MODULE, *(folder / "build" / f"torch-{backend}" for backend in BACKENDS)]
    for place in places:
        place.mkdir(parents=True)
        for name, text in files.items():
            (place / name).write_text(text, encoding="utf-8")
    for backend, place in zip(BACKENDS, places[1:], strict=True):
        facts = {"name": NAME, "id": f"_{MODULE}_1", "version": 1, "license": "apache-2.0", "python-depends": []}
        facts["backend"] = {"type": backend}
        (place / "metadata.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (folder / "build.toml").write_text(BUILD, encoding="utf-8")
    (folder / "README.md").write_text(CARD, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write, new or empty")
    folder = parser.parse_args().folder
    try:
        write(folder)
    except (OSError, RuntimeError) as error:
        parser.exit(1, f"kernel_folder.py: {error}\n")
    print(f"written: {folder}; upload it with `hf upload you/{NAME} {folder} --type kernel`")


if __name__ == "__main__":
    main()
