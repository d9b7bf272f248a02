"""`afdcd train`, `distill`, `quickstart`, `recipes` and `compare`."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import Field, fields
from functools import partial
from pathlib import Path
from typing import Any

from .command import add_command, hide_loading_bars, integer

# shown by `--help`; `--help_all` lists the rest
_COMMON_OPTIONS = (
    "model", "backbone", "pretrained_backbone", "output_stride", "head", "teacher", "dataset", "data_dir",
    "class_names", "label_map", "crop_size", "max_train_samples", "output_dir", "resume_from_checkpoint",
    "max_steps", "total_batch_size", "learning_rate", "eval_strategy", "eval_steps", "save_steps", "seed",
    "use_cpu", "bf16", "loss",
)  # fmt: skip


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file."""
    new = partial(add_command, commands)
    for name, distils, text, teacher in (
        ("train", False, "train a model on the labels alone (teachers, baselines)", ""),
        ("distill", True, "train a student with a teacher's help", " --teacher runs/teacher"),
    ):
        text += "; options come from the recipe or the command line, which wins: --max_steps 100, --kd.weight 1"
        example, hint = f"--config quickstart{teacher} --output_dir runs/mine", "--resume_from_checkpoint last"
        options = {"open_ended": True, "on_interruption": f"{hint} continues from the last checkpoint"}
        command = new(name, text, "--config RECIPE [--OPTION VALUE ...]", None, example, add_help=False, **options)
        command.add("--config", metavar="RECIPE", help="name of a recipe (`afdcd recipes`) or a YAML file")
        command.add_argument("-h", "--help", action="store_true", help="show the most common options")
        command.flag("--help_all", "show all options, including those of transformers")
        command.run = partial(_run, command.format_help, distils)

    text = "train a teacher, a student alone and a distilled student on generated scenes; takes minutes on a CPU"
    continues = {"old": {"--output": "--output_dir"}, "on_interruption": "run the same command again to continue"}
    command = new("quickstart", text, "[options]", _quickstart, "", **continues)
    command.add("--output_dir", default="runs/quickstart", help="folder for the three runs")
    command.add("--seed", type=integer(0, 2**32 - 1), default=0, help="seed of initialisation, order and augmentation")

    command = new("recipes", "list the recipes, or print one", "[NAME]", _recipes, "quickstart")
    command.add_argument("name", nargs="?", help="recipe to print")
    command.flag("--json", "print names, or the recipe's values, as JSON", dest="as_json")

    text = (
        "train several methods with the same budget and seeds, and tabulate scores and cost; other options "
        "(--data_dir D, --teacher T, --total_batch_size 8 ...) override keys of the plan for all runs, but not those "
        "that a method, tuning or teacher_recipe sets itself. A second call "
        "with the same --output_dir continues where the first stopped"
    )
    example = "--config scenes --seeds 0 1"
    command = new("compare", text, "--config PLAN [options]", _compare, example, open_ended=True, **continues)
    command.add("--config", metavar="PLAN", help="name of a bundled plan (see --list) or a YAML file")
    command.add("--output_dir", help="folder for runs, table and charts (default runs/compare_PLAN)")
    command.add("--seeds", type=integer(0, 2**32 - 1), nargs="+", help="seeds to use instead of the plan's")
    command.add("--methods", nargs="+", help="run only these methods of the plan")
    command.add("--merge", metavar="DIR", nargs="+", help="train nothing; report on the runs of several machines")
    command.flag("--list", "list the bundled plans", dest="list_plans")
    command.flag("--json", "print one row per run as JSON instead of the table", dest="as_json")
    command.flag("--dry_run", "check the plan and its data, and list the runs")


def _run(usage: Any, distils: bool, rest: list[str], config: str | None, help: bool, help_all: bool) -> None:
    if help or help_all:
        print(usage())
        _show_options(distils, help_all)
        return
    from ..recipes import load_recipe
    from ..training.recipe_arguments import merge_arguments, training_part

    recipe = load_recipe(config) if config else {}  # most mistakes are found here, before torch is imported
    merge_arguments(recipe if distils else training_part(recipe), rest, distils=distils)
    from ..training.runs import distill, train

    hide_loading_bars()
    run = (distill if distils else train)(config, rest)
    if run.card is not None:  # set on the main process only
        measured, dataset = run.card.measured, run.card.dataset
        assert measured is not None and dataset is not None  # every finished run is scored
        where = f"{dataset.name} {dataset.split} ({measured.num_images} images)"
        print(f"mIoU {100 * measured.mean_iou:.2f} % on {where}, from the saved weights")
        print(f"saved in {run.folder}")


