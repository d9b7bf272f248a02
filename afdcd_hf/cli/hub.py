"""Saved models and the Hub: `afdcd list`, `convert`, `card`, `verify`, `export`, `push` and `release`."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from .command import (
    PRECISIONS,
    add_command,
    check_output,
    data_choice,
    given_options,
    hide_loading_bars,
    integer,
    reject,
)


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file."""
    new = partial(add_command, commands)
    command = new("list", "list the checkpoints that this project publishes", "[options]", _list, "--dataset camvid")
    command.add("--dataset", help="only checkpoints for this benchmark")
    command.flag("--json", "print all details as JSON", dest="as_json")

    command = new(
        "convert", "convert a released .pth to a folder for from_pretrained",
        "--checkpoint FILE --output_dir DIR [options]", _convert,
        "--checkpoint x.pth --network deeplabv3_resnet18 --dataset camvid --output_dir r18",
    )  # fmt: skip
    command.add("--checkpoint", required=True, metavar="FILE", help="released .pth or .safetensors file")
    command.add("--network", help="architecture, such as deeplabv3_resnet18; an unknown name lists all")
    command.add("--dataset", help="benchmark the model was trained on, for its class names")
    command.add("--classes", metavar="FILE", help="file with the class names instead, one per line")
    command.add("--published", metavar="ID", help="the file's row in `afdcd list`, for the card")
    text = "new folder to write; with --backbone_only, --output names a new .safetensors file"
    command.add("--output_dir", "--output", metavar="PATH", required=True, help=text)
    command.flag("--backbone_only", "convert a file with a backbone's ImageNet weights to one --output file")

    text = "render a model's card again from its card_facts.json and your additions; a hand-written one is kept"
    command = new("card", text, "DIR [options]", _card, "runs/mine --repo_id me/student --license apache-2.0")
    command.add_argument("folder", metavar="DIR", help="folder of a saved model")
    command.add("--repo_id", metavar="USER/NAME", help="the model's repository on the Hub, for the examples")
    command.add("--title", dest="model_name", help="title of the card (default: the folder's name)")
    command.add("--license", help='licence of the weights: a Hub identifier such as apache-2.0, or "other"')
    command.add("--license_name", help='name of the licence, with "other"')
    command.add("--license_link", metavar="URL", help='link to its text, with "other"')
    command.add("--base_model", metavar="HUB_ID", help="weights that training started from, e.g. timm/resnet18.a1_in1k")
    command.add("--teacher", help="name or Hub id of the teacher")
    command.add("--dataset_title", help="display name of the dataset")
    command.add("--dataset_id", metavar="USER/NAME", help="Hub id of the dataset, for the card's evaluation results")
    command.add("--reported", nargs=2, metavar=("PERCENT", "SOURCE"), help="published mIoU and its source")
    command.add("--results", metavar="JSON", help="results.json of `afdcd evaluate` whose scores to show instead")
    repeated: dict[str, Any] = {"action": "append", "default": []}
    command.add("--picture", dest="pictures", nargs=2, metavar=("FILE", "CAPTION"), help="may be repeated", **repeated)
    command.add("--tag", dest="tags", metavar="TAG", help="tag to add; may be repeated", **repeated)
    command.add("--note", dest="notes", metavar="TEXT", help="paragraph to add; may be repeated", **repeated)
    command.group("speed on this machine")
    command.flag("--latency", "measure the latency")
    command.add_size("--size", "input size; may be repeated", action="append")
    command.add_device()
    command.add("--precision", choices=PRECISIONS, help="precision of the forward passes (default fp32)")

    text = "check the score that a model card claims; exit status 0: reproduced, 1: not, 2: cannot be checked"
    command = new("verify", text, "REPO_OR_DIR [options]", _verify, "me/my-student --data_dir data/camvid")
    command.add_argument("model", metavar="REPO_OR_DIR", help="folder or Hub id")
    command.add("--data_dir", help="folder of the benchmark's files")
    command.add("--tolerance", type=float, default=0.05, help="allowed difference in percentage points of mIoU")
    command.add("--dataset", help="path of the dataset, if the card names a folder on its author's machine")
    command.add("--list_file", help="list of images, if the card names one")
    command.add("--revision", help="branch, tag or commit on the Hub")
    command.add_device()
    command.add("--num_workers", type=integer(0, 1024), default=0, help="processes that decode images")
    command.add("--output", type=Path, metavar="FILE", help="also write the result, with date, versions and checksums")
    command.flag("--overwrite", "overwrite an existing --output file")
    command.flag("--json", "print JSON", dest="as_json")

    command = new(
        "export", "write a saved model for ONNX, OpenVINO, ExecuTorch or the browser, or its backbone for timm",
        "MODEL (--format FORMAT --output FILE | --web DIR) [options]", _export,
        "runs/mine --format onnx --output mine.onnx",
    )  # fmt: skip
    command.add_argument("model", help="folder or Hub id")
    command.add("--format", choices=("onnx", "openvino", "executorch", "timm"), help="format to write")
    command.add("--output", type=Path, help="file.onnx, file.xml or file.pte to write; for timm, a new folder")
    command.flag("--overwrite", "overwrite the files of an earlier graph export")
    command.group("ONNX, OpenVINO and ExecuTorch")
    command.flag("--upsample", "upsample the logits to the image's size in the graph")
    command.flag("--argmax", "output the label map instead of logits")
    command.add_size("--size", "fixed image size (default: any size; ExecuTorch needs one)")
    command.add("--opset", type=integer(1, 100), help="ONNX opset version (default: the exporter's choice)")
    command.flag("--fp16", "half precision; halves the file size")
    command.flag("--with_preprocessing", "take uint8 RGB images (batch, height, width, 3); normalise in the graph")
    command.group("page for the browser")
    command.add("--web", type=Path, metavar="DIR", help="new folder; also takes --size, --opset and --fp16")
    text = "folder of the npm package, or https URL of its dist/ (default: node_modules, else a CDN)"
    command.add("--onnxruntime_web", metavar="DIR_OR_URL", help=text)
    command.group("int8 and measurements")
    command.flag("--int8", "also write file_int8.onnx, and compare size and speed")
    command.add("--calibration_dataset", dest="dataset", help="benchmark, folder or Hub id; also used for evaluation")
    command.add("--data_dir", help="folder of the benchmark's files")
    command.add("--calibration_split", help="split to calibrate on (default train)")
    command.add("--calibration_samples", type=integer(), help="number of images, spread evenly (default 32)")
    command.flag("--float_ends", "keep the first and the last layer of the int8 graph in float")
    command.add("--evaluate_split", metavar="SPLIT", help="measure mean IoU of PyTorch and the graphs on this split")
    command.add_data()

    text = "publish a model's folder on the Hub; uploads the model, its source and its card, nothing else"
    command = new("push", text, "DIR REPO_ID [options]", _push, "runs/mine me/my-student --dry_run")
    command.add_argument("folder", metavar="DIR", help="folder of a saved model")
    command.add_argument("repo_id", metavar="REPO_ID", help="USER/NAME; created if it does not exist")
    command.flag("--private", "create the repository as private")
    command.add("--revision", help="branch to push to (default main); created if it does not exist")
    command.flag("--dry_run", "list every file with its size, and upload nothing")
    command.flag("--overwrite_card", "overwrite a hand-written README.md on the Hub")

    text = "publish the zoo from released files; convert, evaluate, render cards, push, tag. Exit status 1: one failed"
    command = new("release", text, "--config YAML [--publish]", _release, "--config releases.yaml")
    command.add("--config", required=True, metavar="YAML", help="what to publish; docs/publish.md has an example")
    command.flag("--publish", "publish; without it, only print what would be done")


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
        reject(options, "cannot be used with --backbone_only: a backbone has no classes.")
    row = get_checkpoint(published) if published else None
    network = network or (row.network if row else None)
    if network is None:
        raise ValueError("Give --network, such as deeplabv3_resnet18, or --published with an id from `afdcd list`.")
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
        reject({"size": size, "device": device, "precision": precision}, "can only be used with --latency.")
    hide_loading_bars()
    if reported:
        percent = float(reported[0]) if reported[0].replace(".", "", 1).isdigit() else -1.0
        if not 0 <= percent <= 100:
            raise ValueError(f"--reported {reported[0]} must be a percentage from 0 to 100, such as 76.43.")
        changes["reported"] = ReportedResults(percent / 100, reported[1])
    if latency:
        sizes = [(height, width) for height, width in size] if size else None
        changes["latency"] = measure_latency(folder, sizes, device=device, precision=precision or "fp32")
    dataset = given_options({"pretty_name": dataset_title, "hub_id": dataset_id})
    print(f"written: {update_card(folder, dataset=dataset, **given_options(changes))}")


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
    options = given_options({**options, "size": tuple(size) if size else None})
    if web is not None:
        others, taken = {"format": format, "output": output, **options}, ("size", "opset", "fp16", "onnxruntime_web")
        stray = {name: value for name, value in others.items() if name not in taken}
        reject(stray, "cannot be used with --web, which takes --size, --opset, --fp16 and --onnxruntime_web.")
        from ..export.web import export_saved_page

        print(export_saved_page(model, web, **options))
        return
    if format is None or output is None:
        raise ValueError("Give the format and the file to write: --format and --output, or --web DIR.")
    reject({"onnxruntime_web": options.get("onnxruntime_web")}, "can only be used with --web.")
    if format != "timm":
        from ..export.command import export_saved_graph

        choice = data_choice(options.pop("dataset", ""), options.pop("evaluate_split", ""), options)
        export_saved_graph(model, output, format, choice=choice, **options)
        return
    reject(options, "cannot be used with --format timm, which only needs --output.")
    from ..export.timm_backbone import export_timm_backbone
    from ..inference.graphs import load_segmenter

    folder, lacking = export_timm_backbone(*load_segmenter(model), output)
    print(f'written: {folder}; timm.create_model("local-dir:{folder}", pretrained=True, features_only=True)')
    if lacking:
        print(f"layers of the plain timm model that the segmenter lacks: {', '.join(lacking)}")


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
    print(to_markdown(found) + ("" if publish else "\n\nNothing was published (dry run); add --publish."))
    return 1 if any(row.problem for row in found) else 0
