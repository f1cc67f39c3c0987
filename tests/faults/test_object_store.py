"""Training whose checkpoints lie in an object store: the same bits, whatever the store does and whoever resumes."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml_text
from builders.projects import TOY, make_project, published
from builders.stopping import run_facts
from builders.store import S3, s3_server

from fer.config import parse
from fer.io import storage
from fer.io.files import FileError, read_json
from fer.io.storage import Folder, inside
from fer.params import Params, load
from fer.stages.study import run as run_study
from fer.stages.train import run as run_training
from fer.studies import StudyOptions
from fer.training import loop


class KilledError(Exception):
    """In place of a signal."""


@pytest.fixture(scope="module")
def running() -> Iterator[S3]:
    with s3_server() as server:
        yield server


@pytest.fixture
def server(running: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """Asked again at once where it fails; the states of earlier tests are gone."""
    monkeypatch.setattr(storage, "_WAIT_SECONDS", 0.05)
    yield running
    running.fault = ""
    Folder(running.url).clear()


def project(root: Path, server: S3 | None = None) -> Params:
    root.mkdir(parents=True, exist_ok=True)
    make_project(root, epochs=2, recipe=TOY, tracking={"enabled": False})
    if server is not None:
        yaml_text.edit(root / "params.yaml", "storage", inside(server.url, "team"))
    return load(root / "params.yaml")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    params = project(tmp_path_factory.mktemp("undisturbed"))
    run_training(params, "tiny", "toy")
    return published(params.root)


def kill_at_checkpoint(params: Params, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends after its checkpoint of that number."""
    save, saved = loop._save, []

    def save_and_die(*given: object) -> None:
        save(*given)  # type: ignore[arg-type]
        saved.append(1)
        if len(saved) == number:
            monkeypatch.setattr(loop, "_save", save)
            raise KilledError

    monkeypatch.setattr(loop, "_save", save_and_die)
    with pytest.raises(KilledError):
        run_training(params, "tiny", "toy")


def test_run_through_a_store_publishes_the_same_files_and_leaves_no_state(
    server: S3, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    params = project(tmp_path, server)
    run_training(params, "tiny", "toy")
    assert published(tmp_path) == undisturbed
    assert not list(tmp_path.glob(".work/*/state-*"))
    assert not Folder(inside(server.url, "team")).names()


def test_killed_run_resumes_in_another_project_from_the_store_to_the_same_files(
    server: S3, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = project(tmp_path / "one", server), project(tmp_path / "two", server)
    kill_at_checkpoint(first, 3, monkeypatch)
    run_training(second, "tiny", "toy")
    assert published(second.root) == undisturbed
    assert run_facts(second.root)["resumes"] == 1


def test_restart_removes_the_states_in_the_store(
    server: S3, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = project(tmp_path, server)
    kill_at_checkpoint(params, 3, monkeypatch)
    run_training(params, "tiny", "toy", restart=True)
    assert published(tmp_path) == undisturbed
    assert run_facts(tmp_path)["resumes"] == 0


def test_damaged_checkpoint_in_the_store_is_passed_over(
    server: S3, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = project(tmp_path, server)
    kill_at_checkpoint(params, 3, monkeypatch)
    (work,) = (path for path in (tmp_path / ".work").iterdir() if (path / "lock").exists())
    states = Folder(inside(server.url, f"team/work/{work.name}"))
    newest = max(states.names() - {"progress.json"})
    states.write(newest, states.read(newest)[:-7])
    run_training(params, "tiny", "toy")
    assert published(tmp_path) == undisturbed
    assert run_facts(tmp_path)["checkpoint_fallbacks"] == 1


@pytest.mark.parametrize("fault", ["slow", "away"])
def test_store_that_is_slow_or_away_for_a_while_changes_no_bit(
    fault: str, server: S3, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, save, saved = project(tmp_path, server), loop._save, []

    def save_under_fault(*given: object) -> None:
        saved.append(1)
        if len(saved) == 2:
            server.fault = fault
            threading.Timer(1.0, lambda: setattr(server, "fault", "")).start()
        save(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "_save", save_under_fault)
    run_training(params, "tiny", "toy")
    assert len(saved) > 2
    assert published(tmp_path) == undisturbed


def test_store_that_refuses_writes_ends_the_run_with_its_name_and_the_same_command_resumes(
    server: S3, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, save, saved = project(tmp_path, server), loop._save, []

    def save_once(*given: object) -> None:
        saved.append(1)
        server.fault = "read only" if len(saved) == 2 else ""
        save(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "_save", save_once)
    with pytest.raises(FileError, match=rf"{server.url}/team/work/\w+/state-\d+.pt: the store refuses .*credentials"):
        run_training(params, "tiny", "toy")
    assert not (tmp_path / "trained").exists()
    server.fault = ""
    run_training(params, "tiny", "toy")
    assert published(tmp_path) == undisturbed
    assert run_facts(tmp_path)["resumes"] == 1


STUDY = """
title: A table of two
source: A work, Table 1
dataset: tiny
recipe: lhc_net/nano
set: {epochs: 2, batch_size: 16, augment: [], schedule.warmup_epochs: 0.0}
rows:
  - {row: host, set: {options: {blocks: [false, false, false, false, false]}}}
  - {row: LHC-Net, start: {rows: [host]}}
smoke: {dataset: tiny, recipe: lhc_net/nano}
"""


def study_cells(params: Params, **options: object) -> list[dict[str, object]]:
    """The cells of the study's results, without what differs between two equal runs."""
    (params.root / "own.yaml").write_text(STUDY)
    folder = run_study(params, "own.yaml", parse(StudyOptions, options, "test"))
    return [{**cell, "seconds": 0} for cell in read_json(folder / "results.json")["cells"]]


def test_study_through_a_store_has_the_same_results_also_where_another_project_resumes_it(
    server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = study_cells(project(tmp_path / "alone"), workers=0)
    first, second = project(tmp_path / "one", server), project(tmp_path / "two", server)
    save, saved = loop._save, []

    def save_and_die(*given: object) -> None:
        save(*given)  # type: ignore[arg-type]
        saved.append(1)
        if len(saved) > 1:
            raise KilledError

    monkeypatch.setattr(loop, "_save", save_and_die)
    with pytest.raises(KilledError):
        study_cells(first, workers=0)
    monkeypatch.setattr(loop, "_save", save)
    resumes = []
    monkeypatch.setattr(loop, "_resume", lambda *given, own=loop._resume: (s := own(*given), resumes.append(s.step))[0])
    assert study_cells(second, workers=0) == expected
    assert resumes[0] > 0
    assert not list(second.root.glob(".work/*/*/state-*"))
    kept = Folder(inside(server.url, f"team/work/{expected[0]['key']}")).names()
    assert sum(name.startswith("state-") for name in kept) == 1, "of the host, from which other runs may start"
    assert not Folder(inside(server.url, f"team/work/{expected[1]['key']}")).names()
    assert not Folder(inside(server.url, f"team/leases/{str(expected[1]['key'])[:16]}")).names()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [1, 2])
def test_cells_on_ray_workers_use_nothing_but_the_store(server: S3, tmp_path: Path, workers: int) -> None:
    """Beside the store, workers return what they found: they write to no folder of the project."""
    params = project(tmp_path, server)
    cells = study_cells(params, rows=("host",), workers_per_cell=workers)
    assert [cell["workers"] for cell in cells] == [workers]
    for cell in cells:
        found = {path.name for path in tmp_path.glob(f".work/study-*/{cell['key']}/*")}
        assert found == {"result.json", "predictions.npz"}
    assert Folder(inside(server.url, "team/shards")).names()
