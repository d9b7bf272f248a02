"""Arguments of the command line and of recipes, beside the Trainer's."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NoReturn

import yaml
from transformers import HfArgumentParser

from ..data.loading import class_names
from ..data.transforms import PAPER_SCALES
from ..losses import LOSSES
from ..models.heads import HEADS
from ..recipes import as_numbers, parse_json_object
from .training_args import DistillationTrainingArguments, SegmentationTrainingArguments


@dataclass
class ModelArguments:
    """The network to train."""

    model: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a saved model to start from, instead of a new network."}
    )
    backbone: str = field(default="resnet18", metadata={"help": "timm name of the backbone."})
    backbone_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Arguments of timm.create_model (JSON)."}
    )
    pretrained_backbone: str = field(
        default="true", metadata={"help": "ImageNet weights: true (timm's), false, or a local .safetensors file."}
    )
    output_stride: int = field(default=8, metadata={"help": "Input pixels per pixel of the last map: 8, 16 or 32."})
    head: str = field(default="deeplabv3", metadata={"help": f"Decode head: {', '.join(HEADS)}."})
    head_channels: int | None = field(default=None, metadata={"help": "Width of the head; by default the paper's."})
    atrous_rates: list[int] | None = field(default=None, metadata={"help": "DeepLabV3's dilations."})
    auxiliary_head: bool = field(default=False, metadata={"help": "Add an auxiliary head on the last but one map."})

    preprocessing: str | None = field(
        default=None,
        metadata={
            "help": "Input of a new network: timm (as its ImageNet weights) or released (BGR, mean-subtracted); by "
            "default the teacher's, else timm."
        },
    )

    def __post_init__(self):
        if isinstance(self.backbone_kwargs, str):
            self.backbone_kwargs = parse_json_object("backbone_kwargs", self.backbone_kwargs)
        if isinstance(self.pretrained_backbone, bool):  # an unquoted true or false in a recipe
            self.pretrained_backbone = str(self.pretrained_backbone).lower()


@dataclass
class DataArguments:
    """Images, labels and augmentation."""

    dataset: str = field(default="scenes", metadata={"help": "Benchmark name, or a folder or Hub id of a dataset."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder of the benchmark's files."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str = field(default="val", metadata={"help": "Split to evaluate on."})
    train_list: str | None = field(
        default=None, metadata={"help": "List of images (and labels) of a benchmark to train on, not the whole split."}
    )
    eval_list: str | None = field(default=None, metadata={"help": "Likewise for evaluation."})
    class_names: list[str] | None = field(
        default=None, metadata={"help": "Class names in order, for a dataset that is no benchmark."}
    )
    image_column: str | None = field(
        default=None, metadata={"help": "Column of the images, for a dataset that is no benchmark; by default image."}
    )
    label_column: str | None = field(default=None, metadata={"help": "Likewise of the labels; by default label."})
    label_map: dict | str | None = field(
        default=None,
        metadata={"help": "Value in such a dataset's labels -> class id, 255 = ignored (JSON); others stay."},
    )
    labels_as: str | None = field(
        default=None, metadata={"help": "Such a dataset's labels hold the values of this benchmark's files."}
    )
    crop_size: list[int] = field(default_factory=lambda: [512, 512], metadata={"help": "Height and width of the crop."})
    scales: list[float] = field(default_factory=lambda: list(PAPER_SCALES), metadata={"help": "Random scales."})
    flip_probability: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip."})
    color_jitter: list[float] | None = field(
        default=None,
        metadata={"help": "Random brightness, contrast, saturation and hue, four strengths such as 0.4 0.4 0.4 0.1."},
    )
    blur_probability: float = field(default=0.0, metadata={"help": "Probability of a Gaussian blur."})
    max_rotation: float = field(default=0.0, metadata={"help": "Random rotation by up to so many degrees."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only the first so many images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Likewise for evaluation."})

    def __post_init__(self):
        if not isinstance(self.crop_size, (list, tuple)) or len(self.crop_size) != 2:
            raise ValueError(f"crop_size={self.crop_size} must be two numbers, height and width.")
        if isinstance(self.label_map, str):
            self.label_map = parse_json_object("label_map", self.label_map)

    def classes(self) -> list[str]:
        """Class names in the order of their ids."""
        return class_names(self.dataset, self.class_names, self.labels_as)

    def choice(self, part: Literal["train", "eval"]) -> dict[str, Any]:
        """The images and labels to train or to evaluate on: what `load_split` takes."""
        names = ("data_dir", "image_column", "label_column", "label_map", "labels_as")
        given = {name: getattr(self, name) for name in names}
        own = {"list_file": f"{part}_list", "max_samples": f"max_{part}_samples"}
        given |= {name: getattr(self, field_name) for name, field_name in own.items()}
        chosen = {name: value for name, value in given.items() if value is not None}
        return {"name": self.dataset, "split": getattr(self, f"{part}_split"), **chosen}


@dataclass
class TeacherArguments:
    """The network to learn from."""

    teacher: str | None = field(default=None, metadata={"help": "Folder or Hub id of the trained teacher."})


TRAIN_ARGUMENTS = (ModelArguments, DataArguments, SegmentationTrainingArguments)
DISTILL_ARGUMENTS = (ModelArguments, TeacherArguments, DataArguments, DistillationTrainingArguments)


class _ArgumentParser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise, where argparse would print two hundred lines of usage and exit."""
        raise ValueError(f"{message}. --help lists all arguments.")


