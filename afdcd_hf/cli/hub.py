"""Saved models and the Hub: `afdcd list`, `convert`, `card`, `verify`, `export`, `push` and `release`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .command import PRECISIONS, add, add_command, add_device, add_json, add_size, flag, given, hide_loading_bars, whole


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file."""
    text = "list the checkpoints that this project publishes"
    command = add_command(commands, "list", text, "[options]", run=_list, example="--dataset camvid")
    add(command, "--dataset", help="only those for this benchmark")
    add_json(command, "everything that is known of them, as JSON")

    text = "turn a released .pth into a folder for from_pretrained"
    command = add_command(
        commands, "convert", text, "--checkpoint FILE --output_dir DIR [options]", old={"--output": "--output_dir"},
        run=_convert, example="--checkpoint x.pth --network deeplabv3_resnet18 --dataset camvid --output_dir r18",
    )  # fmt: skip
    add(command, "--checkpoint", required=True, metavar="FILE", help="released .pth, or safetensors")
    add(command, "--network", help="its kind, such as deeplabv3_resnet18; an unknown one lists the known ones")
    add(command, "--dataset", help="benchmark it was trained on, for the names of its classes")
    add(command, "--classes", metavar="FILE", help="names of its classes instead, one a line")
    add(command, "--published", metavar="ID", help="the row of `afdcd list` that the file is, for the card")
    add(command, "--output_dir", required=True, help="folder to make; with --backbone_only a .safetensors file")
    flag(command, "--backbone_only", "the file holds a backbone's ImageNet weights")
    flag(command, "--overwrite", "replace an earlier conversion")

    text = (
        "render a model's card again from its card_facts.json, with what you add; a README.md written by hand stays, "
        "and the card goes beside it"
    )
    command = add_command(
        commands, "card", text, "DIR [options]", run=_card,
        example="runs/mine --repo_id me/student --license apache-2.0",
    )  # fmt: skip
    command.add_argument("folder", metavar="DIR", help="folder of a saved model")
    add(command, "--repo_id", metavar="USER/NAME", help="its repository on the Hub, for the examples")
    add(command, "--title", dest="model_name", help="title of the card (default: the folder's name)")
    add(command, "--license", help='of the weights, an identifier of the Hub such as apache-2.0, or "other"')
    add(command, "--license_name", help='name of the licence, with "other"')
    add(command, "--license_link", metavar="URL", help='its text, with "other"')
    add(command, "--base_model", metavar="HUB_ID", help="weights it started from, e.g. timm/resnet18.a1_in1k")
    add(command, "--teacher", help="name or Hub id of its teacher")
    add(command, "--dataset_title", help="name of the data set as people write it")
    add(command, "--dataset_id", metavar="USER/NAME", help="the data set on the Hub, for its table of results")
    add(command, "--reported", nargs=2, metavar=("PERCENT", "SOURCE"), help="published mIoU, and where it stands")
    add(command, "--results", metavar="JSON", help="results.json of `afdcd evaluate`, for other scores")
    repeated: dict[str, Any] = {"action": "append", "default": [], "help": "may be repeated"}
    add(command, "--picture", dest="pictures", nargs=2, metavar=("FILE", "CAPTION"), **repeated)
    add(command, "--tag", dest="tags", **repeated)
    add(command, "--note", dest="notes", action="append", default=[], help="a paragraph for the reader; likewise")
    speed = command.add_argument_group("speed on this machine")
    flag(speed, "--latency", "measure it")
    add_size(speed, "--size", "of the input; may be repeated", action="append")
    add_device(speed)
    add(speed, "--precision", choices=PRECISIONS, help="of the passes (default fp32)")

    text = (
        "check the score that a model card claims; evaluates under its protocol. Exit status 0: it holds, 1: it "
        "does not, 2: it could not be checked"
    )
    command = add_command(
        commands, "verify", text, "REPO_OR_DIR [options]", run=_verify,
        example="me/my-student --data_dir data/camvid",
    )  # fmt: skip
    command.add_argument("model", metavar="REPO_OR_DIR", help="folder or Hub id")
    add(command, "--data_dir", help="folder of the benchmark's files")
    add(command, "--tolerance", type=float, default=0.05, help="in points of mIoU %%, for other rounding")
    add(command, "--dataset", help="where the data set lies, if the card names a folder of its author's")
    add(command, "--list_file", help="the list of images, if the card names one")
    add(command, "--revision", help="branch, tag or commit on the Hub")
    add_device(command)
    add(command, "--num_workers", type=whole(0, 1024), default=0, help="processes that decode images")
    add(command, "--output", type=Path, metavar="FILE", help="also write it, with date, versions, checksums of weights")
    flag(command, "--overwrite", "replace that file")
    add_json(command, "print JSON")

    text = "write a saved model for ONNX, OpenVINO, ExecuTorch or the browser (a page), or its backbone for timm"
    command = add_command(
        commands, "export", text, "MODEL (--format FORMAT --output FILE | --web DIR) [options]", run=_export,
        example="runs/mine --format onnx --output mine.onnx",
    )  # fmt: skip
    command.add_argument("model", help="folder or Hub id")
    add(command, "--format", choices=("onnx", "openvino", "executorch", "timm"), help="what to write")
    add(command, "--output", type=Path, help="file.onnx, file.xml or file.pte to write; for timm, a new folder")
    flag(command, "--overwrite", "replace files of an earlier export of a graph")
    graph = command.add_argument_group("ONNX, OpenVINO and ExecuTorch")
    flag(graph, "--upsample", "stretch scores to the image's size within the graph")
    flag(graph, "--argmax", "give the label map instead of scores")
    add_size(graph, "--size", "fix the image's size (default: any size; ExecuTorch needs one)")
    add(graph, "--opset", type=whole(1, 100), help="version of ONNX's operators (default: the exporter's choice)")
    flag(graph, "--fp16", "half precision; halves the file")
    flag(graph, "--with_preprocessing", "take RGB images of 8 bits (batch, height, width, 3): normalise in the graph")
    page = command.add_argument_group("page for the browser")
    add(page, "--web", type=Path, metavar="DIR", help="new folder for it; takes --size, --opset and --fp16 as well")
    text = (
        "folder of the npm package, or https address of its dist/ (default: node_modules/onnxruntime-web, else a CDN)"
    )
    add(page, "--onnxruntime_web", metavar="DIR_OR_URL", help=text)
    numbers = command.add_argument_group("int8 and measurements")
    flag(numbers, "--int8", "also write file_int8.onnx, and compare size and speed")
    add(numbers, "--calibration_dataset", dest="dataset", help="benchmark, folder or Hub id; also evaluated on")
    add(numbers, "--data_dir", help="folder of the benchmark's files")
    add(numbers, "--calibration_split", help="default train")
    add(numbers, "--calibration_samples", type=whole(), help="images, spread evenly (default 32)")
    flag(numbers, "--float_ends", "leave the first and the last layer of the int8 graph in float")
    add(numbers, "--evaluate_split", metavar="SPLIT", help="measure mean IoU of PyTorch and graphs on this split")
    add(numbers, "--max_samples", type=whole(), help="only on its first so many images")

    text = "publish a model's folder on the Hub; the model, its source and its card, nothing else"
    command = add_command(
        commands, "push", text, "DIR REPO_ID [options]", run=_push, example="runs/mine me/my-student --dry_run"
    )
    command.add_argument("folder", metavar="DIR", help="folder of a saved model")
    command.add_argument("repo_id", metavar="REPO_ID", help="USER/NAME; made where there is no such repository")
    flag(command, "--private", "make the repository a private one")
    add(command, "--revision", help="branch to push to (default main); made where there is none")
    flag(command, "--dry_run", "show every file and its size, and send nothing")
    flag(command, "--overwrite_card", "replace a README.md on the Hub that was written by hand")

    text = (
        "publish the zoo from released files; convert, evaluate where the data is there, compare with the reported "
        "score, render the card, push, tag and collect. Exit status 1: a model failed"
    )
    command = add_command(
        commands, "release", text, "--config YAML [--publish]", run=_release, example="--config releases.yaml"
    )
    add(command, "--config", required=True, metavar="YAML", help="what to publish; docs/publish.md has an example")
    flag(command, "--publish", "do it, and do not only tell what would be done")


