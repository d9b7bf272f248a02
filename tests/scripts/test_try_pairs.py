"""One pair that trains and one that makes no sense; the whole table of `scripts/try_pairs.py` takes many minutes."""

from __future__ import annotations

from try_pairs import TEACHERS, outcome, saved_teacher


def test_a_pair_trains_or_the_reason_is_told(tmp_path):
    for title, loss, expected in (
        ("SegFormer", "kd", "ok"),
        ("DINOv2 (no logits)", "kd", "The teacher, a Dinov2Model, has"),
    ):
        make, layer = TEACHERS[title]
        teacher = saved_teacher(make, tmp_path / title)
        assert outcome(teacher, layer, "fcn", loss, tmp_path / f"{title} run").startswith(expected)
