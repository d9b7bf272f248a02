# /// script
# requires-python = ">=3.10"
# dependencies = ["afdcd-hf"]
#
# [tool.uv.sources]  # from `uv build --wheel`; the package is not on PyPI
# afdcd-hf = { path = "../dist/afdcd_hf-0.1.0-py3-none-any.whl" }
#
# [tool.hf-jobs]  # a job has the script in /data, so the path above resolves to /dist
# volumes = ["./dist:/dist"]
# ///
"""`afdcd train` as a script, with the same arguments: for `accelerate launch`, `torchrun` and `hf jobs uv run`."""

import sys

from afdcd_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
