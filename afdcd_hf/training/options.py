"""The options of `afdcd train` and `afdcd distill`: ours and the common ones of transformers, one line each.

Nothing heavy is imported here, so that help and mistakes are answered at once. `training_args` adds the rest.
"""

from __future__ import annotations

import math
import operator
import os
import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import Field, dataclass, field, fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..data import PAPER_SCALES
from ..recipes import parse_json_object

DEFAULT_STEPS = 40_000
_BATCH, _FOUR = {"at_least": 1, "at_most": 10**6}, {"at_least": 0, "length": 4}
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_PLAIN_TYPES = (bool, int, float, str, list, tuple, dict, type(None))
_KINDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a string", dict: "a mapping"}
_RULES: dict[str, tuple[Any, str]] = {
    "at_least": (operator.ge, "{} or more"),
    "above": (operator.gt, "above {}"),
    "at_most": (operator.le, "{} or less"),
    "below": (operator.lt, "below {}"),
}


def option(default: Any, help: str, **rules: Any) -> Any:
    """Declare a dataclass field that is an option of recipes and command lines.

    Rules are those of `_RULES` for numbers (also in lists), `length` for lists, `path=True`, which expands `~`, and
    `joined`, the sign between several values in one string.
    """
    own = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    return field(**own, metadata={"help": help, "rules": rules})


def check_options(options: Any) -> None:
    """Convert every field of a dataclass to its annotated type and check its range: see `check_value`."""
    for spec in fields(options):
        setattr(options, spec.name, check_value(type(options), spec, getattr(options, spec.name)))


def check_value(kind: type, spec: Field, value: Any) -> Any:
    """Convert a field's value from a recipe or a command line to its annotated type.

    ValueError, naming what is expected, if the conversion would change its meaning or the value is out of range.
    """
    hint, rules = type_hints(kind)[spec.name], spec.metadata.get("rules", {})
    if isinstance(value, str) and str not in get_args(hint) and dict in {get_origin(m) or m for m in get_args(hint)}:
        value = parse_json_object(spec.name, value)
    expected = [f"{rules['length']} values"] if "length" in rules else ["one value or more"] if value == [] else []
    expected += [_RULES[rule][1].format(rules[rule]) for rule in _RULES if rule in rules]
    if "joined" in rules and isinstance(value, list):
        expected.append(f"joined by {rules['joined']!r} as in {rules['joined'].join(map(str, value))!r}")
    try:
        typed = convert(value, hint)
    except TypeError:
        if "rules" not in spec.metadata and not isinstance(value, _PLAIN_TYPES):
            return value  # an object of transformers, given in Python
        raise ValueError(f"{spec.name}={value!r} must be {', '.join([_type_name(hint), *expected])}.") from None
    values = typed if isinstance(typed, list) else [typed]
    numbers = [each for each in values if isinstance(each, (int, float)) and not isinstance(each, bool)]
    within = all(_RULES[rule][0](each, rules[rule]) for rule in _RULES if rule in rules for each in numbers)
    if not within or (isinstance(typed, list) and rules and len(typed) != rules.get("length", max(len(typed), 1))):
        raise ValueError(f"{spec.name}={typed!r} must be {', '.join(expected)}.")
    return os.path.expanduser(typed) if rules.get("path") and isinstance(typed, str) else typed


def allows_list(hint: Any) -> bool:
    """Whether an option's value may be a list."""
    return list in {get_origin(kind) or kind for kind in (hint, *get_args(hint))}


def accepts_list(hint: Any) -> bool:
    """Whether a single word on the command line stands for a list of one."""
    kinds = {get_origin(kind) or kind for kind in get_args(hint) or (hint,)}
    return get_origin(hint) is list or (list in kinds and not kinds & {str, Literal})


