"""A released segmentation checkpoint -> a folder for `from_pretrained`."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ... import __version__
from ...data.benchmarks import BENCHMARKS, get_benchmark
from ...models.image_processing_afdcd import RELEASED_INPUT, AfDcdImageProcessor
from ...models.loading import load_model
from ...models.modeling_afdcd import AfDcdForSemanticSegmentation
from ..card_facts import CardFacts
from ..facts_file import write_facts
from ..folder_facts import dataset_facts, network_facts
from ..model_card import write_card
from ..released_networks import RELEASED_NETWORKS, get_released_network
from ..weights_check import check_tensors
from ..zoo import CheckpointRow, get_checkpoint
from ..zoo_cards import row_facts, source_notes
from .names import released_names
from .reading import read_tensors

logger = logging.getLogger(__name__)


def convert_checkpoint(
    checkpoint: str | Path,
    network: str,
    output: str | Path,
    *,
    dataset: str | None = None,
    classes: Sequence[str] | None = None,
    published: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Turn a released checkpoint into a folder with config, safetensors, image processor and model card.

    Every tensor of the file must belong to the network and every one of the network must be in the file. The width of
    the head and whether there is an auxiliary head are the file's; counters of batch normalisation may be missing. The
    folder is read back and compared with the file before it appears under its name.

    Args:
        checkpoint: `.pth` (plain, nested under `state_dict` or its like, with or without `module.` before the names)
            or `.safetensors`.
        network: kind of network, a key of `RELEASED_NETWORKS`, such as "deeplabv3_resnet18".
        output: folder to make.
        dataset: benchmark it was trained on, which gives the classes their names.
        classes: class names by id, instead of a benchmark. With neither, classes are called LABEL_0, LABEL_1, ...
        published: row of `zoo.CHECKPOINTS` that the file is, for the card: reported score, source, teacher.
        overwrite: replace the files of an earlier conversion. A README that somebody wrote stays in any case.

    Returns:
        The folder.

    Raises:
        ValueError: unknown names; a file that cannot be read as data; unknown, missing, misshapen, wrongly typed or
            non-finite tensors; another number of classes than given.
        FileNotFoundError: there is no such checkpoint.
        FileExistsError: the folder has files already.
    """
    row = get_checkpoint(published) if published else None
    if row is not None and (network, dataset) != (row.network, row.dataset):
        raise ValueError(f"{published} is a {row.network} for {row.dataset}, not a {network} for {dataset}.")
    checkpoint, output = Path(checkpoint), Path(output)
    _check_choice(network, output, dataset, classes, overwrite)
    tensors = read_tensors(checkpoint)
    what = f"{checkpoint.name} as {network}"
    names = _class_names(tensors, network, dataset, classes, what)
    model = _filled_model(network, names, tensors, what)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".converting-") as part:
        model.save_pretrained(part)
        AfDcdImageProcessor(**RELEASED_INPUT, align_corners=model.config.align_corners).save_pretrained(part)
        written, meant = load_model(part).state_dict(), model.state_dict()  # as users will read it
        if written.keys() != meant.keys() or not all(torch.equal(written[name], meant[name]) for name in meant):
            raise ValueError(f"{part} reads back differently; is the disk in order?")
        facts = _facts(model, output.absolute().name, checkpoint, network, dataset, row)
        write_facts(part, facts)
        output.mkdir(exist_ok=True)
        # The weights last: without them no folder loads, old or new, halfway.
        for file in sorted(Path(part).iterdir(), key=lambda file: file.suffix == ".safetensors"):
            os.replace(file, output / file.name)
    write_card(output, facts)
    logger.info("%d tensors of %s are in %s", len(tensors), checkpoint, output)
    return output


def released_model(
    network: str, classes: Sequence[str], tensors: Mapping[str, Tensor]
) -> tuple[AfDcdForSemanticSegmentation, dict[str, str]]:
    """A model without values (on the meta device) for the tensors of a file, and its names: released to ours.

    They say how wide the head is and whether there is an auxiliary one; without any tensor, both are as usual.
    """
    (classifier,) = released_names(["head.classifier.weight"], network)
    width = tensors[classifier].shape[1] if classifier in tensors and tensors[classifier].ndim == 4 else None
    auxiliary = any(name.startswith("auxlayer.") for name in tensors) if tensors else None
    config = get_released_network(network).config(classes, head_channels=width, auxiliary_head=auxiliary)
    with torch.device("meta"):
        model = AfDcdForSemanticSegmentation(config)
    return model, released_names(model.state_dict(), network)


