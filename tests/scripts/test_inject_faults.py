"""The faults that `scripts/inject_faults.py` offers; injecting them takes minutes and is not done here."""

from __future__ import annotations

import sys

import pytest
from inject_faults import FAULTS, Faults, main


def test_a_mistyped_fault_is_refused_before_anything_is_trained(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["inject_faults.py", "--only", "readonly"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "invalid choice: 'readonly'" in (said := capsys.readouterr().err) and "read_only" in said


def test_every_fault_that_is_offered_is_there():
    assert all(callable(getattr(Faults, name)) for name in FAULTS)
