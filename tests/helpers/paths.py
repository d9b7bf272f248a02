"""Folders that tests read: the checkout's own, and what lies beside it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SHARED = ROOT.parent / "shared"
CAMVID = SHARED / "data" / "camvid"
GOLDEN = SHARED / "golden"
