"""Facts for cards: a minimal and a complete set."""

from __future__ import annotations

from afdcd_hf.citations import AF_DCD
from afdcd_hf.hub.card_facts import (
    CardFacts,
    ComparisonRow,
    CostRow,
    DatasetFacts,
    LatencyRow,
    MeasuredResults,
    Picture,
    ReportedResults,
    TrainingFacts,
)

BARE = CardFacts("bare-net", "PSPNet on resnet18, output stride 8")
FULL = CardFacts(
    model_name="deeplabv3-mbv2-scenes",
    architecture="DeepLabV3 on mobilenetv2_100, output stride 8",
    repo_id="afdcd/deeplabv3-mbv2-scenes",
    num_parameters=4_120_345,
    macs=18_430_000_000,
    macs_size=(512, 1024),
    costs=[CostRow(512, 512, 9_215_000_000), CostRow(512, 1024, 18_430_000_000)],
    latency=[
        LatencyRow(512, 1024, 1, "one|GPU", "fp32", 0.01234, 0.0251, 81.04, None, "torch 2.15", "2026-01-02", 3.14),
        LatencyRow(64, 64, 8, "CPU", "bf16", 1.5),
    ],
    dataset=DatasetFacts(
        "scenes", "Generated street scenes", "validation", "CC0-1.0", 64, "0123", "train", 400, "fedc"
    ),
    measured=MeasuredResults(
        mean_iou=0.61236,
        mean_accuracy=0.7,
        overall_accuracy=0.91,
        per_category_iou={"road": 0.9, "car": 0.0, "tram": None, "boat": float("nan")},
        num_images=50,
        protocol={"scales": [1.0], "flip": False},
        date="2026-01-02",
        machine="2 CPU cores",
        command="afdcd evaluate --model out --dataset scenes",
    ),
    reported=ReportedResults(0.7643, "Fan et al. 2023, Table 2"),
    comparison=[
        ComparisonRow("teacher", 39_640_000, 300_000_000_000, 0.69),
        ComparisonRow("student alone", 4_120_345, 18_430_000_000, 0.58),
        ComparisonRow("tiny", 950, 12_600, 0.5),
        ComparisonRow("CWD"),
    ],
    training=TrainingFacts(
        recipe="scenes_quick",
        hyperparameters={"learning_rate": 0.02, "loss": "af_dcd"},
        seed=0,
        iterations=400,
        seconds=3599.6,
        seconds_in_steps=75.4,
        images_per_second=42.46,
        time_split={"data": 0.01, "teacher": 0.04, "backward": 0.15},
        peak_memory_mb=1154.4,
        peak_memory_of="GPU",
        hardware="one laptop",
        versions={"torch": "2.15"},
    ),
    teacher="DeepLabV3 on resnet50",
    base_model="timm/mobilenetv2_100.ra_in1k",
    tags=["scenes", "afdcd"],
    license="apache-2.0",
    notes=["Mind the step."],
    pictures=[Picture("predictions.png", "Image, truth and predictions")],
    citations=[AF_DCD, "@misc{other,\n  title = {Other}\n}"],
)