def _show_options(distils: bool, show_all: bool) -> None:
    from ..training import options

    kinds: list[Any] = [options.ModelArguments, options.DataArguments, options.SegmentationOptions]
    kinds += [options.TeacherArguments, options.DistillationOptions] if distils else []
    for kind in kinds:
        print(_format_options(kind, (field for field in fields(kind) if show_all or field.name in _COMMON_OPTIONS)))
    if show_all:
        from transformers import TrainingArguments

        from ..training.training_args import WITHOUT_EFFECT

        hidden = {field.name for field in fields(options.SegmentationOptions)} | WITHOUT_EFFECT
        print(_format_options(TrainingArguments, (f for f in fields(TrainingArguments) if f.name not in hidden)))


def _format_options(kind: type, options: Iterable[Field]) -> str:
    """Format one entry per option, under the first line of the dataclass's docstring."""
    lines = [(kind.__doc__ or "").strip().splitlines()[0].rstrip(".") + ":"]
    for field in options:
        default = field.default_factory() if callable(field.default_factory) else field.default
        text = field.metadata.get("help", "")
        if default is not None:
            text += f" (default {' '.join(map(str, default)) if isinstance(default, list) else default})"
        lines += textwrap.wrap(text, 110, initial_indent=f"  --{field.name:<27} ", subsequent_indent=" " * 32)
    return "\n".join(lines) + "\n"


def _quickstart(output_dir: str, seed: int) -> None:
    from ..training.quickstart import quickstart

    hide_loading_bars()
    quickstart(output_dir, seed)


def _recipes(name: str | None, as_json: bool) -> None:
    from ..recipes import list_recipes, load_recipe, recipe_path

    if as_json:
        print(json.dumps(load_recipe(name) if name else list_recipes(), indent=2))
    else:
        print(recipe_path(name).read_text() if name else "\n".join(list_recipes()))


def _compare(
    rest: list[str], config: str | None, output_dir: str | None, seeds: list[int] | None, methods: list[str] | None,
    merge: list[str] | None, list_plans: bool, as_json: bool, dry_run: bool,
) -> None:  # fmt: skip
    from ..recipes import list_comparisons

    if list_plans:
        print("\n".join(list_comparisons()))
        return
    if config is None:
        raise ValueError(f"Give --config PLAN: a YAML file, or one of {', '.join(list_comparisons())}.")
    from ..training.recipe_arguments import read_value, words_by_option

    overrides = {key: read_value(key, words) for key, words in words_by_option(rest).items()}
    from ..compare.comparison import check_data, check_plan, merge_comparisons, run_comparison
    from ..compare.plan import load_plan
    from ..compare.table import TABLE_NAME

    hide_loading_bars()
    plan = load_plan(config, overrides).narrowed(methods, seeds)
    plan.check_overrides(overrides)
    output = Path(output_dir or f"runs/compare_{Path(config).stem}{'_merged' if merge else ''}")
    if dry_run:
        check_plan(plan, output)
        check_data(plan)
        print(plan.summary())
        return
    outcome = None
    if merge:
        merge_comparisons(plan, merge, output)
    else:
        outcome = run_comparison(plan, output, lambda line: print(line, file=sys.stderr, flush=True))
    if as_json:
        with (output / "results.csv").open(encoding="utf-8", newline="") as file:
            print(json.dumps(list(csv.DictReader(file)), indent=2))
    else:
        print((output / TABLE_NAME).read_text(encoding="utf-8"), end="")
        print(f"\nTable, results.csv, charts{'' if merge else ' and all runs'} are in {output}.")
    if outcome is not None and outcome.failed:
        failed = "\n".join(f"{place}:\n{lines}" for place, lines in outcome.failed.items())
        raise ValueError(f"{len(outcome.failed)} runs failed; run the same command again to retry them.\n{failed}")