def plain_value(value: Any) -> Any:
    """Make a value fit for YAML and JSON: replace transformers' enums by their words, also in lists and mappings."""
    if isinstance(value, Mapping):
        return {key: plain_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    value = getattr(value, "value", value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


@cache
def type_hints(kind: type) -> dict[str, Any]:
    """Return the resolved annotations of a class and its bases."""
    return get_type_hints(kind)


def convert(value: Any, hint: Any) -> Any:
    """Convert a value to the annotated type; TypeError if that would change its meaning."""
    kind, members = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        for member in members:
            with suppress(TypeError):
                return convert(value, member)
    elif kind is bool and isinstance(value, (bool, str)) and str(value).lower() in _BOOLEANS:
        return _BOOLEANS[str(value).lower()]
    elif kind in (int, float) and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):  # from words and infinity
            if math.isfinite(float(value)) and (kind is float or float(value) == int(float(value))):
                return value if type(value) is kind else kind(float(value))
    elif kind is str and isinstance(value, (str, os.PathLike, int)) and not isinstance(value, bool):
        return value if isinstance(value, str) else str(value)
    elif kind is list and isinstance(value, (list, tuple)):
        return [convert(item, members[0]) for item in value]
    elif kind is dict and isinstance(value, Mapping):
        return dict(value)
    elif hint is Any or (kind is Literal and value in members):
        return value
    elif kind not in _KINDS and isinstance(kind, type) and isinstance(value, kind):
        return value
    raise TypeError


def _type_name(hint: Any) -> str:
    kind, members = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type_name(member) for member in members if member is not types.NoneType))
    if kind is Literal:
        return " or ".join(map(repr, members))
    if kind is list:
        return f"a list of {_type_name(members[0]).split(' ', 1)[-1]}s"
    return _KINDS.get(kind, getattr(hint, "__name__", str(hint)))


def _without_none(choice: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in choice.items() if value is not None}


@dataclass
class _Options:
    def __post_init__(self) -> None:
        check_options(self)


@dataclass
class ModelArguments(_Options):
    """Model to train."""

    model: str | None = option(None, "Saved model to start from; other classes reset its classifier.", path=True)
    backbone: str = option("resnet18", "timm name of the backbone.")
    backbone_kwargs: dict | None = option(None, "Arguments of timm.create_model (JSON).")
    pretrained_backbone: bool | str = option(True, "ImageNet weights: true, false, or a .safetensors file.", path=True)
    output_stride: int = option(8, "Output stride of the backbone: 8, 16 or 32.")
    head: str = option("deeplabv3", "Decode head, such as deeplabv3, pspnet or fcn; an unknown name lists all.")
    head_channels: int | None = option(None, "Channels of the head; the paper's by default.", at_least=1)
    atrous_rates: list[int] | None = option(None, "Dilation rates of DeepLabV3.", at_least=1)
    auxiliary_head: bool = option(False, "Add an auxiliary head on the second-to-last feature map.")
    preprocessing: str | None = option(None, "timm or released (BGR); by default that of the teacher, else timm.")


@dataclass
class TeacherArguments(_Options):
    """Teacher."""

    teacher: str | None = option(None, "Folder or Hub id of the trained teacher.", path=True)
    unlabelled_dataset: str | None = option(None, "Dataset of extra images to distil on; labels unused.", path=True)
    unlabelled_dir: str | None = option(None, "Its data_dir; by default data_dir, for the same dataset.", path=True)
    unlabelled_split: str = option("train", "Its split.")
    unlabelled_list: str | None = option(None, "List of a benchmark's images to use, not the whole split.", path=True)
    unlabelled_share: float = option(0.5, "Share of unlabelled images in each batch.", above=0, below=1)

    def unlabelled_choice(self, data: DataArguments) -> dict[str, Any] | None:
        """Return the arguments of `load_split` for the unlabelled images, or None."""
        if self.unlabelled_dataset is None:
            if self.unlabelled_dir or self.unlabelled_list:
                raise ValueError("unlabelled_dir and unlabelled_list need unlabelled_dataset, the name of a dataset.")
            return None
        folder = self.unlabelled_dir or (data.data_dir if self.unlabelled_dataset == data.dataset else None)
        choice = {"name": self.unlabelled_dataset, "split": self.unlabelled_split, "labelled": False}
        return _without_none({**choice, "data_dir": folder, "list_file": self.unlabelled_list})


