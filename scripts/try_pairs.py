"""Distil every kind of teacher to students with every head and a few losses, three steps each; print a Markdown table.

    python scripts/try_pairs.py [--output pairs.md] [--teachers SegFormer ...] [--heads fpn ...]

Runs `afdcd distill` with tiny random models in a temporary folder, on 64x64 crops of generated scenes.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import torch  # noqa: E402
import transformers as hf  # noqa: E402

from afdcd_hf import AfDcdForSemanticSegmentation, AfDcdImageProcessor  # noqa: E402
from afdcd_hf.cli import main as afdcd  # noqa: E402
from afdcd_hf.data import BENCHMARKS  # noqa: E402
from afdcd_hf.models.heads import HEADS  # noqa: E402

SIDE = 64
TINY = {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 32]}
LOSSES = {
    "kd": ["--kd.weight", "1"],
    "af_dcd": [
        *("--af_dcd.feature_weight", "1", "--af_dcd.contrast_weight", "0.05", "--af_dcd.reduction", "mean"),
        *("--af_dcd.pool_size", "1", "--af_dcd.patch_size", "2"),
    ],
    "cwd": ["--cwd.map_weight", "1", "--cwd.logits_weight", "0"],
    "fitnet": ["--fitnet.weight", "1"],
    "mgd": ["--mgd.weight", "1e-4"],
}


def cnn() -> torch.nn.Module:
    sizes = {"backbone": "resnet18", "backbone_kwargs": TINY, "head": "deeplabv3", "head_channels": 16}
    return AfDcdForSemanticSegmentation.from_backbone(**sizes, num_labels=8, pretrained_backbone=False)


def segformer() -> torch.nn.Module:
    sizes = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 16, 32], "num_attention_heads": [1, 1, 2, 2]}
    return hf.SegformerForSemanticSegmentation(hf.SegformerConfig(num_labels=8, decoder_hidden_size=32, **sizes))


def eomt() -> torch.nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 2, "num_queries": 5}
    grid = {"image_size": SIDE, "patch_size": 8, "num_blocks": 1, "num_upscale_blocks": 1}
    return hf.EomtForUniversalSegmentation(hf.EomtConfig(num_labels=8, **sizes, **grid))


def mask2former() -> torch.nn.Module:
    stages = [f"stage{number}" for number in (1, 2, 3, 4)]
    heads = {"depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2, "out_features": stages}
    swin = hf.SwinConfig(image_size=SIDE, embed_dim=8, **heads)
    widths = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16}
    layers = {"dim_feedforward": 16, "num_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 2}
    options = {"backbone_config": swin, "num_labels": 8, "num_queries": 5, **widths, **layers}
    return hf.Mask2FormerForUniversalSegmentation(hf.Mask2FormerConfig(**options))


def dinov2() -> torch.nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    return hf.Dinov2Model(hf.Dinov2Config(image_size=SIDE, patch_size=8, **sizes))


TEACHERS = {  # title: (function that creates it, layer to distil)
    "DeepLabV3, ours": (cnn, "backbone[-1]"),
    "SegFormer": (segformer, "decode_head.batch_norm"),
    "EoMT": (eomt, "layers.1:tokens"),
    "Mask2Former": (mask2former, "model.pixel_level_module.decoder.mask_projection"),
    "DINOv2 (no logits)": (dinov2, "encoder.layer.1:tokens"),
}


def saved_teacher(make: Callable[[], torch.nn.Module], folder: Path) -> Path:
    """Save a random teacher to a folder."""
    torch.manual_seed(0)
    model, classes = make(), BENCHMARKS["scenes"].classes
    if hasattr(model.config, "id2label") and model.config.num_labels == len(classes):
        model.config.id2label = dict(enumerate(classes))
        model.config.label2id = {name: index for index, name in enumerate(classes)}
    model.save_pretrained(folder)
    AfDcdImageProcessor().save_pretrained(folder)
    return folder


def outcome(teacher: Path, layer: str, head: str, loss: str, folder: Path) -> str:
    """Run `afdcd distill` and return "ok" or its one-line error."""
    words = ["distill", "--teacher", str(teacher), "--teacher_layer", layer, "--loss", loss, *LOSSES[loss]]
    words += ["--dataset", "scenes", "--max_train_samples", "4", "--max_eval_samples", "1", "--crop_size", "64", "64"]
    words += ["--backbone", "resnet18", "--backbone_kwargs", '{"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 32]}']
    words += ["--head", head, "--head_channels", "16", "--pretrained_backbone", "false", "--max_steps", "3"]
    words += ["--total_batch_size", "2", "--save_strategy", "no", "--use_cpu", "--output_dir", str(folder)]
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        status = afdcd(words)
    if status == 0 and (folder / "results.json").is_file():
        return "ok"
    lines = [line for line in said.getvalue().splitlines() if line.startswith("afdcd distill")]
    return lines[-1].partition(": ")[2] if lines else f"status {status}: {said.getvalue()[-300:]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--teachers", nargs="+", default=list(TEACHERS), choices=list(TEACHERS))
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=list(HEADS))
    args = parser.parse_args()
    lines = [f"| teacher | student's head | {' | '.join(LOSSES)} |", f"|---|---|{'---|' * len(LOSSES)}"]
    reasons: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, title in enumerate(args.teachers):
            make, layer = TEACHERS[title]
            teacher = saved_teacher(make, Path(folder, f"teacher{number}"))
            heads_of: dict[tuple[str, ...], list[str]] = {}  # heads with the same outcomes share a row
            for head in args.heads:
                cells = []
                for loss in LOSSES:
                    cell = outcome(teacher, layer, head, loss, Path(folder, f"{number}_{head}_{loss}"))
                    if cell != "ok":
                        reasons += [cell] if cell not in reasons else []
                        cell = f"refused ({reasons.index(cell) + 1})"
                    cells.append(cell)
                heads_of.setdefault(tuple(cells), []).append(f"`{head}`")
                print(title, head, *cells, sep=", ", file=sys.stderr, flush=True)
            lines += [f"| {title} | {', '.join(heads)} | {' | '.join(cells)} |" for cells, heads in heads_of.items()]
    lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))]
    text = "\n".join(lines).rstrip() + "\n"
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
