"""The registry: a version a run, and a champion that only validation can change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders.mlflow_runs import client, give_store, start

from fer.tracking import Candidate, TrackingConfig, compat
from fer.tracking.registry import ALIAS, register, verdict

GOOD = Candidate("rafdb", 0.8, data_digest="d", synthetic=False)


@pytest.mark.parametrize(
    ("changes", "champion", "wins", "word"),
    [
        ({}, None, True, "the first"),
        ({}, 0.7, True, "version 3 has 0.7000"),
        ({}, 0.8, False, "version 3 has 0.8000"),
        ({}, 0.9, False, "version 3 has 0.9000"),
        ({"data_digest": "e"}, 0.9, True, "other data"),
        ({"validation": None}, None, False, "no validation result"),
        ({"synthetic": True}, None, False, "rendered faces"),
        ({"synthetic": True, "validation": 1.0}, 0.1, False, "rendered faces"),
    ],
)
def test_only_a_better_validation_result_on_people_makes_a_champion(
    changes: dict[str, Any], champion: float | None, wins: bool, word: str
) -> None:
    now = None if champion is None else ("3", {"val_accuracy": repr(champion), "data_digest": "d"})
    moved, why = verdict(replace(GOOD, **changes), now)
    assert moved == wins
    assert why.startswith("yes: " if wins else "no: ")
    assert word in why


def test_the_alias_moves_between_versions_that_say_why(tmp_path: Path) -> None:
    store = client(give_store(tmp_path))
    experiment = store.create_experiment("rafdb", artifact_location=tmp_path.as_uri())

    def add(candidate: Candidate) -> tuple[int | None, str]:
        run = store.create_run(experiment).info.run_id
        model = store.create_logged_model(experiment, name="rafdb-btn", source_run_id=run)
        for _ in range(2):  # the second time it is there
            register(store, f"sqlite:///{tmp_path}/mlflow.db", run, f"models:/{model.model_id}", candidate)
        (version,) = store.search_model_versions(f"run_id = '{run}'")
        champion = store.get_registered_model(candidate.dataset).aliases.get(ALIAS)
        return champion and int(champion), version.tags[ALIAS]

    assert add(replace(GOOD, validation=None)) == (None, "no: these weights have no validation result of their own")
    assert add(GOOD) == (2, "yes: the first, validation accuracy 0.8000")
    assert add(replace(GOOD, validation=0.7)) == (2, "no: validation accuracy 0.7000, version 2 has 0.8000")
    assert add(replace(GOOD, validation=0.9)) == (4, "yes: validation accuracy 0.9000, version 2 has 0.8000")
    assert add(replace(GOOD, dataset="synthetic", synthetic=True, validation=1.0))[0] is None


def test_the_machine_is_recorded_by_mlflows_own_monitors_unless_that_is_off(tmp_path: Path) -> None:
    give_store(tmp_path)
    for key, on in (("on", True), ("off", False)):
        with start(tmp_path, key, TrackingConfig(system_metrics=on)) as run:
            run.log_system(1)
            run.log_system(2)
        metrics = client(tmp_path).get_run(run.run_id).data.metrics
        assert ("system/cpu_utilization_percentage" in metrics) == on
        assert ("system/system_memory_usage_megabytes" in metrics) == on


def test_canary_mlflow_has_the_monitors_of_every_machine() -> None:
    names = {type(monitor).__name__ for monitor in compat.system_monitors()}
    assert {"CPUMonitor", "DiskMonitor", "NetworkMonitor"} <= names
