"""`fer evaluate`: any weights through the evaluation of the pipeline; models by datasets."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml_text
from builders.mlflow_runs import give_store, runs
from builders.published import make_project, publish_training, write_ddamfn
from builders.shards import LABELS, change_manifest, write_people

from fer import cli
from fer.io.files import FileError, read_json
from fer.labels import SPACES
from fer.models import create_model
from fer.params import Params
from fer.report.collect import collect
from fer.report.page import render
from fer.stages import score
from fer.stages.evaluate import run as run_evaluation
from fer.weights.store import save_model

PLAIN = ("rows", "accuracy", "balanced_accuracy", "macro_f1", "ece", "nll", "intervals", "per_class", "confusion")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Model `nano`, trained on dataset `toy`; the current folder is the project's."""
    params = make_project(tmp_path, test_rows=30)
    publish_training(params)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return params


@pytest.fixture(scope="module")
def ddamfn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ddamfn(tmp_path_factory.mktemp("published"))


def evaluate(*arguments: str | Path) -> None:
    cli._main(["evaluate", *map(str, arguments)])


def result(name: str, dataset: str = "toy") -> Any:
    return read_json(Path("reports/evaluations", dataset, name, "test.json"))


def facts(test: Any) -> dict[str, Any]:
    return {entry["key"]: entry["value"] for entry in test["about"]}


def write_weights(path: Path, space: str, seed: int = 0, **extra: str) -> Path:
    labels = SPACES[space].labels
    torch.manual_seed(seed)
    save_model(create_model("ddamfn_nano", len(labels)), path, labels, space, extra, name="ddamfn_nano")
    return path


def test_a_run_has_the_results_of_the_evaluate_stage(project: Params) -> None:
    stage = read_json(run_evaluation(project, "toy", "nano") / "test.json")
    evaluate("trained/toy/nano", "--dataset", "toy")
    assert {key: result("toy-nano")[key] for key in PLAIN} == {key: stage[key] for key in PLAIN}
    assert facts(result("toy-nano"))["kind"] == "own weights"


def test_a_file_needs_no_train_json(project: Params) -> None:
    weights = write_weights(project.root / "alone.safetensors", "basic7")
    evaluate(weights, "--dataset", "toy", "--name", "mine")
    assert result("mine")["rows"] == 30
    assert "classes" not in result("mine")


def test_registered_weights_are_scored_in_their_own_class_order(project: Params, ddamfn: Path) -> None:
    cli._main(["weights", "pull", "ddamfn_rafdb", "--from", str(ddamfn)])
    evaluate("ddamfn_rafdb", "--dataset", "toy")
    about = facts(result("ddamfn_rafdb"))
    assert about["kind"] == "published weights"
    assert about["printed"] == pytest.approx(0.9204)
    assert about["trained_on"] == "RAF-DB"
    assert not about["own_dataset"]
    assert about["file"] == ddamfn.name
    assert not list((project.root / ".work").glob(".evaluate*")), "nothing is left of the import"


def test_an_unknown_class_order_is_asked_for_and_a_given_one_decides(project: Params, ddamfn: Path) -> None:
    with pytest.raises(ValueError, match=r"7 classes in an unknown order\. Give it with --labels"):
        evaluate(ddamfn, "--dataset", "toy", "--model", "ddamfn")
    assert not Path("reports").exists()
    evaluate(ddamfn, "--dataset", "toy", "--model", "ddamfn", "--labels", "rafdb", "--name", "one")
    evaluate(ddamfn, "--dataset", "toy", "--model", "ddamfn", "--labels", ",".join(LABELS), "--name", "other")
    one, other = (np.array(result(name)["confusion"]) for name in ("one", "other"))
    assert one.sum() == other.sum() == 30
    assert (one.sum(axis=1) == other.sum(axis=1)).all(), "the rows are the same"
    assert (one != other).any()


def test_a_class_that_the_dataset_lacks_is_left_out_or_wrong_and_it_is_recorded(project: Params) -> None:
    weights = write_weights(project.root / "eight.safetensors", "basic8")
    evaluate(weights, "--dataset", "toy", "--name", "out")
    evaluate(weights, "--dataset", "toy", "--name", "wrong", "--extra-classes", "wrong")
    out, wrong = result("out"), result("wrong")
    assert out["classes"] == {
        "shared": list(LABELS), "only_model": ["contempt"], "only_dataset": [], "extra": "left_out", "rows_left_out": 0
    }  # fmt: skip
    assert wrong["classes"]["extra"] == "wrong"
    assert [line["class"] for line in wrong["per_class"]] == [*LABELS, "contempt"]
    assert wrong["absent_classes"] == ["contempt"]
    assert out["rows"] == wrong["rows"] == 30
    assert wrong["accuracy"] <= out["accuracy"]


