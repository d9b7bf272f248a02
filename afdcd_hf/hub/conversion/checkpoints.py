"""A released segmentation checkpoint -> a folder for `from_pretrained`."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ...data.benchmarks import BENCHMARKS, get_benchmark
from ...models.image_processing_afdcd import RELEASED_INPUT, AfDcdImageProcessor
from ...models.loading import load_model
from ...models.modeling_afdcd import AfDcdForSemanticSegmentation
from ..facts_file import write_facts
from ..model_card import write_card
from ..released_networks import RELEASED_NETWORKS, get_released_network
from ..zoo import CheckpointRow, get_checkpoint
from .accounting import check_tensors
from .facts import conversion_facts
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

    Every tensor of the file must belong to the network and every one of the network must be in the file. The folder is
    read back and compared with the file before it appears under its name.

    Args:
        checkpoint: `.pth` (plain, nested under `state_dict` or its like, with or without `module.` before the names)
            or `.safetensors`.
        network: Kind of network, a key of `RELEASED_NETWORKS`, such as "deeplabv3_resnet18".
        output: Folder to make.
        dataset: Benchmark it was trained on, which gives the classes their names.
        classes: Class names by id, instead of a benchmark. With neither, classes are called LABEL_0, LABEL_1, ...
        published: Row of `zoo.CHECKPOINTS` that the file is, for the card: reported score, source, teacher.
        overwrite: Replace the files of an earlier conversion. A README that somebody wrote stays in any case.

    Returns:
        The folder.

    Raises:
        ValueError: Unknown names; a file that cannot be read as data; unknown, missing, misshapen or non-finite
            tensors; another number of classes than given.
        FileNotFoundError: There is no such checkpoint.
        FileExistsError: The folder has files already.
    """
    row = _published_row(published, network, dataset)
    output = Path(output)
    _check_output(output, overwrite)
    _check_choice(network, dataset, classes)
    tensors = read_tensors(checkpoint)
    what = f"{Path(checkpoint).name} as {network}"
    names = _class_names(tensors, network, dataset, classes, what)
    model = _filled_network(network, names, tensors, what)
    with _whole_folder(output) as part:
        model.save_pretrained(part)
        AfDcdImageProcessor(**RELEASED_INPUT, align_corners=model.config.align_corners).save_pretrained(part)
        _check_written(part, model.state_dict())
        facts = conversion_facts(
            row.repo_id.split("/")[-1] if row else output.absolute().name,
            model,
            Path(checkpoint),
            network=network,
            dataset=dataset,
            row=row,
        )
        write_facts(part, facts)
    write_card(output, facts)
    logger.info("%d tensors of %s are in %s", len(tensors), checkpoint, output)
    return output


def likely_network(tensors: Mapping[str, Tensor]) -> str | None:
    """The kind of released network with exactly these tensors, whatever its number of classes."""
    for network in RELEASED_NETWORKS:
        expected = expected_shapes(network, 1)
        if expected.keys() == tensors.keys() and all(
            # the classifiers' first axis is the number of classes
            tensors[name].shape == shape or (shape[:1] == (1,) and tensors[name].shape[1:] == shape[1:])
            for name, shape in expected.items()
        ):
            return network
    return None


def expected_shapes(network: str, num_labels: int) -> dict[str, torch.Size]:
    """Shape by released name of every tensor of a released network."""
    ours = _empty_network(network, tuple(map(str, range(num_labels)))).state_dict()
    return {released: ours[name].shape for released, name in released_names(ours, network).items()}


def _empty_network(network: str, names: Sequence[str]) -> AfDcdForSemanticSegmentation:
    with torch.device("meta"):
        return AfDcdForSemanticSegmentation(get_released_network(network).config(tuple(names)))


