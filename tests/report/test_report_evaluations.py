"""What `fer evaluate` left, and the rows without duplicates, in the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders.published import make_project, publish_training

from fer.io.files import read_json, write_json
from fer.params import Params
from fer.report.collect import collect
from fer.report.page import ladder, render
from fer.sources.fer2013 import Fer2013Config
from fer.stages.evaluate import run as run_evaluation


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Params:
    """`nano` is trained and evaluated on FER2013, by its name; duplicates were not searched for."""
    params = make_project(tmp_path_factory.mktemp("project"), dataset="fer2013", synthetic=False)
    publish_training(params, "fer2013")
    run_evaluation(params, "fer2013", "nano")
    return replace(params, datasets={"fer2013": Fer2013Config(source="fer2013")})


def leave_evaluation(params: Params, name: str, about: dict[str, Any], **changes: Any) -> Path:
    """reports/evaluations/fer2013/<name>, made of the evaluation of `nano`."""
    test = read_json(params.root / "evaluated/fer2013/nano/test.json")
    facts = {entry["key"]: entry["value"] for entry in test["about"]} | {"weights": name} | about
    path = params.root / "reports/evaluations/fer2013" / name / "test.json"
    entries = [{"key": key, "value": value} for key, value in facts.items()]
    write_json(path, test | {"about": entries} | changes)
    return path


def test_rows_without_duplicates_stand_beside_all_rows_or_the_reason(project: Params) -> None:
    path = project.root / "evaluated/fer2013/nano/test.json"
    test = read_json(path)
    page = render(collect(project))
    assert "near duplicates were not searched for (shard.duplicates: off)" in page
    part = {key: test[key] for key in ("balanced_accuracy", "macro_f1", "ece", "nll", "intervals")}
    try:
        write_json(path, test | {"without_duplicates": {"rows": 38, "accuracy": 0.4321, **part}})
        page = render(collect(project))
    finally:
        write_json(path, test)
    assert page.count("without duplicates") >= 1
    assert "<b>43.2 %</b><span>test accuracy on the 38 rows without a duplicate" in page


def test_published_weights_stand_beside_their_printed_accuracy_and_the_published_results(project: Params) -> None:
    known = {
        "kind": "published weights", "trained_on": "FER2013", "own_dataset": True, "printed": 0.7339,
        "protocol": "best of many runs", "input": "224 px",
    }  # fmt: skip
    theirs = leave_evaluation(project, "lhc_net", known)
    classes = {
        "shared": ["anger", "fear"], "only_model": ["contempt"], "only_dataset": ["disgust"], "extra": "wrong",
        "rows_left_out": 7,
    }  # fmt: skip
    other = leave_evaluation(project, "other", known | {"own_dataset": False, "printed": None}, classes=classes)
    content = collect(project)
    page = render(content)
    assert "PUBLISHED WEIGHTS" in page
    assert "73.39" in page
    assert "contempt: counted as wrong" in page
    assert "disgust: 7 rows left out" in page
    names = [line["name"] for line in ladder(content.datasets[0])]
    assert "lhc_net, published weights" in names
    assert "other, published weights" not in names, "of other classes, so not comparable"
    for path in (theirs, other):
        path.unlink()


def test_an_evaluation_of_other_shards_is_marked_out_of_date(project: Params) -> None:
    path = leave_evaluation(project, "old", {"kind": "own weights", "trained_on": None, "data_digest": "0" * 64})
    (found,) = collect(project).evaluations.results
    assert found.stale
    path.unlink()
