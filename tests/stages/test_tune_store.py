"""A search through an object store, without Ray: trials work in the store, the search itself in the project."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml_text
from builders.projects import TOY, make_project
from builders.store import S3, s3_server

from fer.cluster import grid
from fer.cluster.config import ClusterConfig, TuneConfig
from fer.cluster.trials import NUMBER, TrialLog, TrialPlan, run_trial
from fer.io.files import read_json
from fer.io.storage import Folder, inside
from fer.params import load
from fer.stages import tune

SEARCH = {"method": "grid", "epochs": 2, "seeds": 0, "space": {"learning_rate": {"choices": [0.003, 0.001]}}}


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3_server() as running:
        yield running


class Search:
    """`grid.search` in this process, one trial after the other.

    Attributes:
        trained: trials of which an epoch was trained, not read.
        most: trials, after which it ends.
    """

    def __init__(self, most: int = 9) -> None:
        self.trained: list[int] = []
        self.most = most

    def __call__(
        self, plan: TrialPlan, config: TuneConfig, cluster: ClusterConfig, record: TrialLog, poll: Callable[[], object]
    ) -> None:
        poll()
        sent = replace(plan, job=plan.job.sent_to(plan.storage)) if plan.storage else plan
        for number, values in enumerate(config.grid[: self.most], start=1):
            trial = {**values, NUMBER: number}
            known = Folder(inside(plan.work, plan.key(number, values))).names()
            self.trained += [] if "progress.json" in known else [number]
            run_trial(trial, partial(record.report, trial), sent)
            record.end(trial)
        if self.most < len(config.grid):
            raise KeyboardInterrupt


def search(root: Path, monkeypatch: pytest.MonkeyPatch, server: S3 | None = None, most: int = 9) -> list[int]:
    """Searches in a new project, or the one that is there; the trials that were trained."""
    if not (root / "params.yaml").exists():
        root.mkdir()
        make_project(root, recipe=TOY, tracking={"enabled": False})
        yaml_text.edit(root / "params.yaml", "tune", SEARCH)
        yaml_text.edit(root / "params.yaml", "storage", inside(server.url, "team") if server else None)
    params, stand_in = load(root / "params.yaml"), Search(most)
    monkeypatch.setattr(grid, "search", stand_in)
    tune.run(params, "tiny", "toy", params.tune_of("toy"))
    return stand_in.trained


def evidence(root: Path) -> dict[str, object]:
    found = read_json(root / "tuned/tiny/toy.json")
    return found | {"trials": [one | {"seconds": 0} for one in found["trials"]]}


def test_search_through_a_store_finds_what_a_local_one_does_and_continues_in_another_project(
    server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(tmp_path / "local", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "one", monkeypatch, server, most=1)
    assert search(tmp_path / "two", monkeypatch, server) == [2]
    for name in ("toy.json", "toy.yaml"):
        assert (tmp_path / "two/tuned/tiny" / name).exists()
    assert evidence(tmp_path / "two") == evidence(tmp_path / "local")
    assert not list(tmp_path.glob("two/.work/*/0*")), "no trial works in the project"
    left = set(Folder(inside(server.url, "team/work")).below(("",)))
    assert {name.rpartition("/")[2] for name in left} == {"progress.json"}, "weights go, histories stay"
    assert len(left) == 2