@dataclass
class DataArguments(_Options):
    """Images, labels and augmentation."""

    dataset: str = option("scenes", "Benchmark name, or a folder or Hub id of a dataset.", path=True)
    data_dir: str | None = option(None, "Folder of the benchmark's files.", path=True)
    train_split: str = option("train", "Split to train on.")
    eval_split: str = option("val", "Split to evaluate on.")
    train_list: str | None = option(None, "List of a benchmark's images to use, not the whole split.", path=True)
    eval_list: str | None = option(None, "The same for evaluation.", path=True)
    class_names: list[str] | None = option(None, "Class names in order, for a dataset that is not a benchmark.")
    image_column: str | None = option(None, "Image column of such a dataset; image by default.")
    label_column: str | None = option(None, "Label column of such a dataset; label by default.")
    label_map: dict | None = option(None, "Map from label values to class ids, 255 = ignored (JSON); others stay.")
    labels_as: str | None = option(None, "Label values follow this benchmark's files.")
    crop_size: list[int] = option([512, 512], "Height and width of the crop.", length=2, at_least=1)
    scales: list[float] = option(list(PAPER_SCALES), "Random scales.", above=0, at_most=100)
    flip_probability: float = option(0.5, "Probability of a horizontal flip.", at_least=0, at_most=1)
    color_jitter: list[float] | None = option(None, "Strengths of brightness, contrast, saturation, hue.", **_FOUR)
    blur_probability: float = option(0.0, "Probability of a Gaussian blur.", at_least=0, at_most=1)
    max_rotation: float = option(0.0, "Largest random rotation in degrees.", at_least=0, at_most=180)
    cutmix_probability: float = option(0.0, "Probability of CutMix: paste a rectangle.", at_least=0, at_most=1)
    classmix_probability: float = option(0.0, "Probability of ClassMix: paste half the classes.", at_least=0, at_most=1)
    streaming: bool = option(False, "Stream the dataset without downloading or storing it; needs max_steps.")
    shuffle_buffer: int = option(1000, "Size in images of a stream's shuffle buffer; 1 keeps the order.", at_least=1)
    max_train_samples: int | None = option(None, "Use only the first N training images.", at_least=1)
    max_eval_samples: int | None = option(None, "The same for evaluation.", at_least=1)

    def classes(self) -> list[str]:
        """Return the class names in the order of their ids."""
        from ..data.loading import class_names

        return class_names(self.dataset, self.class_names, self.labels_as)

    def choice(self, part: Literal["train", "eval"]) -> dict[str, Any]:
        """Return the arguments of `load_split` for the images and labels to train or evaluate on."""
        own = {"name": "dataset", "split": f"{part}_split", "list_file": f"{part}_list"}
        own |= {"max_samples": f"max_{part}_samples"}
        own |= {name: name for name in ("data_dir", "image_column", "label_column", "label_map", "labels_as")}
        stream = {"streaming": True} if self.streaming else {}
        return _without_none({name: getattr(self, field) for name, field in own.items()}) | stream

    def check_stream(self, *others: Any) -> None:
        """Raise ValueError if these options, or the run's `others`, are impossible with a stream."""
        given = {name: value for args in (self, *others) for name, value in vars(args).items()}
        random_access = ("cutmix_probability", "classmix_probability", "unlabelled_dataset", "train_list", "eval_list")
        wrong = [name for name in random_access if given.get(name)]
        wrong += ["class_weights balanced"] if given["class_weights"] == "balanced" else []
        wrong += [f"{what} epoch" for what in ("eval_strategy", "save_strategy") if given[what] == "epoch"]
        if self.streaming and wrong:
            what = "A stream has no known length and no random access"
            raise ValueError(f"{what}, which rules out {', '.join(wrong)}: drop either that or streaming.")
        if self.streaming and given["max_steps"] < 1:
            raise ValueError("streaming needs max_steps: without a known length, num_train_epochs has no meaning.")