def _list(dataset: str | None, as_json: bool) -> None:
    from ..hub.zoo import select, to_json, to_table

    rows = select(dataset)
    print(to_json(rows) if as_json else to_table(rows))


def _convert(
    checkpoint: str, network: str | None, output_dir: str, backbone_only: bool, overwrite: bool, **options: str | None
) -> None:
    hide_loading_bars()
    if backbone_only:
        from ..hub.conversion import convert_backbone

        if named := given(options):
            raise ValueError(
                f"--{next(iter(named))} has no place with --backbone_only: a backbone has no classes of a dataset."
            )
        if network is None:
            raise ValueError("--network is needed: resnet18, resnet50, resnet101 or mobilenetv2.")
        file = convert_backbone(checkpoint, network, output_dir, overwrite=overwrite)
        print(f"{file} is ready for --pretrained_backbone")
        return
    from ..hub.conversion import convert_checkpoint, read_class_names
    from ..hub.zoo import get_checkpoint

    published, dataset, classes = options["published"], options["dataset"], options["classes"]
    row = get_checkpoint(published) if published else None
    network = network or (row.network if row else None)
    if network is None:
        raise ValueError("--network is needed, such as deeplabv3_resnet18, or --published with a row of `afdcd list`.")
    folder = convert_checkpoint(
        checkpoint,
        network,
        output_dir,
        dataset=dataset or (row.dataset if row else None),
        classes=read_class_names(classes) if classes else None,
        published=published,
        overwrite=overwrite,
    )
    print(f"{folder} is ready for from_pretrained; `afdcd evaluate --model {folder} ...` scores it")


