"""Promises of `fer bench ingest`."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import ingest
from benchmarks.__main__ import parse
from benchmarks.baselines import CONTENDERS, Job, contender
from benchmarks.baselines.__main__ import cpu_seconds, memory_mb, read
from benchmarks.data import made_up
from benchmarks.result import REGISTRY


def test_the_reader_is_measured_from_the_first_batch_on(tmp_path: Path) -> None:
    contender("ours").prepare(made_up(96, 24), tmp_path)
    found = read("ours", Job(tmp_path, size=24, batch=16, workers=2), epochs=1)
    assert set(found) == {"images_per_second", "cpu_us", "first_batch_s", "memory_mb"}
    assert found["images_per_second"] > 0
    assert 0 < found["first_batch_s"] < 60


def test_contenders_are_measured_in_turn_and_those_that_cannot_run_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"ours": 600.0, "folder": 200.0, "folder, tuned": 250.0, "ray": 100.0}
    calls: list[tuple[str, str]] = []

    def call(verb: str, name: str, folder: Path, *numbers: int) -> dict[str, float] | str:
        calls.append((verb, name))
        if name == "streaming":
            return "ModuleNotFoundError: No module named 'streaming'"
        if (verb, name) == ("read", "litdata"):
            return "not done after 900 s"
        rate = rates.get(name, 50.0)
        return {"images_per_second": rate, "cpu_us": 1e6 / rate, "first_batch_s": 0.5, "memory_mb": 90.0}

    monkeypatch.setattr(ingest, "_call", call)
    result = REGISTRY["ingest"].run(parse(["ingest", "--size", "112", "--rounds", "2"]))
    by_name = {row["reader"]: row for row in result.rows}
    assert set(CONTENDERS) - set(by_name) == {"streaming", "litdata"}
    assert by_name["ray"]["of folder"] == 0.5
    notes = "\n".join(result.notes)
    assert "112 px: ours is 3.00 x the best baseline as documented, folder (goal: 2)" in notes
    assert "112 px: ours is 2.40 x the best baseline tuned beyond, folder, tuned (goal: 2)" in notes
    assert "streaming is left out: ModuleNotFoundError: No module named 'streaming'" in notes
    assert "litdata is left out: not done after 900 s" in notes
    turn = [name for verb, name in calls if verb == "read" and name != "litdata"]
    assert turn == list(by_name) * 2
    assert "reader" in result.table()


def test_memory_and_processor_time_of_children_are_counted() -> None:
    hog = "import time; data = bytearray(60_000_000); print('ready', flush=True); time.sleep(60)"
    before, cpu_before = memory_mb(), cpu_seconds()
    with subprocess.Popen([sys.executable, "-c", hog], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert 55 < memory_mb() - before < 100
        assert cpu_seconds() > cpu_before
        child.kill()
    assert memory_mb() - before < 55


@pytest.mark.slow
def test_the_reader_is_measured_beside_a_folder_of_files_in_processes_of_their_own(tmp_path: Path) -> None:
    words = ["--size", "32", "--rows", "600", "--rounds", "1", "--only", "ours", "folder", "folder, tuned"]
    result = REGISTRY["ingest"].run(parse(["ingest", *words]))
    assert [row["reader"] for row in result.rows] == ["ours", "folder", "folder, tuned"]
    assert all(row["images/s"] > 0 and row["CPU us"] > 0 for row in result.rows)
