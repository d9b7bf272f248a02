"""`afdcd train`, `distill`, `quickstart` and `recipes`."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import Field, fields
from functools import partial
from typing import Any

from .command import add, add_command, flag, hide_loading_bars, whole

# what `--help` shows; `--help_all` has the rest
_OFTEN = (
    "model", "backbone", "pretrained_backbone", "output_stride", "head", "teacher", "dataset", "data_dir",
    "class_names", "label_map", "crop_size", "max_train_samples", "output_dir", "resume_from_checkpoint",
    "max_steps", "total_batch_size", "learning_rate", "eval_strategy", "eval_steps", "save_steps", "seed",
    "use_cpu", "bf16", "loss",
)  # fmt: skip


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file."""
    for name, distils, text, teacher in (
        ("train", False, "train a model on the labels alone (teachers, baselines)", ""),
        ("distill", True, "train a student with a teacher's help", " --teacher runs/teacher"),
    ):
        more = (
            "every option can stand in the recipe or on the command line, which wins: --max_steps 100, "
            "--af_dcd.feature_weight 1e-5"
        )
        example = f"afdcd {name} --config quickstart{teacher} --output_dir runs/mine"
        command = add_command(
            commands, name, f"{text}; {more}", "--config RECIPE [--OPTION VALUE ...]", example=example, add_help=False
        )
        add(command, "--config", metavar="RECIPE", help="name of a recipe (`afdcd recipes`) or a YAML file")
        command.add_argument("-h", "--help", action="store_true", help="show the options used most")
        flag(command, "--help_all", "show all options, transformers' own included")
        on_interruption = "--resume_from_checkpoint last continues from the last checkpoint"
        command.set_defaults(
            run=partial(_run, distils=distils),
            takes_recipe_options=True,
            on_interruption=on_interruption,
            parser=command,
        )

    text = "train a teacher, a student alone and a distilled student on generated scenes; takes minutes on a CPU"
    old = {"--output": "--output_dir"}
    command = add_command(commands, "quickstart", text, "[options]", example="afdcd quickstart", old=old)
    add(command, "--output_dir", default="runs/quickstart", help="folder for the three runs")
    add(command, "--seed", type=whole(0, 2**32 - 1), default=0, help="of initialisation, order and augmentation")
    command.set_defaults(run=_quickstart, on_interruption="a second call continues")

    command = add_command(
        commands, "recipes", "list the recipes, or print one", "[NAME]", example="afdcd recipes quickstart"
    )
    command.add_argument("name", nargs="?", help="recipe to print")
    flag(command, "--json", "print names, or the recipe's values, as JSON")
    command.set_defaults(run=_recipes)


def _run(args: argparse.Namespace, rest: list[str], *, distils: bool) -> None:
    if args.help or args.help_all:
        _show_options(args, distils)
        return
    _check_early(args.config, rest, distils=distils)
    from ..training.runs import distill, train

    hide_loading_bars()
    run = (distill if distils else train)(args.config, rest)
    if run.card is not None:  # its facts are there on the main process only
        measured, dataset = run.card.measured, run.card.dataset
        assert measured is not None and dataset is not None  # a finished run has been scored
        where = f"{dataset.name} {dataset.split} ({measured.num_images} images)"
        print(f"mIoU {100 * measured.mean_iou:.2f} % on {where}, from the saved weights")
        print(f"saved in {run.folder}")


def _check_early(config: str | None, rest: Sequence[str], *, distils: bool) -> None:
    """Mistakes in recipe and options, as far as they can be seen before torch is imported."""
    from ..recipes import load_recipe
    from ..training.arguments import merge_arguments, training_part

    recipe = load_recipe(config) if config else {}
    merge_arguments(recipe if distils else training_part(recipe), rest, distils=distils)


def _show_options(args: argparse.Namespace, distils: bool) -> None:
    from ..training import options

    kinds: list[Any] = [options.ModelArguments, options.DataArguments, options.SegmentationOptions]
    kinds += [options.TeacherArguments, options.DistillationOptions] if distils else []
    print(args.parser.format_help())
    for kind in kinds:
        print(_described(kind, (one for one in fields(kind) if args.help_all or one.name in _OFTEN)))
    if args.help_all:
        from transformers import TrainingArguments

        from ..training.training_args import WITHOUT_EFFECT

        ours = {one.name for one in fields(options.SegmentationOptions)} | set(WITHOUT_EFFECT)
        print(_described(TrainingArguments, (one for one in fields(TrainingArguments) if one.name not in ours)))


def _described(kind: type, options: Iterable[Field]) -> str:
    """One entry per option, under the first line of the dataclass's docstring."""
    lines = [(kind.__doc__ or "").strip().splitlines()[0].rstrip(".") + ":"]
    for one in options:
        default = one.default_factory() if callable(one.default_factory) else one.default
        text = one.metadata.get("help", "")
        if default is not None:
            text += f" (default {' '.join(map(str, default)) if isinstance(default, list) else default})"
        lines += textwrap.wrap(text, 110, initial_indent=f"  --{one.name:<27} ", subsequent_indent=" " * 32)
    return "\n".join(lines) + "\n"


def _quickstart(args: argparse.Namespace) -> None:
    from ..training.quickstart import quickstart

    hide_loading_bars()
    quickstart(args.output_dir, args.seed)


def _recipes(args: argparse.Namespace) -> None:
    from ..recipes import list_recipes, load_recipe, recipe_path

    if args.json:
        print(json.dumps(load_recipe(args.name) if args.name else list_recipes(), indent=2))
    else:
        print(recipe_path(args.name).read_text() if args.name else "\n".join(list_recipes()))
