"""Conversion of released checkpoints (`.pth`) to folders for `from_pretrained` or to timm weights; cards of the zoo."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import __version__
from ..atomic_io import atomic_folder, atomic_write
from ..data.benchmarks import BENCHMARKS, get_benchmark
from ..data.loading import class_names
from ..messages import chosen
from ..models.image_processing_afdcd import RELEASED_INPUT, AfDcdImageProcessor
from ..models.loading import load_model
from ..models.modeling_afdcd import AfDcdForSemanticSegmentation
from .card_facts import CardFacts, MeasuredResults, ReportedResults, TrainingFacts, write_facts
from .folder_facts import dataset_facts, describe, network_facts
from .model_card import write_card
from .released_networks import RELEASED_NETWORKS, get_released_network, released_backbone_name, released_names
from .weight_files import check_tensors, meta_model, read_tensors
from .zoo import CheckpointRow, get_checkpoint

logger = logging.getLogger(__name__)

_ORIGIN = "The weights are those that the authors of the paper released, converted by `afdcd convert`, not retrained."
_PREFIXES = ("pretrained.net.", "pretrained.", "net.")
_OF_HEADS = ("head.", "auxlayer.")
_BACKBONES = {name.split("_")[1]: kind for name, kind in RELEASED_NETWORKS.items()}


def convert_checkpoint(
    checkpoint: str | Path,
    network: str,
    output: str | Path,
    *,
    dataset: str | None = None,
    classes: Sequence[str] | None = None,
    published: str | None = None,
) -> Path:
    """Convert a released checkpoint to a folder with config, safetensors, image processor and model card.

    The tensors of file and network must match exactly, except that batch norm counters may be missing. The width of
    the head and the presence of an auxiliary head are taken from the file. The folder is read back and compared with
    the file before it gets its final name.

    Args:
        checkpoint: `.pth` or `.safetensors`, in a form that `read_tensors` accepts.
        network: kind of network, a key of `RELEASED_NETWORKS`, such as "deeplabv3_resnet18".
        output: folder to create, which is returned; it may exist if it is empty.
        dataset: benchmark it was trained on, for the class names.
        classes: class names by id, instead of a benchmark. With neither, classes are called LABEL_0, LABEL_1, ...
        published: the file's row in `zoo.CHECKPOINTS`, for the card: reported score, source, teacher.

    Raises:
        ValueError: unknown names; a file that cannot be read as data; unknown, missing, misshapen, wrongly typed or
            non-finite tensors; a number of classes other than the given one.
        FileNotFoundError: the checkpoint does not exist.
        FileExistsError: the folder already has files, or is a file.
    """
    row = get_checkpoint(published) if published else None
    if row is not None and (network, dataset) != (row.network, row.dataset):
        raise ValueError(f"{published} is a {row.network} for {row.dataset}, not a {network} for {dataset}.")
    checkpoint, output = Path(checkpoint), Path(output)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise FileExistsError(f"{output} is not an empty folder; give another --output_dir.")
    get_released_network(network)
    if dataset is not None and classes is not None:
        raise ValueError("Give a dataset or class names, not both: the dataset has its own class names.")
    names = get_benchmark(dataset).classes if dataset is not None else classes and class_names(network, classes)
    tensors, what = read_tensors(checkpoint), f"{checkpoint.name} as {network}"
    _check_count(tensors, network, names, what, dataset or "the names given")
    model, renamed = released_model(network, names, tensors)
    try:
        model.load_state_dict(_matched_tensors(tensors, renamed, model.state_dict(), what), assign=True)
    except ValueError as error:
        raise ValueError(f"{error} {_advice(tensors)}") from error
    origin = (
        f"Converted by afdcd_hf {__version__} from `{checkpoint.name}` (SHA-256 "
        f"`{hashlib.sha256(checkpoint.read_bytes()).hexdigest()}`), a `{network}` in the released layout; not "
        "retrained. The image processor prepares images as the released code does: BGR, mean-subtracted, not divided."
    )
    if row is not None:
        facts = zoo_facts(row, model, origin)
    else:
        data = dataset_facts(dataset) if dataset else None
        facts = CardFacts(output.absolute().name, **network_facts(model), dataset=data, notes=[origin])
    with atomic_folder(output) as part:
        model.save_pretrained(part)
        AfDcdImageProcessor(**RELEASED_INPUT, align_corners=model.config.align_corners).save_pretrained(part)
        written, meant = load_model(part).state_dict(), model.state_dict()  # as users will read it
        if written.keys() != meant.keys() or not all(torch.equal(written[name], meant[name]) for name in meant):
            raise ValueError(f"{output} reads back differently from what was written; check the disk.")
        write_facts(part, facts)
        write_card(part, facts)
    logger.info("%d tensors of %s are in %s", len(tensors), checkpoint, output)
    return output


def convert_backbone(checkpoint: str | Path, network: str, output: str | Path) -> Path:
    """Convert ImageNet weights of a released backbone to a `.safetensors` file with timm's names.

    Args and errors are those of `convert_checkpoint`, except:
        checkpoint: file with the backbone alone, with or without the prefix `pretrained.` in its names; the ImageNet
            classifier is optional and, if present, is converted too.
        network: "resnet18", "resnet50", "resnet101" or "mobilenetv2".
        output: `.safetensors` file to write, for `pretrained_backbone` of recipes. Returned.
    """
    output, kind = Path(output), chosen(_BACKBONES, network, "backbone")
    if output.suffix != ".safetensors" or output.is_dir():
        raise ValueError(f"A backbone is saved to one file: give --output X.safetensors, not {str(output)!r}.")
    if output.exists():
        raise FileExistsError(f"{output} exists; give another --output.")
    tensors = read_tensors(checkpoint)
    prefix = next((one for one in _PREFIXES if all(name.startswith(one) for name in tensors)), "")
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    classifier = ("features.18.", "classifier.") if network == "mobilenetv2" else ("fc.",)
    weight = tensors.get("classifier.1.weight" if network == "mobilenetv2" else "fc.weight")
    with torch.device("meta"):
        num_classes = 1000 if weight is None or weight.ndim != 2 else len(weight)
        ours = timm.create_model(kind.backbone, num_classes=num_classes, **kind.backbone_kwargs).state_dict()
    renamed = {released_backbone_name(one, network): one for one in ours}
    if not any(one.startswith(classifier) for one in tensors):
        renamed = {released: one for released, one in renamed.items() if not released.startswith(classifier)}
    whole = any(one.startswith(_OF_HEADS) for one in tensors)
    hint = "It is a whole network: leave out --backbone_only." if whole else ""
    values = _matched_tensors(tensors, renamed, ours, f"{Path(checkpoint).name} as backbone {network}", hint)
    with atomic_write(output) as part:
        save_file(values, part, metadata={"format": "pt"})
    logger.info("%d tensors are in %s, as pretrained_backbone", len(values), output)
    return output


def released_model(
    network: str, classes: Sequence[str] | None, tensors: Mapping[str, Tensor]
) -> tuple[AfDcdForSemanticSegmentation, dict[str, str]]:
    """Build a model on the meta device for the tensors of a file, and map their released names to ours.

    The tensors determine the number of classes (if `classes` is None), the width of the head and the presence of an
    auxiliary head; without any tensors, the network's defaults apply.
    """
    classifier = _classifier(tensors, network)
    count, width = (1, None) if classifier is None else classifier.shape[:2]
    names = [f"LABEL_{index}" for index in range(count)] if classes is None else classes
    auxiliary = any(name.startswith("auxlayer.") for name in tensors) if tensors else None
    model = meta_model(get_released_network(network).config(names, head_channels=width, auxiliary_head=auxiliary))
    return model, released_names(model.state_dict(), network)


def read_class_names(path: str | Path) -> list[str]:
    """Read class names from a text file, one per line in the order of their ids; a ValueError if there are none."""
    names = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{path} has no names; write one per line.")
    return names


def zoo_facts(row: CheckpointRow, model: nn.Module | None = None, origin: str | None = None) -> CardFacts:
    """Collect a published checkpoint's facts from the table; once converted, with its `model` and a note, `origin`."""
    benchmark = get_benchmark(row.dataset)
    notes = [f"Source: {row.source_project}, {row.source_file}. Terms of the weights: {row.weights_licence}."]
    notes += [f"Note: {text}." for text in (row.source_doubts, row.remarks) if text]
    if origin is None and row.measured is None:
        notes.append(
            "This project does not have that file, so nothing is published under this name yet. If you have it, "
            f"convert it with `afdcd convert --checkpoint FILE --network {row.network} --dataset "
            f"{row.dataset} --output_dir DIR`."
        )
    teacher = get_checkpoint(row.teacher) if row.teacher else None
    taught_by = describe(get_released_network(teacher.network).config(benchmark.classes)) if teacher else None
    if teacher is not None and row.reported_alone is not None:
        alone, best = f"{100 * row.reported_alone:.2f}", f"{100 * teacher.reported:.2f}"
        notes.append(f"Its authors report {alone} % for the same student alone and {best} % for the teacher.")
    own = f"; {row.recipe} is this package's recipe for the same training" if row.recipe else ""
    return CardFacts(
        model_name=row.name,
        repo_id=row.repo_id,
        **network_facts(model or meta_model(get_released_network(row.network).config(benchmark.classes))),
        dataset=dataset_facts(row.dataset, split=row.split, num_images=benchmark.split_sizes[row.split]),
        measured=None if row.measured is None else MeasuredResults(row.measured),
        reported=ReportedResults(row.reported, row.reported_in),
        training=TrainingFacts(recipe=f"its authors' own{own}"),
        teacher=row.teacher,
        teacher_architecture=taught_by,
        notes=[origin or _ORIGIN, *notes],
    )