def fitting_values(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], ours: Mapping[str, Tensor], what: str, hint: str = ""
) -> dict[str, Tensor]:
    """The tensors of a file under our names and in our types, once each has been held against ours by `check_tensors`.

    Args:
        tensors: those of the file. Counters of batch normalisation that it lacks become 0, as in strict loading.
        names: released name to ours.
        ours: our tensors, which may be on the meta device.
        what: the file in words, to begin an error with.
        hint: what to do about it.
    """
    counters = [name for name in names if name.endswith("num_batches_tracked") and name not in tensors]
    tensors = {**tensors, **{name: torch.tensor(0) for name in counters}}
    check_tensors(tensors, {released: ours[name] for released, name in names.items()}, what, hint)
    # Copies: tensors of a file may be views of one another, which safetensors does not write.
    return {names[name]: tensor.to(ours[names[name]].dtype, copy=True).contiguous() for name, tensor in tensors.items()}


def _filled_model(
    network: str, names: Sequence[str], tensors: Mapping[str, Tensor], what: str
) -> AfDcdForSemanticSegmentation:
    model, renamed = released_model(network, names, tensors)
    try:
        model.load_state_dict(fitting_values(tensors, renamed, model.state_dict(), what), assign=True)
    except ValueError as error:
        raise ValueError(f"{error} {_advice(tensors, network)}") from error
    return model.eval()


def _advice(tensors: Mapping[str, Tensor], network: str) -> str:
    if not any(name.startswith(("head.", "auxlayer.")) for name in tensors):
        return "It holds no head: convert a backbone's ImageNet weights with --backbone_only."
    for other in RELEASED_NETWORKS:
        model, renamed = released_model(other, ["0"] * (_num_classes(tensors, other) or 1), tensors)
        try:
            fitting_values(tensors, renamed, model.state_dict(), other)
        except ValueError:
            continue
        return f"The file is a {other}: give --network {other}."
    return f"The released networks are {', '.join(RELEASED_NETWORKS)}."


def _check_choice(
    network: str, output: Path, dataset: str | None, classes: Sequence[str] | None, overwrite: bool
) -> None:
    """What can be found wrong before a large file is read."""
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file; give a folder.")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise FileExistsError(f"{output} has files already; give another folder, or --overwrite to replace them.")
    get_released_network(network)
    if dataset is not None:
        get_benchmark(dataset)
        if classes is not None:
            raise ValueError("Give a dataset or class names, not both: the dataset has names of its own.")
    if classes is not None and len(set(classes)) != len(classes):
        twice = sorted({name for name in classes if list(classes).count(name) > 1})
        raise ValueError(f"Class names occur twice: {', '.join(twice)}.")


def _num_classes(tensors: Mapping[str, Tensor], network: str) -> int | None:
    (classifier,) = released_names(["head.classifier.weight"], network)
    return len(tensors[classifier]) if classifier in tensors and tensors[classifier].ndim == 4 else None


def _class_names(
    tensors: Mapping[str, Tensor], network: str, dataset: str | None, classes: Sequence[str] | None, what: str
) -> Sequence[str]:
    """Names for the outputs that the file has, or whose number is as wrong as `check_tensors` will say."""
    given, count = get_benchmark(dataset).classes if dataset else classes, _num_classes(tensors, network)
    if count is None:
        return given or ["LABEL_0"]
    if given is None:
        logger.warning("Without a dataset or class names the %d classes are called LABEL_0, LABEL_1, ...", count)
        return [f"LABEL_{index}" for index in range(count)]
    if len(given) != count:
        fitting = [name for name, row in BENCHMARKS.items() if row.num_labels == count]
        hint = f"benchmarks with {count}: {', '.join(fitting)}" if fitting else f"give the names of its {count} classes"
        raise ValueError(f"{what} has {count} classes, {dataset or 'the names given'} {len(given)}; {hint}.")
    return given


def _facts(
    model: AfDcdForSemanticSegmentation,
    name: str,
    checkpoint: Path,
    network: str,
    dataset: str | None,
    row: CheckpointRow | None,
) -> CardFacts:
    """What the card says; of the file it came from, its name and checksum."""
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    origin = (
        f"Converted by afdcd_hf {__version__} from `{checkpoint.name}` (SHA-256 `{digest}`), a `{network}` in the "
        "released layout; not trained anew. The image processor gives it the released input: BGR, mean-subtracted, not "
        "divided."
    )
    if row is not None:
        return row_facts(row, model, [origin, *source_notes(row)])
    data = dataset_facts(dataset) if dataset else None
    return CardFacts(model_name=name, **network_facts(model), dataset=data, notes=[origin])
