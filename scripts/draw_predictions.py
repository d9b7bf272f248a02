"""Draw what several saved networks see in the same images.

    python scripts/draw_predictions.py --dataset camvid --data-dir DATA/camvid --output predictions.png \
        --models teacher=runs/teacher "student alone=runs/alone" distilled=runs/distilled

Where a folder holds a results.json, its mean IoU stands under the title.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from afdcd_hf.pictures import draw_predictions


def main() -> None:
    """Parse the command line and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", required=True, metavar="TITLE=FOLDER")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--data-dir")
    parser.add_argument("--indices", type=int, nargs="+", default=[0, 25, 50, 75])
    parser.add_argument("--output", type=Path, default=Path("predictions.png"))
    args = parser.parse_args()
    models = dict(word.split("=", 1) for word in args.models)
    results = {title: Path(folder) / "results.json" for title, folder in models.items()}
    notes = {
        title: f"mIoU {100 * json.loads(path.read_text())['mean_iou']:.1f} %"
        for title, path in results.items()
        if path.is_file()
    }
    path = draw_predictions(
        models,
        args.output,
        dataset=args.dataset,
        split=args.split,
        data_dir=args.data_dir,
        indices=args.indices,
        notes=notes,
    )
    print(path)


if __name__ == "__main__":
    main()