def _matched_tensors(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], ours: Mapping[str, Tensor], what: str, hint: str = ""
) -> dict[str, Tensor]:
    """Check a file's tensors against `ours` and return them with our names (`names`: released -> ours) and dtypes.

    Missing batch norm counters become 0, as in PyTorch's strict loading.
    """
    counters = [name for name in names if name.endswith("num_batches_tracked") and name not in tensors]
    tensors = {**tensors, **{name: torch.tensor(0) for name in counters}}
    check_tensors(tensors, {released: ours[name] for released, name in names.items()}, what, hint)
    # Copies, because a file's tensors may share memory, which safetensors refuses to write.
    return {names[name]: tensor.to(ours[names[name]].dtype, copy=True).contiguous() for name, tensor in tensors.items()}


def _advice(tensors: Mapping[str, Tensor]) -> str:
    if not any(name.startswith(_OF_HEADS) for name in tensors):
        return "It has no head: convert a backbone's ImageNet weights with --backbone_only."
    for other in RELEASED_NETWORKS:
        model, renamed = released_model(other, None, tensors)
        try:
            _matched_tensors(tensors, renamed, model.state_dict(), other)
        except ValueError:
            continue
        return f"The file is a {other}: give --network {other}."
    return f"The released networks are {', '.join(RELEASED_NETWORKS)}."


def _classifier(tensors: Mapping[str, Tensor], network: str) -> Tensor | None:
    (name,) = released_names(["head.classifier.weight"], network)
    return tensors[name] if name in tensors and tensors[name].ndim == 4 else None


def _check_count(
    tensors: Mapping[str, Tensor], network: str, given: Sequence[str] | None, what: str, givers: str
) -> None:
    classifier = _classifier(tensors, network)
    count = None if classifier is None else len(classifier)
    if given is None:
        logger.warning("Without a dataset or class names, classes are called LABEL_0, LABEL_1, ...")
    elif count not in (None, len(given)):
        fitting = [name for name, row in BENCHMARKS.items() if row.num_labels == count]
        hint = f"benchmarks with {count}: {', '.join(fitting)}" if fitting else f"give the names of its {count} classes"
        raise ValueError(f"{what} has {count} classes, not {len(given)} ({givers}); {hint}.")
