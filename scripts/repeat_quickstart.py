"""Run the quickstart with several seeds and print mean and standard deviation of each model's mean IoU.

    python scripts/repeat_quickstart.py --seeds 0 1 2 --output runs/quickstart-seeds

Finished seeds are kept: a second call continues where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from afdcd_hf.cost.machine import library_versions, machine_name
from afdcd_hf.training.quickstart import TITLES, quickstart


def main() -> None:
    """Parse the command line, run what is missing, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart-seeds"))
    args = parser.parse_args()
    for seed in args.seeds:
        if not (args.output / f"seed-{seed}" / "distilled" / "predictions.png").is_file():
            quickstart(args.output / f"seed-{seed}", seed)
    scores = {name: [_mean_iou(args.output / f"seed-{seed}" / name) for seed in args.seeds] for name in TITLES}
    table = _table(scores, args.seeds)
    summary = {"mean_iou": scores, "seeds": args.seeds, "machine": machine_name(), "versions": library_versions()}
    (args.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print("\n" + table)


def _mean_iou(folder: Path) -> float:
    return json.loads((folder / "results.json").read_text())["mean_iou"]


def _table(scores: dict[str, list[float]], seeds: list[int]) -> str:
    lines = [f"{'model':<22}" + "".join(f"{f'seed {seed}':>10}" for seed in seeds) + f"{'mean ± std':>18}"]
    gains = [distilled - alone for distilled, alone in zip(scores["distilled"], scores["student-alone"], strict=True)]
    rows = [*((TITLES[name], values) for name, values in scores.items()), ("gain of distillation", gains)]
    for title, values in rows:
        percent = [100 * value for value in values]
        spread = statistics.stdev(percent) if len(percent) > 1 else float("nan")
        lines.append(
            f"{title:<22}"
            + "".join(f"{value:>10.2f}" for value in percent)
            + f"{f'{statistics.mean(percent):.2f} ± {spread:.2f}':>18}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