def parse_arguments(types: Sequence[type], recipe: dict[str, Any], argv: Sequence[str]) -> list[Any]:
    """Build the argument dataclasses from a recipe, overridden by command-line options.

    Args:
        types: dataclasses whose fields are the known arguments.
        recipe: argument name -> value; `<loss>.<option>` for options of a loss.
        argv: command line, e.g. `["--max_steps", "100", "--af_dcd.feature_weight", "1e-5"]`.

    Returns:
        One instance per type.

    Raises:
        ValueError: a name that is no argument (the closest known one is named), or a value that cannot be read.
    """
    known = {item.name for one in types for item in fields(one) if item.init}
    on_command_line, argv = _take_loss_options(argv)
    if on_command_line and "loss_kwargs" in _option_names(argv):
        raise ValueError(f"Give --{next(iter(on_command_line))} either alone or inside --loss_kwargs, not both.")
    loss_options = {**_recipe_loss_options(recipe, argv), **on_command_line}
    plain = {key: value for key, value in recipe.items() if "." not in key}
    _refuse_unknown([*plain, *_option_names(argv)], known | {"help"})
    if loss_options:
        if "loss_kwargs" not in known:
            raise ValueError(f"{next(iter(loss_options))!r} belongs to a distillation loss: use `afdcd distill`.")
        plain["loss_kwargs"] = _nest(loss_options, plain.get("loss_kwargs"), [str(plain.get("loss")), *argv])
    parser = _ArgumentParser(types, allow_abbrev=False)
    parser.set_defaults(**plain)
    return list(parser.parse_args_into_dataclasses(list(argv)))


def given_arguments(parsed: Sequence[Any], recipe: Mapping[str, Any], argv: Sequence[str]) -> dict[str, Any]:
    """What a recipe and a command line set, which is less than all arguments, as a recipe has it.

    Args:
        parsed: what `parse_arguments` made of the two that follow.
        recipe: see `parse_arguments`.
        argv: see `parse_arguments`.

    Returns:
        Argument name -> value that arrived, plain enough for YAML; options of losses as `<loss>.<option>`.
    """
    values = {name: value for one in parsed for name, value in vars(one).items()}
    _, rest = _take_loss_options(argv)
    names = [name.removeprefix("no_") if name not in values else name for name in _option_names(rest)]
    given = {name: plain_value(values[name]) for name in dict.fromkeys([*recipe, *names]) if name in values}
    options = given.pop("loss_kwargs", None) or values.get("loss_kwargs") or {}
    if "loss" in values:
        given["loss"] = values["loss"]
    flat = {f"{loss}.{option}": value for loss, own in options.items() for option, value in own.items()}
    return given | plain_value(flat)


def plain_value(value: Any) -> Any:
    """Fit for YAML and JSON: without the enums that transformers makes of words, also inside lists and mappings."""
    if isinstance(value, Mapping):
        return {key: plain_value(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(one) for one in value]
    value = getattr(value, "value", value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def training_part(recipe: dict[str, Any]) -> dict[str, Any]:
    """A distillation recipe without what only a distillation needs: the student's baseline."""
    train = {item.name for one in TRAIN_ARGUMENTS for item in fields(one)}
    distil = {item.name for one in DISTILL_ARGUMENTS for item in fields(one)} - train
    return {key: value for key, value in recipe.items() if key not in distil and "." not in key}


def _option_names(argv: Sequence[str]) -> list[str]:
    return [word[2:].split("=")[0].replace("-", "_") for word in argv if word.startswith("--")]


def _refuse_unknown(names: Sequence[str], known: set[str]) -> None:
    for name in names:
        if name in known or name.removeprefix("no_") in known:
            continue
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f" Close: {', '.join(close)}." if close else ""
        raise ValueError(f"{name!r} is no argument of this command.{hint} --help lists them all.")


def _recipe_loss_options(recipe: dict[str, Any], argv: Sequence[str]) -> dict[str, Any]:
    """A recipe's `<loss>.<option>` keys; without those of losses that `--loss` on the command line has replaced."""
    options = {key: value for key, value in recipe.items() if "." in key}
    chosen = [word.partition("=")[2] or following for word, following in zip(argv, [*argv[1:], ""], strict=False)
              if word == "--loss" or word.startswith("--loss=")]  # fmt: skip
    if not chosen:
        return options
    kept = {name.strip() for name in chosen[-1].split("+")}
    return {key: value for key, value in options.items() if key.partition(".")[0] in kept}


def _take_loss_options(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Split `--kd.weight 1` and `--kd.weight=1` from the rest of the command line."""
    options, rest, words = {}, [], iter(argv)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not (word.startswith("--") and "." in name):
            rest.append(word)
            continue
        if not equals:
            value = next(words, None)
            if value is None:
                raise ValueError(f"{word} needs a value.")
        options[name] = read_value(name, value)
    return options, rest


def read_value(name: str, text: str) -> Any:
    """Read the value of a command-line option as in a recipe; ValueError where YAML cannot."""
    try:
        return as_numbers(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ValueError(f"--{name}: {text!r} is not a value that YAML can read.") from error


def _nest(options: dict[str, Any], given: dict[str, dict] | str | None, words: list[str]) -> dict[str, dict]:
    """Options by loss; `words` may name losses of the user's own, as in `my_file.py:MyLoss`."""
    if isinstance(given, str):
        given = parse_json_object("loss_kwargs", given)
    nested = {loss: dict(values) for loss, values in (given or {}).items()}
    for key, value in options.items():
        loss, _, option = key.partition(".")
        if loss not in LOSSES and not any(loss in word for word in words):
            raise ValueError(f"{key!r}: there is no loss {loss!r}; known losses: {', '.join(LOSSES)}.")
        nested.setdefault(loss, {})[option] = value
    return nested
