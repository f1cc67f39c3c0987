"""`fer study`: every row of every table can be trained; a stopped study resumes; each cell has its MLflow run."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders.mlflow_runs import client, give_store
from builders.projects import make_project, write_params
from builders.runs import elsewhere, final_state, run_ranks
from builders.shards import make_shards
from builders.stopping import interrupted_after_a_cell, wait_until

from fer.cluster.session import connect
from fer.config import ConfigError, parse
from fer.io.files import read_json
from fer.models import create_model
from fer.models.ddamfn import attention_loss
from fer.params import Params, load
from fer.shards.manifest import load_manifest
from fer.stages import study as study_stage
from fer.stages.study import _assignments, make_plan, run
from fer.studies import Study, StudyOptions, lhc_analysis, list_studies, load_study, row_recipe
from fer.studies.cell import measure_cell
from fer.studies.results import markdown, summarize
from fer.training.learner import Learner
from fer.training.recipe import Recipe, load_recipe
from fer.training.state import TrainState

OWN = """
title: A table of two
source: A work, Table 1
dataset: tiny
recipe: ddamfn/nano
baseline: plain
rows:
  - {row: plain, published: 90.0}
  - {row: without heads, published: 91.5, set: {options.num_heads: 0}}
smoke: {dataset: tiny, recipe: ddamfn/nano, set: {epochs: 1, batch_size: 16, augment: [], schedule.warmup_epochs: 0.0}}
"""


@pytest.fixture
def params(tmp_path: Path) -> Params:
    root = give_store(make_project(tmp_path))
    (root / "own.yaml").write_text(OWN)
    return load(root / "params.yaml")


@pytest.mark.parametrize("name", list_studies())
def test_every_row_has_a_recipe_whose_model_can_be_created(name: str) -> None:
    study = load_study(name, Path())
    places = [(row, smoke) for row in study.rows for smoke in (False, True)]
    for row, smoke in places:
        options = StudyOptions(smoke=smoke)
        for dataset in options.columns(study, row):
            recipe = row_recipe(study, row, options, Path(), dataset)
            if smoke:
                assert recipe.epochs == 1
                assert not recipe.pretrained
            for stage in recipe.in_stages:
                with torch.device("meta"):
                    create_model(stage.model, 7, **stage.options)


def test_the_rows_of_a_study_differ() -> None:
    options = StudyOptions()
    for name in list_studies():
        study = load_study(name, Path())
        places = [(row, dataset) for row in study.rows for dataset in options.columns(study, row)]
        made = [
            (dataset, row.start, row.recipe_of, *map(Recipe.model_dump_json, recipe.in_stages))
            for row, dataset in places
            for recipe in [row_recipe(study, row, options, Path(), dataset)]
        ]
        assert len(set(map(str, made))) == len(made), name


@pytest.mark.parametrize("name", [name for name in list_studies() if not name.startswith("lhc")])
def test_in_the_smoke_mode_each_rows_option_reaches_the_training_the_model_or_the_loss(name: str) -> None:
    """Rows whose recipes differ in the model alone have other gradients on the same images."""
    study, options, first = load_study(name, Path()), StudyOptions(smoke=True), dict[tuple[str, str], str]()
    for row in sorted(study.rows, key=lambda row: row.same_as is not None):
        recipe = row_recipe(study, row, options, Path())
        training = recipe.model_dump_json(exclude={"model", "options"})
        torch.manual_seed(0)
        model = create_model(recipe.model, 7, **recipe.options).train()
        x = torch.rand(8, 3, model.input_size, model.input_size, generator=torch.Generator().manual_seed(1))
        loss = model.loss(model(x), torch.arange(8) % 7)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found = hashlib.sha256(b"".join(gradient.numpy().tobytes() for gradient in gradients)).hexdigest()
        if row.same_as is None:
            assert first.setdefault((training, found), row.row) == row.row, f"{row.row} is {first[training, found]}"
        else:
            assert first[training, found] == row.same_as, f"{row.row} is not {row.same_as}: remove same_as"


def test_every_row_with_a_printed_number_finds_it_by_name() -> None:
    """A row without one says so here: figures without numbers, and variants of ours."""
    without = {
        "ddamfn_backbone": {"MFN, random start", "DDAMFN, random start"},
        "poster_v2_vit_depth": {"depth 2", "depth 4", "depth 6", "depth 8"},
    }
    in_print = {
        "rafdb": "RAF-DB", "affectnet7": "AffectNet-7", "affectnet8": "AffectNet-8", "caers": "CAER-S",
        "aihub": "AI-Hub", "fer2013": "FER2013",
    }  # fmt: skip
    for name in list_studies():
        study = load_study(name, Path())
        if study.work is None:
            continue
        assert all(row.published is None for row in study.rows), f"{name}: numbers are looked up, never copied"
        metric = "mean_accuracy" if study.kind == "classes" else "accuracy"
        for row in study.rows:
            for dataset in StudyOptions().columns(study, row):
                number = study.number(row, in_print[dataset], metric)
                assert (number is None) == (row.row in without.get(name, set())), f"{name}: {row.row}, {dataset}"
                assert study.number(row, None) is None
                assert study.printed(row, "own", None) is None


def test_a_study_runs_and_resumes_without_repeating_cells(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    options = StudyOptions(smoke=True, workers=0)
    folder = run(params, "own.yaml", options)
    results = read_json(folder / "results.json")
    assert [(cell["row"], cell["seed"]) for cell in results["cells"]] == [("plain", 0), ("without heads", 0)]
    assert all(0 <= cell["test_accuracy"] <= 1 and cell["best_epoch"] == 1 for cell in results["cells"])
    table = (folder / "table.md").read_text()
    assert "Smoke run" in table
    assert "| without heads |" in table
    assert table in capsys.readouterr().out
    assert not list((params.root / ".work").glob("study-*/*/state-*.pt"))
    plan = make_plan(params, "own.yaml", load_study("own.yaml", params.root), options)
    finished = {path: path.stat().st_mtime_ns for path in Path(plan.folder).glob("*/result.json")}
    run(params, "own.yaml", options.model_copy(update={"seeds": (0, 1)}))
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    assert len(list(Path(plan.folder).glob("*/result.json"))) == 4


def test_changes_augmentation_and_both_protocols_of_a_study_are_reported(params: Params) -> None:
    study = load_study("ddamfn_attention_loss", Path())
    assert StudyOptions(seeds=(0, 1), dataset=("rafdb",)).departure(study) is None
    assert StudyOptions(smoke=True, dataset=("tiny",)).departure(study) is None, "the smoke mode has its own note"
    changes = {"protocol": "published", "selection": "refit", "epochs": 2}
    departure = StudyOptions(dataset=("fer2013",), set=changes).departure(study)
    assert departure == (
        "Trained here with dataset fer2013, protocol = published, selection = refit, epochs = 2; "
        "the published results are those of the source."
    )
    folder = run(params, "own.yaml", StudyOptions(rows=("plain",), set=changes, tta="flip", workers=0))
    content, table = read_json(folder / "results.json"), (folder / "table.md").read_text()
    (cell,), (row,) = content["cells"], content["rows"]
    assert row["tta"]["mean"] == cell["test_tta_accuracy"]
    assert row["tta_gain"]["mean"] == pytest.approx(cell["test_tta_accuracy"] - cell["test_accuracy"])
    assert cell["test_tta_loss"] != cell["test_loss"]
    assert row["validation_selected"]["mean"] == cell["protocols"]["validation"]["accuracy"]
    assert cell["protocols"]["published"]["accuracy"] == pytest.approx(cell["test_accuracy"])
    for words in (
        "Trained here with protocol = published, selection = refit, epochs = 2; the published results",
        "| validation-selected test, % |",
        "| test with flip views, % | 95 % interval | gain, points |",
    ):
        assert words in table


def test_the_weight_of_the_attention_loss_is_named_wherever_its_printed_gain_is() -> None:
    """The paper's default is 0.1 of its own definition (section 2.3); the recipe's is 0.01 of the published code's."""
    ours = load_recipe({"recipe": "ddamfn/fer2013"}, Path(), "here").options["attention_loss_weight"]
    maps = torch.rand(2, 2, 4, 3, 3, dtype=torch.float64)
    halved = (attention_loss(maps, "paper") / attention_loss(maps, "code")).item()
    assert halved == pytest.approx(0.5), "of two heads"
    repository = Path(__file__).parents[2]
    readme = next(line for line in (repository / "README.md").read_text().splitlines() if "+0.49" in line)
    section = next(part for part in (repository / "docs/results.md").read_text().split("\n##") if "+0.49" in part)
    for text in (readme, section):
        assert "0.1 of the paper's definition" in text
        assert "published code's" in text
    figures = " ".join(section.split())
    for words in (f"{ours:g} of the published code's definition", "0.1 of its own definition", "half the code's value"):
        assert words in figures
    study = load_study("ddamfn_attention_loss", Path())
    for options in (StudyOptions(), StudyOptions(dataset=("fer2013",), recipe="ddamfn/fer2013")):
        made = [row_recipe(study, row, options, Path()).options for row in study.rows]
        weights = [(one["attention_loss"], one["attention_loss_weight"]) for one in made[1:]]
        assert weights == [("paper", 0.1), ("code", 0.1)]
        assert made[0]["attention_loss_weight"] == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in list_studies() if not name.startswith("lhc")])
