"""Models beside each other: leaderboard, cost, paired differences, and the faces behind confusion cells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from builders.published import make_project, publish_training
from builders.shards import change_manifest, png
from page_outline import Outline

from fer.evaluation.predicted import mistakes_by_cell
from fer.io.files import read_json, write_json
from fer.params import Params
from fer.report import charts, gallery
from fer.report.collect import collect
from fer.report.html import decimal, p_value
from fer.report.page import board, cost_points, render
from fer.stages.evaluate import run as run_evaluation


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Params:
    """`nano` and `other`, the same weights, evaluated on a synthetic dataset; `third` is not trained."""
    params = make_project(tmp_path_factory.mktemp("project"))
    params = replace(params, recipes={key: params.recipe("nano") for key in ("nano", "other", "third")})
    for key in ("nano", "other"):
        publish_training(params, key=key, mlflow_run_id="a" * 32)
        run_evaluation(params, "toy", key)
    return params


def test_the_cost_of_a_model_is_beside_its_evaluation_and_not_in_its_result(project: Params) -> None:
    folder = project.root / "evaluated/toy/nano"
    cost = read_json(folder / "run.json")
    assert cost["parameters"] == 89_919
    assert cost["gmacs"] > 0 < cost["latency_ms"]
    assert "latency_ms" not in (folder / "test.json").read_text()


def test_the_leaderboard_ranks_by_accuracy_and_keeps_what_has_no_result_last(project: Params) -> None:
    (dataset,) = collect(project).datasets
    good, bad = (result for result in dataset.results if result.test)
    good = replace(good, test={**good.test, "accuracy": 0.9})
    missing = replace(bad, model="third", train={}, test={}, cost={})
    lines = board([missing, bad, good])
    assert [result.model for result, _ in lines] == [good.model, bad.model, "third"]
    values = lines[0][1]
    assert values["parameters"] == 89_919
    assert values["gmacs"] == good.cost["gmacs"]
    assert values["training"] == pytest.approx(73.4 * 2), "two workers, a thread each"
    assert set(lines[2][1].values()) == {"toy", "third", None}


def test_costs_of_an_earlier_version_are_left_out(project: Params) -> None:
    (dataset,) = collect(project).datasets
    old = replace(dataset.results[0], cost={})
    assert cost_points([old], "gmacs") == []
    assert charts.accuracy_by_cost([], "GMACs an image") == ""


def test_a_cost_chart_says_its_points_in_words_and_places_them_on_a_logarithmic_axis() -> None:
    points = [
        charts.Point(name=name, cost=cost, accuracy=accuracy, low=accuracy - 0.05, high=accuracy + 0.05)
        for name, cost, accuracy in (("small", 0.01, 0.5), ("middle", 0.1, 0.6), ("large", 1.0, 0.7))
    ]
    chart = charts.accuracy_by_cost(points, "GMACs an image")
    assert Outline(chart).open == []
    assert "small 50.0 % at 0.01; middle 60.0 % at 0.1; large 70.0 % at 1" in chart
    x = [float(part.split('"')[0]) for part in chart.split('<circle class="dot" cx="')[1:]]
    assert x[0] - x[1] == pytest.approx(x[1] - x[2], abs=0.2)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.3, 0.7, [0.2, 0.5, 1]), (1, 10, [1, 2, 5, 10]), (3, 3, [2, 5]), (0.002, 30, [0.001, 0.01, 0.1, 1, 10, 100])],
)
def test_logarithmic_ticks_span_the_values(low: float, high: float, ticks: list[float]) -> None:
    assert charts.log_ticks(low, high) == pytest.approx(ticks)


def test_models_are_compared_on_shared_rows_alone(project: Params) -> None:
    (dataset,) = collect(project).datasets
    (comparison,) = dataset.comparisons
    assert (comparison.models, comparison.rows) == (("nano", "other"), 45)
    assert comparison.pairs["nano", "other"].value == 0
    page = render(collect(project))
    assert Outline(page).open == []
    assert "differences on the same 45 test rows" in page


def test_rows_of_other_shards_are_in_no_comparison_and_show_no_faces(tmp_path: Path) -> None:
    params = make_project(tmp_path)
    for key in ("nano", "other"):
        publish_training(params, key=key)
    run_evaluation(params, "toy", "nano")
    change_manifest(tmp_path / "data/shards/toy", seed=1)
    digest = collect(params).datasets[0].digest
    train = tmp_path / "trained/toy/other/train.json"
    write_json(train, read_json(train) | {"data_digest": digest})
    run_evaluation(params, "toy", "other")
    content = collect(params)
    assert content.datasets[0].comparisons == ()
    assert list(content.gallery.cells) == [("toy", "other")]


def test_each_cell_shows_its_own_faces_within_the_budget(project: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    found = collect(project).gallery
    rows = collect(project).datasets[0].results[0].predicted
    assert rows is not None
    place = {sample: row for row, sample in enumerate(rows.sample_ids)}
    for (actual, predicted), faces in found.cells["toy", "nano"].items():
        assert actual != predicted
        assert 0 < len(faces) <= 6
        for face in faces:
            row = place[face["sample_id"]]
            assert (rows.labels[row], rows.predicted[row]) == (actual, predicted)
            assert face["cam"] is None
    assert len(found.images) <= 2 * 45, "models share the images of a face"
    assert found.cells["toy", "nano"] == found.cells["toy", "other"]
    monkeypatch.setattr(gallery, "MOST_BYTES", 9000)
    few = collect(project).gallery
    assert 0 < sum(map(len, few.images)) <= 9000
    monkeypatch.undo()
    none = replace(project, report=project.report.model_copy(update={"faces_per_cell": 0}))
    page = render(collect(none))
    assert "<dialog" not in page
    assert "data:image/jpeg" not in page


def write_maps(root: Path, samples: list[str], weights: str) -> Path:
    """explained/toy/nano, as the stage `explain` leaves it, as far as the page reads it."""
    folder = root / "explained/toy/nano"
    folder.mkdir(parents=True, exist_ok=True)
    faces = [{"sample_id": sample} for sample in samples]
    write_json(folder / "explain.json", {"faces": faces, "weights_sha256": weights})
    np.savez_compressed(folder / "maps.npz", grad_cam=np.eye(8, dtype=np.float32)[None].repeat(len(samples), 0))
    return folder


def test_a_gradcam_stands_beside_its_face_where_it_is_of_the_same_weights(tmp_path: Path) -> None:
    params = make_project(tmp_path)
    publish_training(params)
    run_evaluation(params, "toy", "nano")
    (result,) = (one for one in collect(params).datasets[0].results if one.test)
    assert result.predicted is not None
    last = mistakes_by_cell(result.predicted, 50)[-1]
    sample = result.predicted.sample_ids[last]

    def with_cam(params: Params) -> list[str]:
        cells = collect(params).gallery.cells.get(("toy", "nano"), {})
        return [face["sample_id"] for cell in cells.values() for face in cell if face["cam"] is not None]

    folder = write_maps(tmp_path, [sample], result.about["weights_sha256"])
    few = replace(params, report=params.report.model_copy(update={"faces_per_cell": 1}))
    assert with_cam(few) == [sample], "a face with a map is shown, however unsure the mistake"
    write_maps(tmp_path, [sample], "0" * 64)
    assert with_cam(params) == []
    write_maps(tmp_path, [sample], result.about["weights_sha256"])
    (folder / "maps.npz").write_bytes(b"no maps")
    (problem,) = collect(params).gallery.problems
    assert "explained/toy/nano/maps.npz" in problem
    assert "explain@toy-nano" in problem


def test_an_overlay_colors_the_face_only_where_the_map_is_high() -> None:
    face = gallery.thumbnail(png(np.full((40, 40), 128, np.uint8))) or b""
    heat = np.zeros((4, 4), np.float32)
    heat[:, 3] = 1
    drawn = cv2.imdecode(np.frombuffer(gallery.with_map(face, heat), np.uint8), cv2.IMREAD_COLOR).astype(int)
    assert abs(drawn[:, :16] - 128).max() < 12
    assert (drawn[:, -4:].max(axis=2) - drawn[:, -4:].min(axis=2)).min() > 40


def test_a_thumbnail_is_a_small_jpeg_of_the_same_shape() -> None:
    wide = np.full((100, 300), 90, np.uint8)
    small = cv2.imdecode(np.frombuffer(gallery.thumbnail(png(wide)) or b"", np.uint8), cv2.IMREAD_UNCHANGED)
    assert small.shape == (24, 72)
    assert gallery.thumbnail(b"no image") is None


def test_damaged_shards_cost_the_faces_and_not_the_page(tmp_path: Path) -> None:
    params = make_project(tmp_path)
    publish_training(params)
    run_evaluation(params, "toy", "nano")
    (tmp_path / "data/shards/toy/test-0.parquet").unlink()
    page = render(collect(params))
    assert "Faces are not shown: " in page
    assert "test-0.parquet" in page


def test_an_mlflow_run_is_linked_where_runs_are_recorded(project: Params) -> None:
    recorded = replace(project, tracking=project.tracking.model_copy(update={"enabled": True}))
    for uri, address in ((None, "http://127.0.0.1:5000"), ("https://me:secret@host/mlflow/", "https://host/mlflow")):
        tracking = recorded.tracking.model_copy(update={"uri": uri})
        page = render(collect(replace(recorded, tracking=tracking)))
        assert f'href="{address}/#/runs/{"a" * 32}"' in page
        assert "secret" not in page
    assert "/#/runs/" not in render(collect(project))
    assert "a" * 32 in render(collect(project)), "the id, to copy"


def test_the_ledger_is_linked_where_there_is_one(project: Params) -> None:
    assert "ledger.html" not in Outline(render(collect(project))).links
    assert "ledger.html" in Outline(render(replace(collect(project), ledger=True))).links


def test_small_numbers_are_shown_with_three_digits() -> None:
    assert [decimal(value) for value in (None, 0, 0.0039596, 0.5, 12.345, 1234.5)] == [
        "–", "0", "0.00396", "0.500", "12.3", "1,234"
    ]  # fmt: skip
    assert [p_value(p) for p in (0.0000001, 0.03721, 0.5, 1.0)] == ["< 0.001", "0.037", "0.50", "1.00"]