def test_the_same_evaluation_is_found_and_another_is_computed(project: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate("trained/toy/nano", "--dataset", "toy")
    with monkeypatch.context() as patched:
        patched.setattr(score, "evaluate", lambda *_: pytest.fail("computed again"))
        evaluate("trained/toy/nano", "--dataset", "toy")
    first = result("toy-nano")
    change_manifest(project.root / "data/shards/toy", seed=5)
    evaluate("trained/toy/nano", "--dataset", "toy")
    assert facts(result("toy-nano"))["data_digest"] != facts(first)["data_digest"]


def test_a_run_on_other_shards_of_the_same_dataset_is_noted(project: Params) -> None:
    write_weights(project.root / "trained/toy/nano/model.safetensors", "basic7", dataset="toy")
    change_manifest(project.root / "data/shards/toy", seed=5)
    evaluate("trained/toy/nano", "--dataset", "toy")
    assert facts(result("toy-nano"))["own_dataset"]
    assert "trained on other shards" in result("toy-nano")["notes"][-1]


def test_results_of_other_weights_and_files_of_the_user_are_kept(project: Params) -> None:
    folder = project.root / "reports/evaluations/toy/mine"
    write_weights(project.root / "a.safetensors", "basic7")
    write_weights(project.root / "b.safetensors", "basic7", seed=1)
    evaluate("a.safetensors", "--dataset", "toy", "--name", "mine")
    before = (folder / "test.json").read_bytes()
    with pytest.raises(FileError, match=r"'a\.safetensors', not of 'b\.safetensors'.*--name"):
        evaluate("b.safetensors", "--dataset", "toy", "--name", "mine")
    assert (folder / "test.json").read_bytes() == before
    (folder / "test.json").unlink()
    with pytest.raises(FileError, match="was not made by this project"):
        evaluate("a.safetensors", "--dataset", "toy", "--name", "mine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trained/toy/nano",), "one WEIGHTS and one --dataset"),
        (("--dataset", "toy"), "one WEIGHTS and one --dataset"),
        (("trained/toy/nano", "--dataset", "toi"), "did you mean 'toy'"),
        (("trained/toy/nano", "--dataset", "toy", "--name", "../up"), r"--name.*'\.\./up'"),
        (("trained/toy/nano", "--dataset", "toy", "--labels", "rafdb"), "--labels and --model are for published files"),
        (("trained/toy/none", "--dataset", "toy"), "trained/toy/none: no such file"),
        (("ddamfn_rafdb", "--dataset", "toy"), "fer weights pull ddamfn_rafdb"),
        (("ddamfn_rafbd", "--dataset", "toy"), "did you mean 'ddamfn_rafdb'"),
        (("--matrix", "--name", "x"), "of one WEIGHTS"),
    ],
)
def test_wrong_arguments_are_rejected_before_anything_is_written(
    arguments: tuple[str, ...], message: str, project: Params
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(*arguments)
    assert not Path("reports").exists()


def test_the_evaluation_is_recorded_once_as_that_of_published_weights(project: Params) -> None:
    yaml_text.edit(Path("params.yaml"), "tracking", {"log_model": False})
    write_weights(give_store(project.root) / "theirs.safetensors", "basic7", file="theirs.pth")
    evaluate("theirs.safetensors", "--dataset", "toy")
    (run,) = runs(project.root)
    assert run.data.tags["fer.kind"] == "published weights"
    assert run.data.tags["dataset"] == "toy"
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_accuracy"] == pytest.approx(result("theirs")["accuracy"])


# ------------------------------------------------------------------------------------------------ matrix


def add_dataset(params: Params, name: str, space: str) -> None:
    labels = SPACES[space].labels
    write_people(params.root / "data" / "shards" / name, test=30, label_space=space, labels=labels)


def test_the_matrix_holds_every_pair_or_the_reason_and_is_not_computed_twice(
    project: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_dataset(project, "korean", "aihub7")
    write_weights(project.root / "eight.safetensors", "basic8", dataset="toy")
    arguments = ("--matrix", "trained/toy/nano", "eight.safetensors")
    evaluate(*arguments)
    with open("reports/matrix/matrix.csv", newline="") as handle:
        lines = {(line["weights"], line["dataset"]): line for line in csv.DictReader(handle)}
    assert len(lines) == 4
    assert lines["toy-nano", "toy"]["own_dataset"] == "False", "its file does not name the data"
    assert lines["eight", "toy"]["own_dataset"] == "True"
    assert lines["eight", "toy"]["classes"] == "7"
    assert lines["toy-nano", "korean"]["classes"] == "4"
    assert float(lines["eight", "toy"]["accuracy"]) == result("eight")["accuracy"]
    monkeypatch.setattr(score, "evaluate", lambda *_: pytest.fail("computed again"))
    evaluate(*arguments)
    page = render(collect(project))
    assert "Models by datasets" in page
    assert "4 classes" in page
    assert "SYNTHETIC" in Path("reports/matrix/matrix.md").read_text()


def test_pairs_of_too_few_shared_classes_are_skipped_with_the_reason(project: Params) -> None:
    torch.manual_seed(0)
    people = "identities-3-" + "0" * 16
    save_model(
        create_model("mfn_arcface_nano", 3), project.root / "people.safetensors", "012", people, name="mfn_arcface_nano"
    )
    evaluate("--matrix", "people.safetensors", "trained/toy/nano")
    assert "people on toy: skipped, their classes are people" in Path("reports/matrix/matrix.md").read_text()
    with pytest.raises(ValueError, match=r"people\.safetensors on toy: their classes are people"):
        evaluate("people.safetensors", "--dataset", "toy")


def test_a_damaged_evaluation_costs_no_report(project: Params) -> None:
    evaluate("trained/toy/nano", "--dataset", "toy")
    evaluate("--matrix")
    path = Path("reports/evaluations/toy/toy-nano/test.json")
    assert "own weights" not in collect(project).evaluations.problems
    for text in ("[]", "{", '{"about": [], "rows": 1}', "null", '{"about": [1]}'):
        path.write_text(text)
        Path("reports/matrix/matrix.json").write_text(text)
        found = collect(project).evaluations
        assert len(found.problems) == 2
        assert not found.results
        assert "reports/evaluations/toy/toy-nano/test.json" in render(collect(project))
        with pytest.raises(FileError, match=r"toy-nano/test\.json: .*remove the folder"):
            evaluate("trained/toy/nano", "--dataset", "toy")