def test_every_study_runs_in_the_smoke_mode_and_no_two_rows_give_the_same_logits(tmp_path: Path, name: str) -> None:
    root = tmp_path / "project"
    make_shards(root / "data" / "shards" / "synthetic", train=320, validation=80, test=32, size=32)
    write_params(
        root,
        "synthetic",
        {"toy": {"recipe": "ddamfn/nano"}},
        train={"workers": 0, "threads": 1},
        tracking={"enabled": False},
    )
    study = load_study(name, root)
    options = StudyOptions(smoke=True, workers=0, folds=2 if study.folds else None)  # as many as the shards have
    content = read_json(run(load(root / "params.yaml"), name, options) / "results.json")
    assert content["wrong"] == []
    assert {cell["row"] for cell in content["cells"]} == {row.row for row in study.rows}


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_on_ray_the_results_are_the_same(params: Params) -> None:
    options = StudyOptions(smoke=True, rows=("plain",))
    folder = run(params, "own.yaml", options)
    on_ray = read_json(folder / "results.json")["cells"]
    for result in (params.root / ".work").glob("study-*/*/result.json"):
        result.unlink()
    here = read_json(run(params, "own.yaml", options.model_copy(update={"workers": 0})) / "results.json")["cells"]
    for one, other in zip(on_ray, here, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cells_on_two_workers_each_have_the_bits_of_two_ranks_and_leave_no_place_taken(
    params: Params, tmp_path: Path
) -> None:
    import ray
    from ray.util import placement_group_table

    options = StudyOptions(smoke=True, workers_per_cell=2)
    plan = make_plan(params, "own.yaml", load_study("own.yaml", params.root), options)
    with connect(params.cluster):  # of two CPUs: one cell at a time
        cells = read_json(run(params, "own.yaml", options) / "results.json")["cells"]
        wait_until(lambda: ray.available_resources().get("CPU") == 2)
        wait_until(lambda: {one["state"] for one in placement_group_table().values()} == {"REMOVED"})
    assert [cell["workers"] for cell in cells] == [2, 2]
    job = elsewhere(plan.cells[1].job, tmp_path / "alone")
    assert run_ranks(job, 2, tmp_path / "meeting") == [0, 0]
    threads = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    alone, _ = measure_cell(job, final_state(job), "cpu", kind="table", tta="none")
    torch.set_num_threads(threads)
    assert {**cells[1], **alone, "seconds": 0} == {**cells[1], "seconds": 0}


def test_workers_of_a_cell_that_cannot_split_its_batch_are_refused_before_anything_starts(params: Params) -> None:
    options = StudyOptions(smoke=True, workers_per_cell=3)
    with pytest.raises(ConfigError, match=r"--workers-per-cell 3: row 'plain': batch_size = 16 .* 3 workers$"):
        run(params, "own.yaml", options)
    assert not (params.root / ".work").exists()
    with pytest.raises(ConfigError, match="workers_per_cell = 2"):
        parse(StudyOptions, {"workers": 0, "workers_per_cell": 2}, "fer study")


def test_unknown_rows_and_studies_are_rejected(params: Params) -> None:
    with pytest.raises(ConfigError, match=r"no row 'plane' - did you mean 'plain'\?; the rows: plain, without heads"):
        run(params, "own.yaml", StudyOptions(rows=("plane",)))
    with pytest.raises(ConfigError, match="no study 'btn_lamda' - did you mean 'btn_lambda'"):
        load_study("btn_lamda", params.root)
    (params.root / "twice.yaml").write_text(OWN.replace("without heads", "plain"))
    with pytest.raises(ConfigError, match="rows that occur twice: plain"):
        load_study("twice.yaml", params.root)


def test_differences_are_paired_by_seed() -> None:
    study = Study.model_validate(
        {
            "title": "", "source": "A work", "dataset": "d", "recipe": "r", "baseline": "a", "smoke": {"recipe": "r"},
            "rows": [{"row": "a"}, {"row": "b", "published": 1.0}],
        }
    )  # fmt: skip

    def cell(row: str, seed: int, accuracy: float) -> dict[str, Any]:
        metrics = {"test_accuracy": accuracy, "val_accuracy": accuracy, "parameters": 1, "seconds": 1.0}
        return {"row": row, "dataset": "d", "known_as": None, "seed": seed, "fold": None, **metrics}

    cells = [cell("a", 0, 0.5), cell("a", 1, 0.7), cell("b", 0, 0.6), cell("b", 1, 0.8)]
    lines = summarize(study, StudyOptions(), cells)
    assert lines[0]["difference"] is None
    assert lines[1]["difference"]["mean"] == pytest.approx(0.1)
    assert lines[1]["difference"]["std"] == pytest.approx(0.0, abs=1e-12)
    assert "+10.00 (+10.00 to +10.00)" in markdown(study, StudyOptions(), lines)


def test_printed_costs_stand_beside_ours_where_the_table_has_them() -> None:
    study = load_study("poster_v2_cost", Path())
    metrics = {"test_accuracy": 0.9, "val_accuracy": 0.9, "seconds": 1.0, "parameters": 43_753_941, "gmacs": 8.592}
    cell = {"row": "POSTER V2", "dataset": "rafdb", "known_as": "RAF-DB", "seed": 0, "fold": None, **metrics}
    table = markdown(study, StudyOptions(), summarize(study, StudyOptions(), [cell]))
    assert "| 43,753,941 [43.7 M] | 8.592 [8.4 G] | 92.21 |" in table
    own = {**cell, "dataset": "fer2013", "known_as": "FER2013"}
    table = markdown(study, StudyOptions(), summarize(study, StudyOptions(), [own]))
    assert "92.21" not in table, "another dataset's accuracy"
    assert "The source prints no accuracy for FER2013." in table
    smoke = StudyOptions(smoke=True)
    assert "43.7" not in markdown(study, smoke, summarize(study, smoke, [cell]))


# ------------------------------------------------------------------------------------------------ in MLflow


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=[pytest.mark.ray, pytest.mark.slow])])
@pytest.mark.timeout(300)
def test_each_finished_cell_of_a_stopped_study_is_in_mlflow_with_its_duration(
    params: Params, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    options = StudyOptions(smoke=True, workers=workers)
    plan = make_plan(params, "own.yaml", load_study("own.yaml", params.root), options)
    with interrupted_after_a_cell():
        run(params, "own.yaml", options)
    (result,) = Path(plan.folder).glob("*/result.json")
    runs = _runs(params)
    done = runs.pop("plain, tiny, seed 0")
    assert done["status"] == "FINISHED"
    assert done["metrics"]["test_accuracy"] == read_json(result)["test_accuracy"]
    assert done["parent"] == runs["A table of two"]["id"]
    assert done["data"] == {"tiny-train", "tiny-validation", "tiny-test"}
    for one, kind in ((runs["A table of two"], "study"), (done, "cell")):
        assert {"fer.kind": kind, "dataset": "tiny", "model": "ddamfn_nano"}.items() <= one["tags"].items()
    folder = result.parent
    written = min(path.stat().st_mtime_ns for path in folder.iterdir()) / 1e6
    assert done["start"] - 1 <= written <= done["end"] + 1, "opened before the cell wrote anything"
    assert result.stat().st_mtime_ns / 1e6 <= done["end"] + 1
    assert {one["status"] for one in runs.values()} == {"KILLED"}
    assert not (params.root / "reports" / "studies").exists()

    for _ in range(2):  # resumed, and read again
        run(params, "own.yaml", options)
        runs = _runs(params)
        assert runs.keys() == {"A table of two", "plain, tiny, seed 0", "without heads, tiny, seed 0"}
        assert runs["plain, tiny, seed 0"] == done, "it is recorded once"
        assert {one["status"] for one in runs.values()} == {"FINISHED"}
        best = max(one["metrics"]["val_accuracy"] for name, one in runs.items() if name != "A table of two")
        totals = {"cells": 2, "failed_cells": 0, "best_val_accuracy": best}
        assert runs["A table of two"]["metrics"] == totals
        assert runs["without heads, tiny, seed 0"]["metrics"].keys() == done["metrics"].keys()


def test_a_failed_cell_is_reported_and_the_others_are_kept_and_recorded_even_after_a_killed_driver(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (params.root / "own.yaml").write_text(OWN.replace("options.num_heads: 0", "options.num_heads: -1"))
    with pytest.raises(ValueError, match=r"1 of 2 cells failed.*:\n  without heads, tiny, seed 0: .*num_heads"):
        run(params, "own.yaml", StudyOptions(smoke=True, workers=0))
    folder = params.root / "reports" / "studies" / "own-smoke"
    content, table = read_json(folder / "results.json"), (folder / "table.md").read_text()
    assert [row["row"] for row in content["rows"]] == [cell["row"] for cell in content["cells"]] == ["plain"]
    assert [line.partition(":")[0] for line in content["wrong"]] == ["without heads, tiny, seed 0"]
    assert "| plain |" in table
    assert "**without heads, tiny, seed 0: " in table
    statuses = {name: one["status"] for name, one in _runs(params).items()}
    assert statuses == {
        "A table of two": "FAILED",
        "plain, tiny, seed 0": "FINISHED",
        "without heads, tiny, seed 0": "FAILED",
    }
    (result,) = (params.root / ".work").glob("study-*/*/result.json")
    (result.parent / study_stage._RECORDED).unlink()  # the driver was killed before it recorded the result
    give_store(params.root)
    run(params, "own.yaml", StudyOptions(smoke=True, workers=0, rows=("plain",)))
    runs = _runs(params)
    assert runs["plain, tiny, seed 0"]["metrics"]["test_accuracy"] == read_json(result)["test_accuracy"]


def test_where_every_cell_fails_nothing_is_written(params: Params) -> None:
    broken = OWN.replace("rows:", "set: {options.num_heads: -1}\nrows:").replace("options.num_heads: 0", "epochs: 2")
    (params.root / "own.yaml").write_text(broken.replace("set: {epochs: 1, ", "set: {"))
    with pytest.raises(ValueError, match="2 of 2 cells failed"):
        run(params, "own.yaml", StudyOptions(smoke=True, workers=0))
    assert not (params.root / "reports" / "studies").exists()


def test_rows_that_train_the_same_are_an_error_unless_declared(params: Params) -> None:
    same = OWN.replace("options.num_heads: 0", "epochs: 1")
    (params.root / "own.yaml").write_text(same)
    with pytest.raises(ConfigError, match="rows 'plain' and 'without heads' train the same on tiny"):
        run(params, "own.yaml", StudyOptions(smoke=True, workers=0))
    declared = same.replace("row: without heads,", "row: without heads, same_as: plain,")
    (params.root / "own.yaml").write_text(declared)
    run(params, "own.yaml", StudyOptions(smoke=True, workers=0))
    (params.root / "own.yaml").write_text(OWN.replace("options.num_heads: 0", "momentum: 0.5"))  # of sgd, not of adamw
    with pytest.raises(ValueError, match=r"rows trained the same.*\n  without heads, .*those of plain, bit by bit"):
        run(params, "own.yaml", StudyOptions(workers=0, set={"epochs": 1, "batch_size": 16, "augment": []}))
    folder = params.root / "reports" / "studies" / "own"
    assert len(read_json(folder / "results.json")["rows"]) == 2, "what was trained is kept"


def test_a_run_that_stands_in_two_tables_is_trained_once(params: Params) -> None:
    run(params, "own.yaml", StudyOptions(smoke=True, workers=0))
    (params.root / "other.yaml").write_text(OWN.replace("row: plain", "row: ours").replace("baseline: plain", ""))
    content = read_json(run(params, "other.yaml", StudyOptions(smoke=True, workers=0)) / "results.json")
    first = read_json(params.root / "reports/studies/own-smoke/results.json")["cells"]
    assert [{**cell, "row": ""} for cell in content["cells"]] == [{**cell, "row": ""} for cell in first]


def _runs(params: Params) -> dict[str, dict[str, Any]]:
    """The runs of the study's experiment by name, none of which is there twice."""
    store = client(params.root)
    found = store.search_runs([store.get_experiment_by_name("study own").experiment_id])
    runs = {
        run.info.run_name: {
            "id": run.info.run_id,
            "status": run.info.status,
            "start": run.info.start_time,
            "end": run.info.end_time,
            "metrics": run.data.metrics,
            "tags": run.data.tags,
            "data": {one.dataset.name for one in run.inputs.dataset_inputs},
            "parent": run.data.tags.get("mlflow.parentRunId"),
        }
        for run in found
    }
    assert len(runs) == len(found)
    return runs


# ------------------------------------------------------------------------------------------------ other kinds

NOISE = """
title: Noise
source: A claim
kind: noise
dataset: tiny
recipe: ddamfn/nano
set: &short {epochs: 1, batch_size: 16, augment: [], schedule.warmup_epochs: 0.0}
rows:
  - {row: "A, 0 %", series: A, level: 0}
  - {row: "B, 0 %", series: B, level: 0, set: {options.num_heads: 0}}
  - {row: "A, 30 %", series: A, level: 30, dataset: noisy}
  - {row: "B, 30 %", series: B, level: 30, dataset: noisy, set: {options.num_heads: 0}}
smoke: {recipe: ddamfn/nano, dataset: tiny, datasets: {noisy: noisy}, set: *short}
"""

STAGES = """
title: Runs in stages
source: A work
dataset: tiny
recipe: lhc_net/nano
set:
  epochs: 1
  batch_size: 16
  augment: []
  schedule.warmup_epochs: 0.0
  stages:
    - {options: {blocks: [false, false, false, false, false]}}
    - {learning_rate: 0.001}
rows:
  - {row: ResNet34v2, stages: 1}
  - {row: LHC-Net, against: ResNet34v2}
smoke: {dataset: tiny, recipe: lhc_net/nano}
"""

SETS = """
title: Sets of runs
source: A work
kind: lhc_sets
dataset: tiny
recipe: lhc_net/nano
baseline: host
tta: flip
set: &short {epochs: 1, batch_size: 16, augment: [], schedule.warmup_epochs: 0.0}
rows:
  - {row: host, seeds: [0, 2], set: {options: {blocks: [false, false, false, false, false]}}}
  - row: A
    series: ResNet34v2
    start: &best {rows: [host]}
    set:
      options: {blocks: [false, false, false, false, false]}
      trainable: [head.fc3.bias]
      optimizer: sgd
      learning_rate: 1.0e-5
  - {row: B wide, series: LHC-Net, start: *best, seeds: [0, 1]}
  - {row: B narrow, series: LHC-Net, start: *best, seeds: [0, 1], set: {options: {head_dims: [8, 8, 4, 1, 1]}}}
  - {row: C, series: LHC-Net, start: *best, seeds: [1, null], recipe_of: [B wide, B narrow]}
  - row: LHC-NetC
    series: LHC-NetC
    start: {rows: [B wide, B narrow, C], run: same_seed}
    recipe_of: [B wide, B narrow]
    set: {trainable: [lhc.*.w]}
smoke: {dataset: tiny, recipe: lhc_net/nano, set: *short}
"""

BLOCKS = """
title: Blocks
source: A work
kind: lhc_blocks
dataset: tiny
recipe: lhc_net/nano
baseline: LHC-Net
set: {epochs: 1, batch_size: 16, augment: [], schedule.warmup_epochs: 0.0}
rows:
  - {row: ResNet34v2, set: {options: {blocks: [false, false, false, false, false]}}}
  - {row: LHC-Net, start: {rows: [ResNet34v2], run: same_seed}}
  - {row: frozen blocks, start: {rows: [ResNet34v2], run: same_seed}, set: {trainable: [head.*]}}
smoke: {dataset: tiny, recipe: lhc_net/nano}
"""


def test_rows_may_have_their_own_datasets(params: Params) -> None:
    make_shards(params.root / "data" / "shards" / "noisy", seed=1)
    noisy = replace(params, datasets={**params.datasets, "noisy": params.datasets["tiny"]})
    (params.root / "noise.yaml").write_text(NOISE)
    study = load_study("noise.yaml", params.root)
    plan = make_plan(noisy, "noise.yaml", study, StudyOptions())
    assert [cell.dataset for cell in plan.cells] == ["tiny", "tiny", "noisy", "noisy"]
    assert len({cell.key for cell in plan.cells}) == 4
    some = make_plan(noisy, "noise.yaml", study, StudyOptions(rows=("A, 30 %", "B, 30 %")))
    assert some.folder == plan.folder, "cells of some rows are there for all of them"
    with pytest.raises(ConfigError, match="--dataset tiny: the rows of this study name their own datasets"):
        make_plan(noisy, "noise.yaml", study, StudyOptions(dataset="tiny"))
    results = read_json(run(noisy, "noise.yaml", StudyOptions(seeds=(0, 1), workers=0)) / "results.json")
    assert [line["level"] for line in results["levels"]] == [0, 30]
    for line in results["levels"]:
        ending = f", {line['level']:g} %"
        there = [cell for cell in results["cells"] if cell["row"].endswith(ending)]
        cells = {(cell["row"][0], cell["seed"]): cell["test_accuracy"] for cell in there}
        by_seed = [cells["B", seed] - cells["A", seed] for seed in (0, 1)]
        assert line["difference"]["mean"] == pytest.approx(sum(by_seed) / 2)
    assert (params.root / "reports" / "studies" / "noise" / "noise.svg").is_file()
    plan = make_plan(noisy, "noise.yaml", study, StudyOptions(seeds=(0, 1)))
    labels, predicted = plan.predictions(plan.cells[0])
    assert (labels == predicted).mean() == pytest.approx(results["cells"][0]["test_accuracy"])


def test_a_run_in_stages_continues_one_with_equal_first_stages_to_the_same_bits(params: Params) -> None:
    (params.root / "stages.yaml").write_text(STAGES)
    content = read_json(run(params, "stages.yaml", StudyOptions(workers=0)) / "results.json")
    host, inherited = content["cells"]
    difference = content["rows"][1]["difference"]["mean"]
    assert difference == pytest.approx(inherited["test_accuracy"] - host["test_accuracy"])
    shutil.rmtree(params.root / ".work")
    only = StudyOptions(workers=0, rows=("LHC-Net",))
    whole = read_json(run(params, "stages.yaml", only) / "results.json")["cells"]
    assert {**whole[0], "seconds": 0} == {**inherited, "seconds": 0}


def test_sets_start_from_the_best_host_and_the_best_setting_is_trained_on_under_other_seeds(params: Params) -> None:
    (params.root / "sets.yaml").write_text(SETS)
    options = StudyOptions(workers=0, seeds=(0, 1))
    folder = run(params, "sets.yaml", options)
    content, table = read_json(folder / "results.json"), (folder / "table.md").read_text()
    cells = {(cell["row"], cell["seed"]): cell for cell in content["cells"]}
    assert sorted(cells) == [
        ("A", 0), ("A", 1), ("B narrow", 0), ("B wide", 0), ("C", 1),
        ("LHC-NetC", 0), ("LHC-NetC", 1), ("host", 0), ("host", 1),
    ]  # fmt: skip

    def best(*names: tuple[str, int]) -> dict[str, Any]:
        return max((cells[name] for name in names), key=lambda cell: float(cell["val_accuracy"]))

    host, setting = best(("host", 0), ("host", 1)), best(("B wide", 0), ("B narrow", 0))
    for row, seed in (("A", 0), ("A", 1), ("B wide", 0), ("B narrow", 0), ("C", 1)):
        assert cells[row, seed]["starts_from"] == f"host, tiny, seed {host['seed']}"
    for seed in (0, 1):  # a bias moved by less than 1e-4: the host's own weights
        assert cells["A", seed]["test_loss"] == pytest.approx(host["test_loss"], abs=1e-4)
        assert cells["A", seed]["test_accuracy"] == host["test_accuracy"]
    assert cells["C", 1]["recipe_of"] == cells["LHC-NetC", 1]["recipe_of"] == f"{setting['row']}, tiny, seed 0"
    assert cells["C", 1]["parameters"] == cells["LHC-NetC", 0]["parameters"] == setting["parameters"]
    assert cells["LHC-NetC", 0]["starts_from"] == f"{setting['row']}, tiny, seed 0"
    assert cells["LHC-NetC", 1]["starts_from"] == "C, tiny, seed 1"
    lines = {line["row"]: line for line in content["sets"]}
    assert {name: line["runs"] for name, line in lines.items()} == {"ResNet34v2": 2, "LHC-Net": 3, "LHC-NetC": 2}
    assert content["host"] == host["key"]
    for words in ("Results 2", f"The best setting: {setting['row']}"):
        assert words in table
    assert (folder / "sets.svg").is_file()

    # More seeds: the hosts are the same, and the weights of the best one are still there.
    plan = make_plan(params, "sets.yaml", load_study("sets.yaml", params.root), options)
    states = list(Path(plan.folder).glob("*/state-*.pt"))
    assert [state.parent.name for state in states] == [host["key"]]
    finished = {path: path.stat().st_mtime_ns for path in Path(plan.folder).glob("*/result.json")}
    more = options.model_copy(update={"seeds": (0, 1, 2)})
    content = read_json(run(params, "sets.yaml", more) / "results.json")
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    (new,) = [cell for cell in content["cells"] if (cell["row"], cell["seed"]) == ("A", 2)]
    assert new["test_accuracy"] == host["test_accuracy"]
    states[0].unlink()
    with pytest.raises(ValueError, match=r"A, tiny, seed 3: the weights of host, tiny, seed .* are gone .*--restart"):
        run(params, "sets.yaml", options.model_copy(update={"seeds": (0, 1, 2, 3)}))


def test_a_row_brings_the_rows_it_depends_on_and_waits_for_them(params: Params) -> None:
    (params.root / "sets.yaml").write_text(SETS)
    study = load_study("sets.yaml", params.root)
    chosen = StudyOptions(rows=("C",)).chosen(study)
    assert [row.row for row in chosen] == ["host", "B wide", "B narrow", "C"]
    (params.root / "sets.yaml").write_text(SETS.replace("head_dims: [8, 8,", "head_dims: [0, 8,"))
    with pytest.raises(ValueError, match="4 of 7 cells failed") as error:
        run(params, "sets.yaml", StudyOptions(workers=0, rows=("LHC-NetC",), seeds=(0, 1)))
    assert "B narrow, tiny, seed 0: head_dims = 0 of block 1" in str(error.value)
    for title in ("C, tiny, seed 1", "LHC-NetC, tiny, seed 0"):
        assert f"{title}: a run that it depends on failed" in str(error.value)


def test_blocks_are_probed_in_the_trained_network(params: Params) -> None:
    (params.root / "blocks.yaml").write_text(BLOCKS)
    folder = run(params, "blocks.yaml", StudyOptions(workers=0))
    host, whole, frozen = read_json(folder / "results.json")["cells"]
    assert host["probes"]["off"] == {}
    assert list(whole["probes"]["off"]) == ["1", "1+2+3+4+5", "2", "3", "3+4+5", "4", "5"]
    # Blocks that were never trained have their first weights: to de-train them changes nothing.
    assert set(frozen["probes"]["reset"].values()) == {frozen["test_accuracy"]}
    assert {path.name for path in folder.glob("*.svg")} == {"blocks.svg", "efficiency.svg"}
    table = (folder / "table.md").read_text()
    assert "| 1 | 7 | 27.22 | 0.885 | 0.208 | one global head |" in table
    assert "| 1 | 8 | 196 | 0.259 |" in table
    off, reset = (100 * whole["probes"][kind]["3+4+5"] for kind in ("off", "reset"))
    assert f"| LHC-Net | 3+4+5 | 16 of 25 | {off:.2f} | {reset:.2f} |" in table
    # The host has no block: the figure is of the first row that has some.
    assert "<!-- LHC-Net -->" in (folder / "blocks.svg").read_text()


@pytest.mark.parametrize("stages", [False, True])
def test_detraining_gives_back_the_bits_that_a_block_had_before_its_training(params: Params, stages: bool) -> None:
    (params.root / "own.yaml").write_text(STAGES if stages else BLOCKS)
    plan = make_plan(params, "own.yaml", load_study("own.yaml", params.root), StudyOptions())
    cell = next(cell for cell in plan.cells if cell.row == "LHC-Net")
    seen: list[dict[str, torch.Tensor]] = []

    class Watched(Learner):
        def restore(self, state: TrainState) -> None:
            super().restore(state)
            seen.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fer.training.loop.Learner", Watched)
        plan.train(plan.cells[0])
        plan.train(cell)
    first = lhc_analysis.initial(cell.job).state_dict()
    blocks = [name for name in first if name.startswith("lhc.")]
    assert len(blocks) == 5 * 7
    for name in blocks:
        assert torch.equal(first[name], seen[-1][name]), name


def test_columns_without_shards_are_left_out_and_named_unless_they_were_asked_for(params: Params) -> None:
    several = replace(params, datasets={**params.datasets, "noisy": params.datasets["tiny"]})
    (params.root / "whole.yaml").write_text(CLASSES)
    folder = run(several, "whole.yaml", StudyOptions(workers=0, rows=("BTN",)))
    assert {row["dataset"] for row in read_json(folder / "results.json")["rows"]} == {"tiny"}
    assert "not trained on: noisy." in (folder / "table.md").read_text()
    with pytest.raises(ValueError, match="noisy"):
        run(several, "whole.yaml", StudyOptions(workers=0, rows=("BTN",), dataset=("noisy",)))


CLASSES = """
title: A whole table
work: btn
table: Table 4
kind: classes
axis: depth
draw: [confusion, training]
datasets: {tiny: ddamfn/nano, noisy: ddamfn/nano}
set: {epochs: 1, batch_size: 16, augment: [], schedule.warmup_epochs: 0.0}
rows:
  - {row: BTN, level: 2}
  - {row: ours, level: 3, against: BTN, datasets: {tiny: ddamfn/nano}, set: {options.num_heads: 3}}
smoke: {recipe: ddamfn/nano, dataset: tiny}
"""


def test_a_table_of_two_datasets_has_its_columns_its_classes_and_its_figures(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(params.root / "data" / "shards" / "tiny")
    make_shards(params.root / "data" / "shards" / "tiny", test=60)
    make_shards(params.root / "data" / "shards" / "noisy", seed=1)  # 8 test images: some classes have none
    for name in ("tiny", "noisy"):  # synthetic ones have no name in print
        folder = params.root / "data" / "shards" / name
        replace(load_manifest(folder), synthetic=False).save(folder)
    several = replace(params, datasets={**params.datasets, "noisy": params.datasets["tiny"]})
    names = iter(["RAF-DB", None, "RAF-DB", *["RAF-DB"] * 2])
    monkeypatch.setattr(study_stage, "dataset_name", lambda source, classes: next(names))
    (params.root / "whole.yaml").write_text(CLASSES)
    folder = run(several, "whole.yaml", StudyOptions(workers=0))
    content, table = read_json(folder / "results.json"), (folder / "table.md").read_text()
    assert [(row["row"], row["dataset"], row["against"]) for row in content["rows"]] == [
        ("BTN", "tiny", None), ("ours", "tiny", "BTN"), ("BTN", "noisy", None),
    ]  # fmt: skip
    assert "| test accuracy, % [published] | RAF-DB | noisy |" in table
    first, second = (row["kept_mb"] for row in content["rows"][:2])
    assert first < second, "a third head keeps more for the backward pass"
    assert f"| {second:g} |" in table
    printed = {(one["row"], one["dataset"], one["label"]): one["published"] for one in content["classes"]}
    assert len([one for one in printed if one[:2] == ("BTN", "tiny")]) == 8
    assert len([one for one in printed if one[:2] == ("BTN", "noisy")]) < 8
    assert printed["BTN", "tiny", "happiness"] == 97.05
    assert printed["BTN", "tiny", "mean of the classes"] == 87.30
    assert printed["BTN", "noisy", "mean of the classes"] is None, "a dataset shows no other dataset's numbers"
    assert printed["ours", "tiny", "happiness"] is None
    assert "[97.05]" in table
    assert "| APViT, cited | [92.06] | [97.3] |" in table
    runs = {f"{kind}-{run}" for kind in ("confusion", "training") for run in ("BTN_tiny", "BTN_noisy", "ours_tiny")}
    assert {path.stem for path in folder.glob("*.svg")} == {"curve-tiny", "curve-noisy", *runs}
    assert len(content["cells"][0]["history"]["train_loss"]) == 1
    cells = make_plan(
        params, "whole.yaml", load_study("whole.yaml", params.root), StudyOptions(dataset=("tiny",))
    ).cells
    assert [(cell.row, cell.dataset) for cell in cells] == [("BTN", "tiny"), ("ours", "tiny")]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (CLASSES.replace("work: btn", "work: bnt"), "work = 'bnt'"),
        (CLASSES.replace("work: btn", ""), "source: missing"),
        (CLASSES.replace("level: 3, ", ""), "axis: each row needs a level"),
        (CLASSES.replace("against: BTN", "against: BT"), "ours: against 'BT'.*did you mean 'BTN'"),
        (NOISE.replace("B, level: 30", "B, level: 20"), "each with a row at every level"),
        (NOISE.replace("series: B, level: 0", "series: A, level: 0"), "no two the same of both"),
        (SETS.replace("baseline: host\n", ""), "kind lhc_sets: needs a baseline"),
        (SETS.replace("row: B wide, series: LHC-Net", "row: B wide"), "a series for each of the other rows"),
        (SETS.replace("start: &best {rows: [host]}", "start: &best {rows: [C]}"), "'A': start or recipe_of names 'C'"),
        (SETS.replace("run: same_seed", "run: worst"), "start.run = 'worst'"),
        (SETS.replace("seeds: [0, 2]", "seeds: [1, 2]"), "row 'A', seed 0: no run of host"),
        (STAGES.replace("against: ResNet34v2", "against: ResNet"), "against 'ResNet': not a row"),
        (STAGES.replace("stages: 1}", "stages: 3}"), "stages = 3, the recipe 'lhc_net/nano' has 2"),
    ],
)  # fmt: skip
def test_a_study_without_what_its_kind_needs_is_rejected(params: Params, wrong: str, message: str) -> None:
    (params.root / "wrong.yaml").write_text(wrong)
    with pytest.raises(ConfigError, match=message):
        run(params, "wrong.yaml", StudyOptions(workers=0))


def test_values_on_the_command_line_are_yaml_12() -> None:
    assert _assignments(["a=off", "b.c=1e-3", "d=[1, 2]"]) == {"a": "off", "b.c": 0.001, "d": [1, 2]}
    with pytest.raises(ConfigError, match=r"^fer study --set: .*nested deeper than 50"):
        _assignments(["a=" + "[" * 60])
