"""Saved models and the Hub: `afdcd list`, `convert`, `card`, `verify`, `export`, `push` and `release`."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from .command import PRECISIONS, add_command, check_output, given, hide_loading_bars, refuse, whole


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file."""
    new = partial(add_command, commands)
    command = new("list", "list the checkpoints that this project publishes", "[options]", _list, "--dataset camvid")
    command.add("--dataset", help="only those for this benchmark")
    command.flag("--json", "everything that is known of them, as JSON", dest="as_json")

    command = new(
        "convert", "turn a released .pth into a folder for from_pretrained",
        "--checkpoint FILE --output_dir DIR [options]", _convert,
        "--checkpoint x.pth --network deeplabv3_resnet18 --dataset camvid --output_dir r18",
        old={"--output": "--output_dir"},
    )  # fmt: skip
    command.add("--checkpoint", required=True, metavar="FILE", help="released .pth, or safetensors")
    command.add("--network", help="its kind, such as deeplabv3_resnet18; an unknown one lists the known ones")
    command.add("--dataset", help="benchmark it was trained on, for the names of its classes")
    command.add("--classes", metavar="FILE", help="names of its classes instead, one a line")
    command.add("--published", metavar="ID", help="the row of `afdcd list` that the file is, for the card")
    command.add("--output_dir", required=True, help="new folder; with --backbone_only a new .safetensors file")
    command.flag("--backbone_only", "the file holds a backbone's ImageNet weights")

    text = "render a model's card again from its card_facts.json, with what you add; beside a README.md of yours"
    command = new("card", text, "DIR [options]", _card, "runs/mine --repo_id me/student --license apache-2.0")
    command.add_argument("folder", metavar="DIR", help="folder of a saved model")
    command.add("--repo_id", metavar="USER/NAME", help="its repository on the Hub, for the examples")
    command.add("--title", dest="model_name", help="title of the card (default: the folder's name)")
    command.add("--license", help='of the weights, an identifier of the Hub such as apache-2.0, or "other"')
    command.add("--license_name", help='name of the licence, with "other"')
    command.add("--license_link", metavar="URL", help='its text, with "other"')
    command.add("--base_model", metavar="HUB_ID", help="weights it started from, e.g. timm/resnet18.a1_in1k")
    command.add("--teacher", help="name or Hub id of its teacher")
    command.add("--dataset_title", help="name of the data set as people write it")
    command.add("--dataset_id", metavar="USER/NAME", help="the data set on the Hub, for its table of results")
    command.add("--reported", nargs=2, metavar=("PERCENT", "SOURCE"), help="published mIoU, and where it stands")
    command.add("--results", metavar="JSON", help="results.json of `afdcd evaluate`, for other scores")
    repeated: dict[str, Any] = {"action": "append", "default": [], "help": "may be repeated"}
    command.add("--picture", dest="pictures", nargs=2, metavar=("FILE", "CAPTION"), **repeated)
    command.add("--tag", dest="tags", **repeated)
    command.add("--note", dest="notes", action="append", default=[], help="a paragraph for the reader; likewise")
    command.group("speed on this machine")
    command.flag("--latency", "measure it")
    command.add_size("--size", "of the input; may be repeated", action="append")
    command.add_device()
    command.add("--precision", choices=PRECISIONS, help="of the passes (default fp32)")

    text = "check the score that a model card claims; exit status 0: it holds, 1: it does not, 2: it cannot be checked"
    command = new("verify", text, "REPO_OR_DIR [options]", _verify, "me/my-student --data_dir data/camvid")
    command.add_argument("model", metavar="REPO_OR_DIR", help="folder or Hub id")
    command.add("--data_dir", help="folder of the benchmark's files")
    command.add("--tolerance", type=float, default=0.05, help="in points of mIoU %%, for other rounding")
    command.add("--dataset", help="where the data set lies, if the card names a folder of its author's")
    command.add("--list_file", help="the list of images, if the card names one")
    command.add("--revision", help="branch, tag or commit on the Hub")
    command.add_device()
    command.add("--num_workers", type=whole(0, 1024), default=0, help="processes that decode images")
    command.add("--output", type=Path, metavar="FILE", help="also write it, with date, versions, checksums of weights")
    command.flag("--overwrite", "replace that file")
    command.flag("--json", "print JSON", dest="as_json")

    command = new(
        "export", "write a saved model for ONNX, OpenVINO, ExecuTorch or the browser, or its backbone for timm",
        "MODEL (--format FORMAT --output FILE | --web DIR) [options]", _export,
        "runs/mine --format onnx --output mine.onnx",
    )  # fmt: skip
    command.add_argument("model", help="folder or Hub id")
    command.add("--format", choices=("onnx", "openvino", "executorch", "timm"), help="what to write")
    command.add("--output", type=Path, help="file.onnx, file.xml or file.pte to write; for timm, a new folder")
    command.flag("--overwrite", "replace files of an earlier export of a graph")
    command.group("ONNX, OpenVINO and ExecuTorch")
    command.flag("--upsample", "stretch scores to the image's size within the graph")
    command.flag("--argmax", "give the label map instead of scores")
    command.add_size("--size", "fix the image's size (default: any size; ExecuTorch needs one)")
    command.add("--opset", type=whole(1, 100), help="version of ONNX's operators (default: the exporter's choice)")
    command.flag("--fp16", "half precision; halves the file")
    command.flag("--with_preprocessing", "take RGB images of 8 bits (batch, height, width, 3): normalise in the graph")
    command.group("page for the browser")
    command.add("--web", type=Path, metavar="DIR", help="new folder for it; takes --size, --opset and --fp16 as well")
    text = "folder of the npm package, or https address of its dist/ (default: node_modules, else a CDN)"
    command.add("--onnxruntime_web", metavar="DIR_OR_URL", help=text)
    command.group("int8 and measurements")
    command.flag("--int8", "also write file_int8.onnx, and compare size and speed")
    command.add("--calibration_dataset", dest="dataset", help="benchmark, folder or Hub id; also evaluated on")
    command.add("--data_dir", help="folder of the benchmark's files")
    command.add("--calibration_split", help="default train")
    command.add("--calibration_samples", type=whole(), help="images, spread evenly (default 32)")
    command.flag("--float_ends", "leave the first and the last layer of the int8 graph in float")
    command.add("--evaluate_split", metavar="SPLIT", help="measure mean IoU of PyTorch and graphs on this split")
    command.add("--max_samples", type=whole(), help="only on its first so many images")

    text = "publish a model's folder on the Hub; the model, its source and its card, nothing else"
    command = new("push", text, "DIR REPO_ID [options]", _push, "runs/mine me/my-student --dry_run")
    command.add_argument("folder", metavar="DIR", help="folder of a saved model")
    command.add_argument("repo_id", metavar="REPO_ID", help="USER/NAME; made where there is no such repository")
    command.flag("--private", "make the repository a private one")
    command.add("--revision", help="branch to push to (default main); made where there is none")
    command.flag("--dry_run", "show every file and its size, and send nothing")
    command.flag("--overwrite_card", "replace a README.md on the Hub that was written by hand")

    text = "publish the zoo from released files; convert, evaluate, render cards, push, tag. Exit status 1: one failed"
    command = new("release", text, "--config YAML [--publish]", _release, "--config releases.yaml")
    command.add("--config", required=True, metavar="YAML", help="what to publish; docs/publish.md has an example")
    command.flag("--publish", "do it, and do not only tell what would be done")


