"""Several distillation methods on the same budget and seeds: the same as `afdcd compare`.

python scripts/compare.py --config scenes --output_dir runs/compare_scenes
"""

import sys

from afdcd_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