def _filled_network(
    network: str, names: Sequence[str], tensors: Mapping[str, Tensor], what: str
) -> AfDcdForSemanticSegmentation:
    model = _empty_network(network, names)
    ours = model.state_dict()
    renamed = released_names(ours, network)
    try:
        check_tensors(tensors, {released: ours[name].shape for released, name in renamed.items()}, what)
    except ValueError as error:
        raise ValueError(f"{error} {_advice(tensors, network)}") from error
    # Copies: tensors of a file may be views of one another, which safetensors does not write.
    values = {
        renamed[released]: tensor.to(ours[renamed[released]].dtype, copy=True).contiguous()
        for released, tensor in tensors.items()
    }
    model.load_state_dict(values, assign=True)
    return model.eval()


def _advice(tensors: Mapping[str, Tensor], network: str) -> str:
    likely = likely_network(tensors)
    if likely and likely != network:
        return f"The file is a {likely}: give --network {likely}."
    if not any(name.startswith(("head.", "auxlayer.")) for name in tensors):
        return "It holds no head: convert a backbone's ImageNet weights with --backbone-only."
    return f"The released networks are {', '.join(RELEASED_NETWORKS)}."


def _published_row(published: str | None, network: str, dataset: str | None) -> CheckpointRow | None:
    if published is None:
        return None
    row = get_checkpoint(published)
    if (network, dataset) != (row.network, row.dataset):
        raise ValueError(
            f"{published} is a {row.network} for {row.dataset}, not a {network} for {dataset}: give those, or leave "
            "--published out."
        )
    return row


def _check_choice(network: str, dataset: str | None, classes: Sequence[str] | None) -> None:
    """What can be found wrong before a large file is read."""
    get_released_network(network)
    if dataset is not None:
        get_benchmark(dataset)
        if classes is not None:
            raise ValueError("Give a dataset or class names, not both: the dataset has names of its own.")
    if classes is not None and len(set(classes)) != len(classes):
        twice = sorted({name for name in classes if list(classes).count(name) > 1})
        raise ValueError(f"Class names occur twice: {', '.join(twice)}.")


def _class_names(
    tensors: Mapping[str, Tensor], network: str, dataset: str | None, classes: Sequence[str] | None, what: str
) -> tuple[str, ...]:
    """Names for the outputs that the file has, or whose number is as wrong as `check_tensors` will say."""
    given = get_benchmark(dataset).classes if dataset else classes
    (classifier,) = released_names(["head.classifier.weight"], network)
    if classifier not in tensors or tensors[classifier].ndim != 4:
        return tuple(given or ("LABEL_0",))
    count = tensors[classifier].shape[0]
    if given is None:
        logger.warning("Without a dataset or class names the %d classes are called LABEL_0, LABEL_1, ...", count)
        return tuple(f"LABEL_{index}" for index in range(count))
    if len(given) != count:
        fitting = [name for name, row in BENCHMARKS.items() if row.num_labels == count]
        hint = f"benchmarks with {count}: {', '.join(fitting)}" if fitting else f"give the names of its {count} classes"
        raise ValueError(f"{what} has {count} classes, {dataset or 'the names given'} {len(given)}; {hint}.")
    return tuple(given)


def _check_output(output: Path, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file; give a folder.")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise FileExistsError(f"{output} has files already; give another folder, or --overwrite to replace them.")


def _check_written(folder: Path, expected: Mapping[str, Tensor]) -> None:
    """Read the folder as users will, and compare every tensor to the bit."""
    written = load_model(str(folder)).state_dict()
    differing = [name for name in expected if name not in written or not torch.equal(written[name], expected[name])]
    if differing or written.keys() != expected.keys():
        raise ValueError(f"{folder} reads back differently, e.g. {differing[:3]}; is the disk in order?")


@contextmanager
def _whole_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` to write to: its files move there at the end, or vanish if anything goes wrong."""
    output.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=output.parent, prefix=".converting-"))
    try:
        yield part
        output.mkdir(exist_ok=True)
        # The weights last: without them no folder loads, old or new, halfway.
        for file in sorted(part.iterdir(), key=lambda file: file.suffix == ".safetensors"):
            os.replace(file, output / file.name)
    finally:
        shutil.rmtree(part)
