"""Trials of two ranks on two CPUs: a place that is not given back is one that the next trial waits for, for ever."""

import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from builders.limits import patience
from builders.projects import NANO
from builders.runs import assert_same_bits, elsewhere, final_state, make_job, run_ranks
from builders.stopping import wait_until

from fer.cluster import grid, ranks
from fer.cluster.config import ClusterConfig, SearchRange, TuneConfig
from fer.cluster.session import connect
from fer.cluster.trials import TrialLog, TrialPlan
from fer.io.files import read_json
from fer.training.job import TrainJob

pytestmark = [pytest.mark.ray, pytest.mark.timeout(patience(600))]


@pytest.fixture(scope="module", autouse=True)
def two_cpus() -> Iterator[None]:
    with connect(ClusterConfig(cpus=2, object_store_mb=100)):
        yield


class Killing(TrialLog):
    """Kills the second rank of the first trial after its first epoch."""

    killed: list[int]

    def report(self, values: dict[str, Any], record: Mapping[str, float]) -> None:
        if values["trial"] == 1 and not hasattr(self, "killed"):
            self.killed = self.pids()
            os.kill(self.killed[1], signal.SIGKILL)
        super().report(values, record)

    def pids(self) -> list[int]:
        """Of the ranks of the first trial."""
        return list(read_json(Path(self.plan.job.work_dir, self.trials[1].key, "progress.json"))["pids"])


@pytest.mark.slow
def test_all_ranks_end_with_their_trial_and_its_bits_are_those_of_training_on_as_many_ranks(tmp_path: Path) -> None:
    import ray

    space = {
        "learning_rate": SearchRange(choices=[NANO["learning_rate"], 2e-6, 1e-6]),
        "options.drop_rate": SearchRange(choices=[5.0], when={"learning_rate": [1e-6]}),  # is no probability
    }
    config = TuneConfig(method="grid", epochs=3, grace_epochs=1, reduction_factor=2, seeds=0, space=space)
    plan = TrialPlan(job=make_job(tmp_path, **NANO), gpu=False, epochs=3, metric="val_loss", workers=2)
    record = Killing(plan, lambda trial, run_id: MagicMock(run_id=None), MagicMock())
    grid.search(plan, config, ClusterConfig(), record, lambda: None)
    wait_until(lambda: ray.available_resources().get("CPU") == 2, seconds=60)
    assert {group["state"] for group in ray.util.placement_group_table().values()} == {"REMOVED"}
    assert [trial.status for trial in record.searched] == ["finished", "stopped early", "failed"]
    assert "dropout probability" in record.searched[2].reason
    job = plan.trial_job(record.searched[0].key, record.searched[0].values)
    state, pids = final_state(job), record.pids()
    assert (len(set(pids)), state.world_size, state.resumes) == (2, 2, 1)
    assert record.killed[1] not in pids
    alone = elsewhere(job, tmp_path / "alone")
    assert run_ranks(alone, 2, tmp_path / "meeting") == [0, 0]
    assert_same_bits(state, final_state(alone))


def test_what_another_rank_says_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rank = ranks._other_rank

    def without_shards(job: TrainJob, *arguments: Any) -> None:
        rank(replace(job, shards="/nowhere"), *arguments)

    monkeypatch.setattr(ranks, "_other_rank", without_shards)
    with pytest.raises(ValueError, match="/nowhere"):
        ranks.train_ranks(make_job(tmp_path, **NANO), 2, gpu=False, timeout_seconds=int(patience(60)), on_epoch=print)