def _list(dataset: str | None, as_json: bool) -> None:
    from ..hub.zoo import select, to_json, to_table

    rows = select(dataset)
    print(to_json(rows) if as_json else to_table(rows))


def _convert(checkpoint: str, network: str | None, output_dir: str, backbone_only: bool, **options: str | None) -> None:
    from ..hub.conversion import convert_backbone, convert_checkpoint, read_class_names
    from ..hub.zoo import get_checkpoint

    hide_loading_bars()
    published, dataset, classes = options["published"], options["dataset"], options["classes"]
    if backbone_only:
        refuse(options, "has no place with --backbone_only: a backbone has no classes of a dataset.")
    row = get_checkpoint(published) if published else None
    network = network or (row.network if row else None)
    if network is None:
        raise ValueError("--network is needed, such as deeplabv3_resnet18, or --published with a row of `afdcd list`.")
    if backbone_only:
        file = convert_backbone(checkpoint, network, output_dir)
        print(f"{file} is ready for --pretrained_backbone")
        return
    folder = convert_checkpoint(
        checkpoint,
        network,
        output_dir,
        dataset=dataset or (row.dataset if row else None),
        classes=read_class_names(classes) if classes else None,
        published=published,
    )
    print(f"{folder} is ready for from_pretrained; `afdcd evaluate --model {folder} ...` scores it")