@dataclass
class SegmentationOptions:
    """Training."""

    output_dir: str | None = option(None, "Folder for the run; must be new or empty.", path=True)
    resume_from_checkpoint: str | None = option(None, "Checkpoint folder to resume from, or last.", path=True)
    max_steps: int | None = option(
        None, f"Optimizer steps; {DEFAULT_STEPS} unless num_train_epochs is given.", at_least=-1
    )
    num_train_epochs: float | None = option(None, "Epochs to train, instead of max_steps.", above=0)
    max_seconds: float | None = option(
        None, "Time budget in seconds of training steps; learning rate and distill_until follow the clock.", above=0
    )
    total_batch_size: int | None = option(None, "Images per optimizer step, over all processes.", **_BATCH)
    per_device_train_batch_size: int | None = option(None, "Batch size per process; 16 by default.", **_BATCH)
    per_device_eval_batch_size: int = option(1, "Batch size per process in evaluations.", **_BATCH)
    gradient_accumulation_steps: int = option(1, "Batches accumulated per optimizer step.", at_least=1)
    optim: str = option("sgd", "Optimizer, as named by transformers.")
    optim_args: str | None = option(None, "Its arguments, joined by ','; for sgd, momentum=0.9.", joined=",")
    learning_rate: float = option(0.02, "Initial learning rate.", at_least=0)
    lr_scheduler_type: str = option("polynomial", "Learning rate schedule, as named by transformers.")
    lr_scheduler_kwargs: dict | None = option(None, "Its arguments (JSON); for polynomial, power 0.9 and lr_end 0.")
    warmup_steps: float = option(0, "Warm-up steps; below 1: share of the run.", at_least=0)
    weight_decay: float = option(1e-4, "Weight decay.", at_least=0)
    decay_all: bool = option(True, "Decay biases and normalisation weights too, as in the released code.")
    max_grad_norm: float = option(0.0, "Clip all gradients to this norm; 0 disables clipping.", at_least=0)
    task_weight: float = option(1.0, "Weight of the task loss on the labels.", at_least=0)
    aux_weight: float = option(0.4, "Weight of the auxiliary head's task loss.", at_least=0)
    task_loss: str = option("cross_entropy", "cross_entropy, ohem, dice, lovasz, or several joined by '+'.", joined="+")
    class_weights: list[float] | Literal["balanced"] | None = option(None, "Class weights, or balanced.", at_least=0)
    ema_decay: float | None = option(None, "Evaluate and save a moving average of the weights.", above=0, below=1)
    eval_strategy: str = option("no", "When to evaluate during training: no, steps or epoch.")
    eval_steps: float | None = option(None, "Steps between evaluations; below 1: share of the run.", above=0)
    save_strategy: str = option("steps", "When to save checkpoints: no, steps, epoch or best.")
    save_steps: float = option(500, "Steps between checkpoints; below 1: share of the run.", above=0)
    save_total_limit: int | None = option(None, "Number of checkpoints to keep.", at_least=1)
    load_best_model_at_end: bool = option(False, "Load the best checkpoint at the end instead of the last weights.")
    metric_for_best_model: str | None = option("mean_iou", "Metric: mean_iou, mean_accuracy or overall_accuracy.")
    greater_is_better: bool | None = option(True, "Whether higher values of that metric are better.")
    logging_steps: float = option(50, "Steps between two log lines.", above=0)
    logging_nan_inf_filter: bool = option(False, "Hide NaN and infinite losses from the log.")
    report_to: str | list[str] | None = option("none", "Where to log: tensorboard, wandb, trackio, ...")
    seed: int = option(42, "Seed of initialisation, order, augmentation and masks.", at_least=0, below=2**32)
    use_cpu: bool = option(False, "Train on the CPU even if there is a GPU.")
    bf16: bool = option(False, "Mixed precision in bfloat16.")
    fp16: bool = option(False, "Mixed precision in float16, on GPUs.")
    torch_compile: bool = option(False, "Compile the models.")
    channels_last: bool = option(False, "Channels-last memory format: often faster, equal up to rounding.")
    sync_batch_norm: bool | None = option(None, "Synchronise batch norm over GPUs; on by default with several GPUs.")
    dataloader_num_workers: int = option(0, "Processes that load images.", at_least=0, at_most=1024)
    dataloader_drop_last: bool = option(True, "Drop the last incomplete batch: batch norm suffers from small ones.")
    remove_unused_columns: bool = option(False, "Must stay false: the raw columns are needed.")
    check_finite: bool = option(True, "Stop if loss or gradients are not finite, before they are used.")
    preflight: bool = option(True, "Check images, labels, models and disk space before the first step.")
    push_to_hub: bool = option(False, "Push the finished run to the Hub; hub_model_id names the repository.")


@dataclass
class DistillationOptions:
    """Distillation."""

    loss: str | None = option("af_dcd", "Distillation loss, or several joined by '+', e.g. 'kd+af_dcd'.", joined="+")
    loss_kwargs: dict | None = option(None, "Options per loss (JSON); usually written as af_dcd.feature_weight.")
    student_layer: str | list[str] | None = option(None, "Student layer(s) to distil, by path; default: the last map.")
    teacher_layer: str | list[str] | None = option(None, "The same for the teacher: as many, in the same order.")
    fold_teacher_batch_norm: bool = option(False, "Fold the teacher's batch norm into its convolutions: faster.")
    distill_every: int = option(1, "Run the teacher only every n-th optimizer step.", at_least=1)
    distill_until: float = option(1.0, "Use the teacher for this share of the training only.", above=0, at_most=1)
    loss_max_grad_norm: float = option(15.0, "Clip the gradients of the loss's own weights; 0 disables.", at_least=0)
