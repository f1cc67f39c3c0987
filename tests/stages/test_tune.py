"""`fer tune`: a real search that loses its driver, has a trial that cannot run, and confirms its winner."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml_text
from builders.mlflow_runs import give_store
from builders.projects import TOY, environment, make_project

from fer.io.files import FileError, read_json, sha256
from fer.stages.tune import refuse_edited
from fer.training.recipe import load_recipe


@dataclass
class Searched:
    root: Path
    output: str
    pids_before: list[int]
    pids_after: list[int]
    again: str


def _tune(root: Path) -> subprocess.Popen[str]:
    code = "import sys\nfrom fer.cli import main\nmain(['tune', '--dataset', 'tiny', '--model', 'toy'])"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=root,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _pids_of_first_trial(root: Path) -> list[int]:
    (path,) = (root / ".work").glob("tune-*/001-*/progress.json")
    return list(read_json(path)["pids"])


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """Two trials, one at a time, of which the second cannot be built; the driver is killed after the first."""
    root = give_store(make_project(tmp_path_factory.mktemp("search")))
    params = yaml_text.load((root / "params.yaml").read_text())
    params["tune"] = {
        "trials": 2,
        "epochs": 2,
        "grace_epochs": 1,
        "max_concurrent": 1,
        "seeds": 1,
        "metric": "val_loss",
        "space": {
            "learning_rate": {"low": 1e-4, "high": 0.1, "log": True},
            "options.drop_rate": {"choices": [0.2, 5.0, 6.0, 7.0, 8.0]},  # only the recipe's own is a probability
        },
    }
    (root / "params.yaml").write_text(yaml_text.dump(params))
    first = _tune(root)
    assert first.stdout is not None
    lines = []
    for line in first.stdout:
        lines.append(line)
        if line.startswith("trial 1:"):
            break
    first.send_signal(signal.SIGKILL)
    first.wait(30)
    assert lines[-1].startswith("trial 1:"), "".join(lines)
    before = _pids_of_first_trial(root)
    second = _tune(root)
    output, _ = second.communicate(timeout=240)
    assert second.returncode == 0, "".join(lines) + output
    third = _tune(root)
    again, _ = third.communicate(timeout=60)
    assert third.returncode == 0, again
    return Searched(root, output, before, _pids_of_first_trial(root), again)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_every_trial_reaches_a_final_state(searched: Searched) -> None:
    evidence = read_json(searched.root / "tuned" / "tiny" / "toy.json")
    states = [trial["status"] for trial in evidence["trials"]]
    assert states == ["finished", "failed", "finished"]
    assert "dropout probability" in evidence["trials"][1]["reason"]
    assert "options.drop_rate" in searched.output
    assert evidence["seed"] == 3
    assert evidence["budget"]["trials"] == 2


@pytest.mark.ray
def test_the_winner_is_trained_again_under_another_seed(searched: Searched) -> None:
    evidence = read_json(searched.root / "tuned" / "tiny" / "toy.json")
    first, _, again = evidence["trials"]
    assert again["values"] == first["values"] | {"seed": 4}
    assert again["best"] != first["best"]
    assert evidence["best"] == first["best"]
    assert evidence["confirmed"]["winner"] == {
        "count": 1, "mean": again["best"], "std": None, "low": None, "high": None
    }  # fmt: skip
    said = f"The winner, 1 more seed: val_loss {again['best']:.4f}; in the search {first['best']:.4f}."
    assert f"# {said}" in (searched.root / "tuned" / "tiny" / "toy.yaml").read_text()
    charts = list((searched.root / "mlartifacts").rglob("trials.svg"))
    assert len(charts) == 1


@pytest.mark.ray
def test_after_a_killed_driver_no_finished_trial_is_trained_again(searched: Searched) -> None:
    assert searched.pids_before == searched.pids_after
    assert "trial 1: finished" in searched.output


@pytest.mark.ray
def test_trials_are_nested_runs_of_one_parent_that_end_without_repeated_steps(searched: Searched) -> None:
    with sqlite3.connect(searched.root / "mlflow.db") as store:
        runs = {key: (name, status) for key, name, status in store.execute("select run_uuid, name, status from runs")}
        parents = dict(store.execute("select run_uuid, value from tags where key = 'mlflow.parentRunId'"))
        doubled = store.execute(
            "select run_uuid, key, step from metrics group by 1, 2, 3 having count(*) > 1"
        ).fetchall()
    search_runs = [key for key, (name, _) in runs.items() if name == "tune toy"]
    assert len(search_runs) == 1
    assert runs[search_runs[0]][1] == "FINISHED"
    trials = sorted(value for key, value in runs.items() if key in parents)
    assert [name for name, _ in trials] == ["toy trial 1", "toy trial 2", "toy trial 3, seed 4"]
    assert [status for _, status in trials] == ["FINISHED", "FAILED", "FINISHED"]
    assert set(parents.values()) == set(search_runs)
    assert not doubled


@pytest.mark.ray
def test_the_printed_line_selects_the_best_recipe(searched: Searched) -> None:
    written = searched.root / "tuned" / "tiny" / "toy.yaml"
    line = f"recipe: tuned/tiny/toy.yaml#{sha256(written)[:8]}"
    assert line in searched.output
    tuned = load_recipe(yaml_text.load(line), searched.root, "params.yaml", "models.toy")
    evidence = read_json(written.with_suffix(".json"))
    best = next(one for one in evidence["trials"] if one["number"] == evidence["best_trial"])
    assert tuned.learning_rate == best["values"]["learning_rate"]
    assert tuned.epochs == TOY["epochs"], "a trial is short, the recipe keeps its own length"
    rated = [one["best"] for one in evidence["trials"] if one["status"] != "failed" and "seed" not in one["values"]]
    assert best["best"] == min(rated)


@pytest.mark.ray
def test_a_finished_search_is_not_run_again(searched: Searched) -> None:
    assert "this search has ended" in searched.again
    assert "recipe: tuned/tiny/toy.yaml#" in searched.again


@pytest.mark.ray
def test_an_edited_recipe_is_not_replaced(searched: Searched, tmp_path: Path) -> None:
    text = (searched.root / "tuned" / "tiny" / "toy.yaml").read_text()
    own = tmp_path / "toy.yaml"
    refuse_edited(own)
    own.write_text(text)
    refuse_edited(own)
    for edited in (text.replace("batch_size: ", "batch_size: 1"), "model: mine\n", ""):
        own.write_text(edited)
        with pytest.raises(FileError, match=r"toy\.yaml: was edited since a search wrote it"):
            refuse_edited(own)


@pytest.mark.ray
def test_no_weights_and_no_ray_folder_are_left_of_a_finished_search(searched: Searched) -> None:
    left = [path for path in (searched.root / ".work").rglob("*") if path.suffix == ".pt" or path.name == "ray"]
    assert not left