def _card(
    folder: str, dataset_title: str | None, dataset_id: str | None, reported: list[str] | None, latency: bool,
    size: list[list[int]] | None, device: str | None, precision: str | None, **changes: Any,
) -> None:  # fmt: skip
    from ..hub.card_facts import ReportedResults
    from ..hub.folder_facts import measure_latency, update_card

    if not latency:
        refuse({"size": size, "device": device, "precision": precision}, "is for --latency, which is missing.")
    hide_loading_bars()
    if reported:
        percent = float(reported[0]) if reported[0].replace(".", "", 1).isdigit() else -1.0
        if not 0 <= percent <= 100:
            raise ValueError(f"--reported {reported[0]}: a percentage from 0 to 100 is expected, such as 76.43.")
        changes["reported"] = ReportedResults(percent / 100, reported[1])
    if latency:
        sizes = [(height, width) for height, width in size] if size else None
        changes["latency"] = measure_latency(folder, sizes, device=device, precision=precision or "fp32")
    dataset = given({"pretty_name": dataset_title, "hub_id": dataset_id})
    print(f"written: {update_card(folder, dataset=dataset, **given(changes))}")


def _verify(model: str, tolerance: float, as_json: bool, output: Path | None, overwrite: bool, **options: Any) -> int:
    from ..atomic_io import check_can_write
    from ..hub.verify import format_verification, statement, verify
    from ..structured_files import write_json

    check_output(output, overwrite)
    if output is not None:  # before the evaluation
        check_can_write(output)
    hide_loading_bars()
    done = verify(model, tolerance=tolerance / 100, **options)
    if output is not None:
        write_json(output, statement(done))
    print(json.dumps(statement(done), indent=2) if as_json else format_verification(done))
    return 0 if done.holds else 1


def _export(
    model: str, format: str | None, output: Path | None, web: Path | None, size: list[int] | None, **options: Any
) -> None:
    hide_loading_bars()
    options = given({**options, "size": tuple(size) if size else None})
    if web is not None:
        others, taken = {"format": format, "output": output, **options}, ("size", "opset", "fp16", "onnxruntime_web")
        stray = {name: value for name, value in others.items() if name not in taken}
        refuse(stray, "is not for --web, which takes --size, --opset, --fp16, --onnxruntime_web.")
        from ..export.web import export_saved_page

        print(export_saved_page(model, web, **options))
        return
    if format is None or output is None:
        raise ValueError("Say what to write and where: --format and --output, or --web DIR.")
    refuse({"onnxruntime_web": options.get("onnxruntime_web")}, "is for --web: add it.")
    if format != "timm":
        from ..export.command import export_saved_graph

        export_saved_graph(model, output, format, **options)
        return
    refuse(options, "is not for --format timm, which only needs --output.")
    from ..export.timm_backbone import export_timm_backbone
    from ..inference.graphs import load_segmenter

    folder, lacking = export_timm_backbone(*load_segmenter(model), output)
    print(f'written: {folder}; timm.create_model("local-dir:{folder}", pretrained=True, features_only=True)')
    if lacking:
        print(f"layers of the plain timm model that a segmenter does not have: {', '.join(lacking)}")


def _push(folder: str, repo_id: str, **options: Any) -> None:
    from ..hub.push import push_folder

    plan = push_folder(folder, repo_id, **options)
    width = max(len(f"{file.size:,}") for file in plan.files)
    for file in plan.files:
        print(f"{file.size:>{width},} bytes  {file.name}")
    print(f"{sum(file.size for file in plan.files):>{width},} bytes in {len(plan.files)} files")
    if plan.left_out:
        print(f"not uploaded: {', '.join(plan.left_out)}")
    for note in plan.notes:
        print(f"note: {note}")
    print(f"pushed: {plan.commit.commit_url}" if plan.commit else f"nothing was sent to {plan.repo_id} (dry run)")


def _release(config: str, publish: bool) -> int:
    from ..hub.release import read_release_plan, release, to_markdown

    hide_loading_bars()
    found = release(read_release_plan(config), dry_run=not publish)
    print(to_markdown(found) + ("" if publish else "\n\nNothing was done (dry run); --publish does it."))
    return 1 if any(one.problem for one in found) else 0
