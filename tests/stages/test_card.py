"""`fer card`: the card says what the evaluation found, and a packed model is weights that load, with their card."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders.published import make_project, publish_training

from fer.cli import main
from fer.evaluation.metrics import wilson
from fer.io.files import FileError, read_json, write_json
from fer.params import Params
from fer.stages.card import _limits, as_markdown, card, package
from fer.stages.evaluate import run as evaluate
from fer.weights.store import load_model


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Params:
    params = make_project(tmp_path_factory.mktemp("project"))
    publish_training(params)
    evaluate(params, "toy", "nano")
    return params


@pytest.fixture
def trained(project: Params) -> Path:
    return project.root / "trained" / "toy" / "nano"


def test_card_has_the_numbers_of_the_evaluation_and_intervals_of_each_class(project: Params, trained: Path) -> None:
    test = read_json(project.root / "evaluated" / "toy" / "nano" / "test.json")
    found = card(trained)
    assert found["test"]["accuracy"] == test["accuracy"]
    assert found["labels"] == [line["class"] for line in test["per_class"]]
    for line, counted, row in zip(found["test"]["classes"], test["per_class"], test["confusion"], strict=True):
        right = row[found["labels"].index(line["class"])]
        interval = wilson(right, counted["rows"])
        assert (line["low"], line["high"]) == (interval.low, interval.high)
        assert f"| {line['class']} | {counted['rows']} | {100 * counted['recall']:.1f} |" in as_markdown(found)
    assert f"{100 * test['accuracy']:.1f}" in as_markdown(found)


def test_limits_name_what_training_lacked_and_classes_of_few_rows(trained: Path) -> None:
    found = card(trained)
    assert all(name in " ".join(found["limits"]) for name in found["labels"]), "each has fewer than 50 rows here"
    seen = " ".join(
        _limits({"color": "gray"}, True, {"rows": 9, "without_duplicates": {"rows": 6, "accuracy": 0.5}}, [])
    )
    assert all(words in seen for words in ("drawn faces", "gray faces", "3 of the 9 test rows", "50.0 %"))


def test_packed_model_loads_and_is_replaced_whole(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "packed"
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            main(["card", str(trained), "--out", str(out)])
        assert end.value.code == 0
        assert sorted(path.name for path in out.iterdir()) == ["README.md", "card.json", "model.safetensors"]
    assert capsys.readouterr().out.startswith("# ")
    assert list(load_model(out / "model.safetensors")[1].labels) == read_json(out / "card.json")["labels"]


def test_folder_with_other_files_is_refused_and_kept(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match=str(tmp_path)):
        package(trained, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_run_without_an_evaluation_of_its_weights_has_no_card(project: Params, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"trained/<dataset>/<model>"):
        card(tmp_path / "nothing" / "toy" / "nano")
    test = project.root / "evaluated" / "toy" / "nano" / "test.json"
    whole = read_json(test)
    other = [{**one, "value": "0" * 64} if one["key"] == "weights_sha256" else one for one in whole["about"]]
    try:
        write_json(test, {**whole, "about": other})
        with pytest.raises(FileError, match="evaluate@toy-nano"):
            card(trained)
    finally:
        write_json(test, whole)
