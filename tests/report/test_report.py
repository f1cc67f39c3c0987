"""The report: complete, clear about what is missing or synthetic, and one file that needs nothing else."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml_text
from builders.published import make_project, publish_training, publish_training_chosen_on_test
from page_outline import Outline

from fer import published
from fer.io.files import FileError, read_json, write_json
from fer.params import Params, load
from fer.report import charts, rejects
from fer.report.collect import collect
from fer.report.html import duration, percent, points
from fer.report.page import class_lines, render
from fer.shards.manifest import load_manifest
from fer.sources.fer2013 import Fer2013Config
from fer.stages import report
from fer.stages.evaluate import run as run_evaluation

FER = Path(rejects.__file__).parents[1]
BANNER = "SYNTHETIC: says nothing about accuracy on people."


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Params:
    """`nano` is trained and evaluated on a synthetic dataset, `other` is neither."""
    params = make_project(tmp_path_factory.mktemp("project"))
    publish_training(params)
    run_evaluation(params, "toy", "nano")
    return params


@pytest.fixture(scope="module")
def page(project: Params) -> str:
    return report.run(project).read_text(encoding="utf-8")


def test_the_page_is_one_well_formed_file_without_requests(page: str) -> None:
    outline = Outline(page)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert {link.removeprefix("#") for link in outline.links} <= set(outline.ids)
    assert outline.addresses == []
    assert page.count("<caption") == page.count("<table")
    assert page.count("<th ") == page.count('<th scope="')
    assert not re.search(r"https?://|<script[^>]* src|<link|@import|url\(", page)


def test_summary_and_details_show_every_result(page: str) -> None:
    assert page.count("<svg viewBox") == 4, "training loss, validation loss, accuracy and a reliability diagram"
    for text in (
        "not trained yet: dvc repro train@toy-other",
        "89,919",
        "7 / 8",
        "1 min 13 s",
        "epoch 7, by accuracy on the validation split",
        "2 Ray workers",
        "interrupted and resumed 1 time",
        "Accuracy by turn of the head",
    ):
        assert text in page


def test_every_reject_reason_is_counted_and_explained(project: Params, page: str, tmp_path: Path) -> None:
    assert (
        '<tr><th scope="row">no face</th><td class="n">3</td><td class="n">4.29</td><td>the dataset annotates no face'
        in page
    )
    assert (
        '<tr><th scope="row">truncated</th><td class="n">1</td><td class="n">1.43</td><td>the file ends early' in page
    )
    assert "4, 5.7 % of the images and faces" in page
    params = make_project(tmp_path)
    faces = tmp_path / "data" / "faces" / "toy"
    about = {
        "source_digest": "0" * 64,
        "rejects": {"no_face": 3, "truncated": 1},
        "reject_examples": {"no_face": {"sample_id": "toy/0007", "detail": "no <face> in it"}},
    }
    write_json(faces / "faces.json", about)
    shown = render(collect(params))
    assert '<span class="mono">toy/0007</span><br><small>no &lt;face&gt; in it</small>' in shown
    write_json(faces / "faces.json", about | {"source_digest": "1" * 64})
    assert "toy/0007" not in render(collect(params)), "other faces than those of the shards"


@pytest.mark.parametrize(
    ("name", "stage"),
    [("trained/toy/nano/train.json", "train"), ("trained/toy/nano/val.json", "train"),
     ("evaluated/toy/nano/test.json", "evaluate")],
)  # fmt: skip
def test_a_damaged_file_is_rejected_with_the_command_that_makes_it_again(name: str, stage: str, tmp_path: Path) -> None:
    params = make_project(tmp_path)
    publish_training(params)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    write_json(tmp_path / name, [])
    with pytest.raises(FileError, match=rf"{name}: holds \[\].*: dvc repro -sf {stage}@toy-nano"):
        collect(params)


def test_every_decoding_error_has_a_meaning_in_words() -> None:
    decoding = re.findall(
        r'(?:ImageError|JpegError)\(\s*"(\w+)"',
        "".join((FER / name).read_text() for name in ("io/images.py", "io/jpeg.py")),
    )
    assert {"empty", "truncated", "damaged"} <= set(decoding)
    assert not set(decoding) - set(rejects._IMAGES)


def test_only_synthetic_data_has_the_banner(page: str, tmp_path: Path) -> None:
    assert page.count(BANNER) == 2, "in the summary, where nothing else is shown, and in the section"
    real = make_project(tmp_path, dataset="fer2013", synthetic=False)
    assert "SYNTHETIC" not in report.run(real).read_text()


def charts_of(page: str, heading: str) -> list[str]:
    """The curves of the chart below a heading, by their classes."""
    chart = page[page.index(f"<h4>{heading}</h4>") :]
    return re.findall(r'<polyline class="line (\w)"', chart[: chart.index("</svg>")])


@pytest.mark.parametrize(
    ("changes", "heading"),
    [
        ({"model": "btn_nano", "label_smoothing": 0.0}, "sum of three cross-entropies"),
        ({"model": "poster_v2_nano"}, "cross-entropy, labels smoothed by 0.1"),
        ({"model": "gone_since", "label_smoothing": 0.0}, "the model&#39;s own"),
        ({"stages": [{"model": "poster_v2_nano", "label_smoothing": 0.0}, {"model": "btn_nano"}]},
         "cross-entropy; then sum of three cross-entropies, labels smoothed by 0.1"),
    ],
)  # fmt: skip
def test_a_training_loss_other_than_validations_has_its_own_axis_and_name(
    changes: dict[str, Any], heading: str, tmp_path: Path
) -> None:
    params = make_project(tmp_path)
    publish_training(params, recipe=params.recipe("nano").model_dump(mode="json") | changes)
    page = render(collect(params))
    assert Outline(page).open == []
    assert charts_of(page, f"Training loss: {heading}") == ["a"]
    assert charts_of(page, "Validation loss: cross-entropy") == ["b"]
    assert charts_of(page, "Accuracy") == ["a", "b"]


def test_a_training_loss_that_is_the_validations_shares_its_axis(tmp_path: Path) -> None:
    params = make_project(tmp_path)
    same = {"model": "poster_v2_nano", "label_smoothing": 0.0}
    publish_training(params, recipe=params.recipe("nano").model_dump(mode="json") | same)
    page = render(collect(params))
    assert charts_of(page, "Loss: cross-entropy") == ["a", "b"]
    assert "Validation loss" not in page


@pytest.mark.parametrize(
    ("changes", "words"),
    [({}, None), ({"epochs": 3, "learning_rate": 0.5}, "besides the model, in epochs (3, 5), learning rate. Their")],
)
def test_results_of_different_recipes_do_not_rank_the_models(
    changes: dict[str, Any], words: str | None, tmp_path: Path
) -> None:
    params = make_project(tmp_path)
    recipe = params.recipe("nano").model_dump(mode="json")
    publish_training(params, "toy", "nano", recipe=recipe)
    publish_training(params, "toy", "other", recipe=recipe | {"model": "mfn_nano", "options": {}} | changes)
    page = render(collect(params))
    summary = page[page.index('id="summary"') : page.index('<h2 id="toy">')]
    assert "let models be compared" not in page
    assert ("do not rank the models" in summary) == (words is not None)
    assert words is None or words in summary


def test_lineage_names_commit_data_and_parameters(project: Params, page: str) -> None:
    content = collect(project)
    assert content.datasets[0].digest in page
    assert content.files["params.yaml"] in page
    assert "0123456789ab with uncommitted changes" in page


def make_fer2013(root: Path) -> Params:
    """A project whose dataset is known in print."""
    params = make_project(root, dataset="fer2013", synthetic=False)
    return replace(params, datasets={"fer2013": Fer2013Config(source="fer2013")})


def test_published_results_are_beside_ours_with_their_number_of_rows(tmp_path: Path) -> None:
    params = make_fer2013(tmp_path)
    publish_training(params, "fer2013")
    run_evaluation(params, "fer2013", "nano")
    page = render(collect(params))
    assert "The published test split has 3,589 rows; here 45 were used, so the results are not on the same rows" in page
    for model in ("LHC-NetC", "Human [2]", "mini-Xception"):
        assert model in page
    assert page.count('class="ours"') == 1
    assert "lower published results are not shown" in page


def test_both_protocols_and_their_difference_are_on_the_page(tmp_path: Path) -> None:
    params = make_fer2013(tmp_path)
    publish_training_chosen_on_test(params, "fer2013")
    run_evaluation(params, "fer2013", "nano")
    page = render(collect(params))
    assert Outline(page).open == []
    section = page[page.index('<article id="fer2013-nano">') : page.index('<h2 id="studies">')]
    table = section[section.index("Both protocols") : section.index("Confusion")]
    lines = [re.sub(r"<[^>]+>", "|", line) for line in re.findall("<tr>.*?</tr>", table, re.DOTALL)[1:]]
    published, selected, difference = ([cell for cell in re.split(r"\|+", line) if cell.strip()] for line in lines)
    assert published[:3] == ["published: epoch selected on the test split; optimistic", "15", "80.00"]
    assert selected[:3] == ["validation-selected: as many epochs as validation chose", "16", "60.00"]
    assert difference[:2] == ["difference, published minus validation-selected", "+20.00 points"]
    assert "epoch 15, by accuracy on the test split, as the published code does: optimistic" in section
    assert section.count('class="line c"') == 2, "the test curve, in both charts"
    assert "test rows, seen after every epoch" in section
    summary = page[page.index('<h2 id="summary"') : page.index('<h2 id="fer2013">')]
    assert "SELECTED ON TEST" in summary
    assert "validation-selected <small> +20.0 points for selecting on test" in summary
    ladder_ = page[page.index("Beside the published results") : page.index('<article id="fer2013-nano">')]
    assert "nano, validation-selected" in ladder_
    assert ladder_.count("optimistic") == 1
    assert "epoch 16" in ladder_
    assert "For 1 of them the epoch was selected on the test split" in page
    assert "For each model the test split was opened once" not in page


def test_results_of_all_rows_are_marked_and_compared_with_the_validation_selected_run(tmp_path: Path) -> None:
    params = make_project(tmp_path)
    models = {key: params.recipe("nano") for key in ("nano", "refit", "on_test")}
    params = replace(params, recipes=models)
    publish_training(params)
    recipe = params.recipe("nano").model_dump(mode="json")
    publish_training(params, key="refit", recipe=recipe | {"selection": "refit"}, chosen_epochs=[7])
    publish_training_chosen_on_test(params, key="on_test", selection="best")
    for key in models:
        run_evaluation(params, "toy", key)
    page = render(collect(params))
    assert Outline(page).open == []
    sections = {key: page[page.index(f'<article id="toy-{key}">') :].partition("</article>")[0] for key in models}
    assert "ALL ROWS" in sections["refit"]
    assert "(7 epochs); then trained on all rows but the test split's" in sections["refit"]
    assert "SELECTED ON TEST" in sections["on_test"]
    assert "no validation-selected result exists" in sections["on_test"]
    for key in ("refit", "on_test"):
        assert "+0.00 points for all rows" in sections[key]
    assert "The same recipe" not in sections["nano"]


def test_a_validation_selected_run_has_one_result_and_no_badge(page: str) -> None:
    for text in ("SELECTED ON TEST", "Both protocols", "optimistic", "validation-selected", "selected on test"):
        assert text not in page


def test_an_evaluation_without_the_protocols_is_out_of_date(tmp_path: Path) -> None:
    params = make_project(tmp_path)
    publish_training_chosen_on_test(params)
    path = run_evaluation(params, "toy", "nano") / "test.json"
    write_json(path, {name: value for name, value in read_json(path).items() if name != "protocols"})
    page = render(collect(params))
    assert "the evaluation does not say so: dvc repro -sf evaluate@toy-nano" in page
    assert "SELECTED ON TEST" in page


def test_the_selection_metric_is_that_of_the_last_stage(tmp_path: Path) -> None:
    params = make_project(tmp_path)
    recipe = params.recipe("nano").model_dump(mode="json")
    recipe["stages"] = [{"epochs": 2}, {"epochs": 6, "selection_metric": "balanced_accuracy"}]
    publish_training(params, recipe=recipe)
    page = render(collect(params))
    assert "epoch 7, by balanced accuracy on the validation split" in page
    assert "2 stages, of which each changes some of:" in page


def test_augmented_results_are_beside_the_plain_ones_with_their_difference(tmp_path: Path) -> None:
    params = make_fer2013(tmp_path)
    params = replace(params, evaluate=params.evaluate.model_copy(update={"tta": "flip"}))
    publish_training(params, "fer2013")
    summary = read_json(run_evaluation(params, "fer2013", "nano") / "test.json")
    augmented, (difference,) = summary["tta"], summary["tta"]["difference"]
    page = render(collect(params))
    assert Outline(page).open == []
    table = page[page.index("<h4>Test-time augmentation</h4>") : page.index("<h4>Training loss")]
    low, high = (percent(augmented["intervals"][0][end]) for end in ("low", "high"))
    assert f"{percent(augmented['accuracy'], 2)}<br><small>{low} – {high}</small>" in re.sub(r"\n", "", table)
    assert f">{points(difference['value'], 2)}<br><small>{points(difference['low'], 2)}" in table
    assert f"correct {difference['gained']} prediction" in table
    assert "paired percentile bootstrap over rows" in table
    assert page.count("with the flip views") == 2, "in the summary, and as a tile"
    assert "nano, flip views" in page, "beside the published results"


def test_a_page_without_augmentation_does_not_mention_it(page: str) -> None:
    assert "Test-time augmentation" not in page
    assert "flip" not in page.partition('<h2 id="reading">')[0]


def test_outdated_results_are_marked(tmp_path: Path) -> None:
    params = make_project(tmp_path)
    publish_training(params)
    run_evaluation(params, "toy", "nano")
    assert "Out of date" not in render(collect(params))
    shutil.copyfile(tmp_path / "params.yaml", tmp_path / "trained/toy/nano/model.safetensors")
    folder = tmp_path / "data/shards/toy"
    replace(load_manifest(folder), seed=1).save(folder)
    page = render(collect(params))
    assert "Out of date: the data has changed since the model was trained" in page
    assert "Out of date: the model has been trained again since the evaluation" in page


def test_a_run_of_an_older_project_shows_its_time_and_machine(tmp_path: Path) -> None:
    params = make_project(tmp_path)
    publish_training(params, old=True)
    page = render(collect(params))
    assert all(text in page for text in ("1 min 13 s", "Some CPU, 2 cores", "resumed 1 time", "2 Ray workers"))


def test_results_outside_the_run_section_are_shown_too(tmp_path: Path) -> None:
    params = make_project(tmp_path)
    publish_training(params)
    yaml_text.edit(tmp_path / "params.yaml", "run.models", ["other"])
    names = [result.model for result in collect(load(tmp_path / "params.yaml")).results]
    assert names == ["other", "nano"]


def test_a_report_on_nothing_names_the_next_command(tmp_path: Path) -> None:
    params = make_project(tmp_path)
    shutil.rmtree(tmp_path / "data")
    page = report.run(params).read_text()
    assert "not sharded yet: dvc repro shard@toy" in page
    assert "0 of 2 results" in page


def test_names_cannot_inject_markup(tmp_path: Path) -> None:
    params = make_project(tmp_path)
    params = replace(params, report=params.report.model_copy(update={"title": "<b>&"}))
    assert "&lt;b&gt;&amp;" in render(collect(params))


def test_same_content_same_page(project: Params, page: str) -> None:
    assert render(collect(project)) == page


def test_ticks_are_round_and_span_the_data() -> None:
    assert charts.nice_ticks(0.12, 0.87) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert charts.nice_ticks(3.0, 3.0) == [3.0, 3.2, 3.4, 3.6, 3.8, 4.0]
    for low, high in ((0.001, 0.0019), (-3.0, 17.0), (1e5, 9e5)):
        ticks = charts.nice_ticks(low, high)
        assert ticks[0] <= low
        assert ticks[-1] >= high
        assert len(ticks) <= 8


def test_curves_with_one_epoch_or_diverged_values_are_drawn() -> None:
    assert "polyline" in charts.lines(
        {"epoch": [1], "train_loss": [2.0], "val_loss": [float("nan")]}, "loss", 1, fraction=False
    )
    assert charts.lines({"epoch": [1], "val_loss": [float("nan")]}, "loss", 1, fraction=False) == ""
    assert charts.lines({}, "loss", None, fraction=False) == ""


def test_durations_are_readable() -> None:
    expected = {None: "–", 0.4: "0 s", 59.6: "1 min 0 s", 3599: "59 min 59 s", 7260: "2 h 1 min"}
    assert {value: duration(value) for value in expected} == expected


def test_differences_carry_their_sign() -> None:
    assert [points(value) for value in (None, 0.0123, -0.0123, 0.0)] == ["–", "+1.2", "−1.2", "+0.0"]


def test_class_fractions() -> None:
    lines = class_lines(("a", "b"), {"train": (1, 3), "test": (0, 0)})
    assert lines[1]["splits"]["train"] == {"rows": 3, "fraction": 0.75, "of_largest": 1.0}
    assert lines[0]["splits"]["test"] == {"rows": 0, "fraction": 0.0, "of_largest": 0.0}


def test_published_results_are_plausible_and_attributed() -> None:
    for dataset in ("FER2013", "RAF-DB", "AffectNet-7", "AffectNet-8", "CAER-S", "AI-Hub"):
        works = published.results(dataset)
        assert works
        assert all(0.5 < one.fraction < 1 and one.work in published.WORKS and one.table for one in works)
        assert works == sorted(works, key=lambda one: -one.value)
    assert published.test_rows("FER2013") == 3589
    human = next(one for one in published.results("FER2013") if one.row.startswith("Human"))
    assert (human.fraction, human.margin) == (0.65, 0.05)
    assert published.dataset_name("affectnet", 8) == "AffectNet-8"
    assert published.dataset_name("synthetic", 7) is None
