"""Energy: counters that are read, that start again, that cannot be read, and that are not there."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from afdcd_hf.training import energy
from afdcd_hf.training.energy import EnergyMeter, energy_of_all

CPU = torch.device("cpu")


def domain(folder: Path, name: str, microjoules: int, limit: int = 1_000_000_000) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")
    return folder


@pytest.fixture
def powercap(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    return tmp_path


def test_the_processors_packages_are_added_up_and_their_parts_left_out(powercap):
    first = domain(powercap / "intel-rapl:0", "package-0", 5_000_000)
    second = domain(powercap / "intel-rapl:1", "package-1", 0)
    core = domain(powercap / "intel-rapl:0:0", "core", 0)
    meter = EnergyMeter(CPU).start()
    for path, value in ((first, 8_000_000), (second, 500_000), (core, 2_000_000)):
        domain(path, (path / "name").read_text().strip(), value)
    assert meter.stop() == {"processor": 3.5}


def test_a_counter_that_started_again_is_followed(powercap):
    path = domain(powercap / "intel-rapl:0", "package-0", 900_000, limit=999_999)
    meter = EnergyMeter(CPU).start()
    domain(path, "package-0", 100_000, limit=999_999)
    assert meter.stop() == {"processor": pytest.approx(0.2)}


def test_without_counters_nothing_is_measured(powercap, monkeypatch):
    assert EnergyMeter(CPU).start().stop() == {}
    monkeypatch.setattr(energy, "POWERCAP", powercap / "gone")
    assert EnergyMeter(CPU).start().stop() == {}


def test_a_counter_that_cannot_be_read_any_more_gives_no_figure(powercap):
    path = domain(powercap / "intel-rapl:0", "package-0", 0)
    meter = EnergyMeter(CPU).start()
    (path / "energy_uj").unlink()
    assert meter.stop() == {}


def test_counters_that_only_root_may_read_are_not_used(powercap):
    (domain(powercap / "intel-rapl:0", "package-0", 0) / "energy_uj").unlink()
    assert EnergyMeter(CPU).start().stop() == {}


def test_long_runs_read_the_counter_now_and_then(powercap, monkeypatch):
    monkeypatch.setattr(energy, "_SECONDS_BETWEEN_READINGS", 0.01)
    path = domain(powercap / "intel-rapl:0", "package-0", 0)
    meter = EnergyMeter(CPU).start()
    for _ in range(200):
        if meter._domains[0]._used:
            break
        (path / "energy_uj").write_text("700\n")
        time.sleep(0.01)
    assert meter._domains[0]._used == 700
    meter.stop()


def test_a_gpus_counter_counts_from_start_to_stop(powercap, monkeypatch):
    readings = iter([1000.0, 1360.0])
    monkeypatch.setattr(energy, "_nvidia_reader", lambda device: lambda: next(readings))
    meter = EnergyMeter(torch.device("cuda"), with_processors=False).start()
    assert meter.stop() == {"GPU": 360.0, "processor": 0.0}


def test_a_machine_without_nvidias_library_has_no_reader(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(energy.ctypes, "CDLL", missing)
    assert energy._nvidia_reader(torch.device("cuda")) is None


def test_a_part_that_one_process_could_not_measure_is_left_out():
    accelerator = Accelerator(cpu=True)
    assert energy_of_all({"processor": 2.5}, accelerator) == {"processor": 2.5}
    assert energy_of_all({}, accelerator) == {}