def _card(
    folder: str,
    dataset_title: str | None,
    dataset_id: str | None,
    reported: list[str] | None,
    latency: bool,
    size: list[list[int]] | None,
    device: str | None,
    precision: str | None,
    **changes: Any,
) -> None:
    from ..hub.card_facts import ReportedResults
    from ..hub.folder_facts import measure_latency, update_card

    speed = given({"size": size, "device": device, "precision": precision})
    if speed and not latency:
        raise ValueError(f"--{next(iter(speed))} is for --latency, which is missing.")
    hide_loading_bars()
    if reported:
        changes["reported"] = ReportedResults(_fraction(reported[0]), reported[1])
    if latency:
        sizes = [(height, width) for height, width in size] if size else None
        changes["latency"] = measure_latency(folder, sizes, device=device, precision=precision or "fp32")
    dataset = given({"pretty_name": dataset_title, "hub_id": dataset_id})
    print(f"written: {update_card(folder, dataset=dataset, **given(changes))}")


def _fraction(percent: str) -> float:
    try:
        value = float(percent)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise ValueError(f"--reported {percent}: a percentage from 0 to 100 is expected, such as 76.43.")
    return value / 100


def _verify(model: str, tolerance: float, as_json: bool, output: Path | None, overwrite: bool, **options: Any) -> int:
    from ..atomic_io import check_can_write
    from ..hub.verify import format_verification, statement, verify, write_statement

    if output is not None:  # before the evaluation
        if output.exists() and not overwrite:
            raise FileExistsError(f"{output} exists; give another --output, or --overwrite.")
        check_can_write(output)
    hide_loading_bars()
    done = verify(model, tolerance=tolerance / 100, **options)
    if output is not None:
        write_statement(output, done)
    print(json.dumps(statement(done), indent=2) if as_json else format_verification(done))
    return 0 if done.holds else 1


def _export(
    model: str, format: str | None, output: Path | None, web: Path | None, size: list[int] | None, **options: Any
) -> None:
    hide_loading_bars()
    options = given({**options, "size": tuple(size) if size else None})
    if web is not None:
        others = given({"format": format, "output": output, **options})
        if stray := others.keys() - {"size", "opset", "fp16", "onnxruntime_web"}:
            raise ValueError(
                f"--{min(stray)} is not for --web, which takes --size, --opset, --fp16, --onnxruntime_web."
            )
        from ..export.web import export_saved_page

        print(export_saved_page(model, web, **options))
        return
    if format is None or output is None:
        raise ValueError("Say what to write and where: --format and --output, or --web DIR.")
    if "onnxruntime_web" in options:
        raise ValueError("--onnxruntime_web is for --web: add it.")
    if format != "timm":
        from ..export.command import export_saved_graph

        export_saved_graph(model, output, format, **options)
        return
    if options:
        raise ValueError(f"--{next(iter(options))} is not for --format timm, which only needs --output.")
    from ..export.timm_backbone import export_timm_backbone
    from ..inference.loading import load_segmenter

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
