"""Studies in the report: all results are shown, and no damaged or unknown file prevents the page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from builders.published import make_project
from page_outline import Outline

from fer.config import parse
from fer.evaluation.figures import save
from fer.io.files import write_json
from fer.params import Params
from fer.report.collect import collect
from fer.report.page import render
from fer.stages import report
from fer.studies import Study, StudyOptions, noise
from fer.studies import figures as study_figures
from fer.studies import results as study_results
from fer.studies.cell import Plan

TABLE: dict[str, Any] = {
    "title": "A table of two <b>rows</b>",
    "source": "A work, Table 1",
    "dataset": "people",
    "recipe": "ddamfn/nano",
    "baseline": "plain",
    "rows": [{"row": "plain", "published": 90.0}, {"row": "without heads", "published": 91.5}, {"row": "third"}],
    "smoke": {"recipe": "ddamfn/nano", "dataset": "toy"},
}
ACCURACIES = {"plain": (0.70, 0.72, 0.74), "without heads": (0.75, 0.76, 0.80)}


def key(number: int) -> str:
    return f"{number:020x}"


def cells(accuracies: Mapping[str, Sequence[float]], dataset: str, **more: Any) -> list[dict[str, Any]]:
    """One run per accuracy, by seed; `more` of its metrics."""
    made = []
    for row, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            metrics = {"test_accuracy": accuracy, "val_accuracy": accuracy + 0.01, "train_loss": 1 - accuracy}
            about = {
                "row": row,
                "dataset": dataset,
                "known_as": None,
                "seed": seed,
                "fold": None,
                "key": key(len(made)),
                "parameters": 89919,
            }
            made.append({**about, **metrics, "seconds": 2.0, **more})
    return made


def write_study(root: Path, name: str, keys: Mapping[str, Any] = TABLE, **options: Any) -> Path:
    """reports/reports/studies/<name>, as `fer study` leaves it, of runs with ACCURACIES."""
    study = parse(Study, keys, name)
    asked = parse(StudyOptions, {"rows": list(ACCURACIES), "seeds": [0, 1, 2], **options}, name)
    names = [row.row for row in asked.chosen(study)]
    more: dict[str, Any] = {} if study.tta == "none" else {"test_tta_accuracy": 0.8}
    if study.kind == "lhc_sets":
        more |= {"keras_parameters": 32_411_668, "attention_share": 0.148, "known_as": "FER2013"}
    (dataset,) = asked.columns(study, study.rows[0])
    results = cells({name: values for name, values in ACCURACIES.items() if name in names}, dataset, **more)
    plan = cast(Plan, None)  # of kinds that read no predictions
    made = study_results.read(study, asked, plan, results)
    folder = root / "reports" / "studies" / name
    folder.mkdir(parents=True)
    (folder / "table.md").write_text(made.markdown)
    for figure, drawn in made.figures.items():
        save(drawn, folder / f"{figure}.svg")
    about = {"study": study.model_dump(mode="json"), "options": asked.model_dump(mode="json"), "cells": results}
    write_json(folder / "results.json", {**about, **made.content})
    return folder


def section(page: str) -> str:
    return page[page.index('<h2 id="studies">') : page.index('<h2 id="reading">')]


def cells_of(page: str, row: str) -> list[str]:
    """The texts of a line of a study's table."""
    line = next(
        line for line in re.findall("<tr>.*?</tr>", section(page), re.DOTALL) if f'<th scope="row">{row}' in line
    )
    return [re.sub(r"<[^>]+>|\n", " ", cell).strip() for cell in re.findall("<t[hd].*?</t[hd]>", line, re.DOTALL)]


@pytest.fixture
def params(tmp_path: Path) -> Params:
    return make_project(tmp_path)


def test_a_table_shows_spread_interval_and_published_result(params: Params) -> None:
    write_study(params.root, "own")
    page = report.run(params).read_text(encoding="utf-8")
    outline = Outline(page)
    assert outline.open == []
    assert outline.addresses == []
    assert [link for link in outline.links if not link.startswith("#")] == [
        "studies/own/table.md", "studies/own/results.json"
    ]  # fmt: skip
    assert {link.removeprefix("#") for link in outline.links if link.startswith("#")} <= set(outline.ids)
    plain, other = cells_of(page, "plain"), cells_of(page, "without heads")
    assert plain[1:] == ["72.00 ± 2.00", "67.03 – 76.97", "3", "73.00 ± 2.00", "–", "89,919", "90.00"]
    assert other[1:4] == ["77.00 ± 2.65", "70.43 – 83.57", "3"]
    assert other[5].split() == ["+5.00", "+2.52", "to", "+7.48"], "pair by pair, with Student's interval"
    assert other[-1] == "91.50"
    text = section(page)
    assert "A table of two &lt;b&gt;rows&lt;/b&gt;" in text
    assert "6 runs: 2 rows, 3 seeds" in text
    assert "Not trained, so not in the table: third." in text
    assert "Not here yet" not in text
    assert render(collect(params)) == page


def test_a_cross_validation_names_its_folds_and_missing_runs(params: Params) -> None:
    write_study(params.root, "folds", folds=10)
    text = section(render(collect(params)))
    assert "3 seeds, 10 folds" in text
    assert "Not finished: 6 of 60 runs." in text


def test_augmented_results_are_beside_the_plain_ones_of_a_study(params: Params) -> None:
    write_study(params.root, "views", {**TABLE, "tta": "flip"})
    page = render(collect(params))
    assert "with the flip views %" in section(page)
    plain = cells_of(page, "plain")
    assert plain[1] == "72.00 ± 2.00"
    assert plain[6:8] == ["80.00 ± 0.00  80.00 – 80.00", "+8.00  +3.03 to +12.97"]


def test_a_smoke_run_is_marked(params: Params) -> None:
    write_study(params.root, "own-smoke", smoke=True)
    text = section(render(collect(params)))
    assert "Smoke run: small models on synthetic faces." in text
    assert "SYNTHETIC" in text


def test_datasets_classes_and_failed_runs_of_a_study_are_shown(params: Params) -> None:
    rows = [TABLE["rows"][0], {**TABLE["rows"][1], "against": "plain"}]
    columns = {"people": "ddamfn/nano", "toy": "ddamfn/nano"}
    folder = write_study(params.root, "own", {**TABLE, "baseline": None, "rows": rows})
    content = json.loads((folder / "results.json").read_text())
    content["study"] |= {"datasets": columns, "kind": "classes"}
    content["rows"] += [{**row, "dataset": "toy", "known_as": "FER2013", "published": 12.3} for row in content["rows"]]
    test = {"count": 1, "mean": 0.5, "std": None, "low": None, "high": None}
    places = [(row, dataset, label) for dataset in columns for row in ACCURACIES for label in ("fear", "anger")]
    content["classes"] = [
        {"row": row, "dataset": dataset, "label": label, "published": 61.5 if label == "fear" else None, "test": test}
        for row, dataset, label in places
    ]
    content["wrong"] = ["plain, toy, seed 1: <b>out of memory</b>"]
    write_json(folder / "results.json", content)
    page = render(collect(params))
    text = section(page)
    assert Outline(page).open == []
    assert '<th scope="row">plain <small>people</small>' in text
    assert '<th scope="row">plain <small>FER2013</small>' in text
    assert "<small>to plain</small>" in text
    assert '<div class="stale">plain, toy, seed 1: &lt;b&gt;out of memory&lt;/b&gt;.</div>' in text
    assert "Not finished: 6 of 12 runs." in text
    assert text.count("<h4>Accuracy of every class") == 2
    assert "50.00 / 61.50" in text
    assert "12.30" in text


def test_rows_whose_recipe_selects_on_test_are_marked(params: Params) -> None:
    rows = [TABLE["rows"][0], {**TABLE["rows"][1], "set": {"protocol": "published"}}]
    write_study(params.root, "own", {**TABLE, "rows": rows})
    page = render(collect(params))
    assert "SELECTED ON TEST" not in cells_of(page, "plain")[0]
    assert "SELECTED ON TEST" in cells_of(page, "without heads")[0]
    assert "the validation-selected result is beside it where there is one" in section(page)


def test_a_removed_recipe_is_reported_and_the_results_stay(params: Params) -> None:
    write_study(params.root, "own", {**TABLE, "recipe": "gone/away"})
    page = render(collect(params))
    assert cells_of(page, "plain")[1] == "72.00 ± 2.00"
    assert "unknown for: plain, without heads" in section(page)


def test_sets_of_runs_are_beside_the_printed_ones_with_their_figure(params: Params) -> None:
    rows = [{"row": "plain"}, {"row": "without heads", "series": "LHC-Net"}]
    write_study(params.root, "sets", {**TABLE, "kind": "lhc_sets", "rows": rows})
    page = render(collect(params))
    outline = Outline(page)
    assert outline.open == []
    assert len(outline.addresses) == 1
    assert outline.addresses[0].startswith("data:image/svg+xml;base64,"), "nothing is asked for"
    assert cells_of(page, "LHC-Net")[1:4] == ["77.00 ± 2.65", "70.43 – 83.57", "3"]
    assert "80.00 / 73.39" in section(page)
    assert "against LHC-Net at equal seeds" in section(page)


def test_label_noise_is_shown_by_level_with_its_verdict(params: Params) -> None:
    rows = [
        {"row": f"{series}, {level} %", "series": series, "level": level, "published": 60.0 + level}
        for level in (0, 30) for series in ("A", "B")
    ]  # fmt: skip
    study = parse(Study, {**TABLE, "kind": "noise", "baseline": None, "rows": rows}, "noise")
    random = np.random.default_rng(0)
    labels = np.zeros(400, np.int64)

    def drawn(accuracy: float) -> noise.Correctness:
        return noise.Correctness(seeds=(0, 1, 2), labels=labels, correct=random.random((3, 400)) < accuracy)

    levels = [{"level": level, **noise.compare(drawn(0.6), drawn(0.9))} for level in (0.0, 30.0)]
    folder = params.root / "reports" / "studies" / "noise"
    found = {"series": ["A", "B"], "levels": levels, "growth": None}
    content = {
        "study": study.model_dump(mode="json"),
        "options": StudyOptions(seeds=(0, 1, 2)).model_dump(mode="json"),
        "cells": [{"row": row["row"], "key": key(n)} for n, row in enumerate(rows * 3)],
    }
    write_json(folder / "results.json", content | found)
    save(study_figures.noise(found, "Noise"), folder / "noise.svg")
    page = render(collect(params))
    first, second = cells_of(page, "A, 30 %"), cells_of(page, "B, 30 %")
    assert first[4] == "–"
    mean = levels[1]["difference"]["mean"]
    assert second[4].startswith(f"{100 * mean:+.2f}")
    assert second[5] == "90.00"
    assert second[6].startswith("B is better, by ")
    assert section(page).count("<img ") == 1
    assert not collect(params).studies.problems


def test_runs_that_are_in_no_table_are_counted(params: Params) -> None:
    write_study(params.root, "own")
    work = params.root / ".work"
    for number in (0, 1):  # in the table
        write_json(work / "study-own-0123abcd" / key(number) / "result.json", {})
    assert "in no table yet" not in render(collect(params))
    write_json(work / "study-own-0123abcd" / key(77) / "result.json", {})
    write_json(work / "study-noise-89abcdef" / key(78) / "result.json", {})
    (work / "study-noise-89abcdef" / key(79)).mkdir()
    (work / "study-noise-89abcdef" / "ray").mkdir()
    text = section(render(collect(params)))
    assert "<b>own</b>: 1 run finished; in no table yet" in text
    assert "<b>noise</b>: 1 run finished, 1 begun; in no table yet" in text


def test_an_unfinished_study_shows_its_number_of_runs(params: Params) -> None:
    work = params.root / ".work" / "study-noise-89abcdef"
    for number in (1, 2, 3):
        write_json(work / key(number) / "result.json", {})  # the third is of an earlier start with other options
    write_json(work / "plan.json", {"study": "noise", "cells": [{"key": key(number)} for number in (1, 2, 4, 5)]})
    (work / key(4)).mkdir()
    assert "<b>noise</b>: 2 of 4 runs finished, 1 begun; in no table yet" in section(render(collect(params)))
    (work / "plan.json").write_text('{"cells": 3}')
    assert "plan.json: cells = 3" in " ".join(collect(params).studies.problems)


def test_no_study_is_needed(params: Params) -> None:
    page = report.run(params).read_text()
    assert "Not here yet – <code>fer study</code>" in section(page)
    assert not (params.root / "reports" / "studies").exists()


def _change(**keys: Any) -> Any:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        return {**content, **keys}

    return change


BROKEN = {
    "not JSON": ("{", r"results\.json: not valid JSON"),
    "a list": ([], "expected the results of a study, found list"),
    "another thing": ({"accuracy": 1}, r"results\.json: .*study"),
    "no row": (_change(rows=[]), "rows: empty or missing, for a study of kind table"),
    "no cell": (_change(cells=[]), r"results\.json: .*cells"),
    "no number": (_change(rows=[{"row": "plain", "test": {"mean": "high"}}]), r"results\.json: .*rows"),
    "NaN": (lambda content: json.dumps(content).replace('"low": 0.', '"low": NaN, "was": 0.', 1), r"rows.*low"),
    "a row of another study": (lambda content: json.dumps(content).replace('"plain"', '"plane"', 1), "plane"),
    "too many folds": (lambda content: json.dumps(content).replace('"folds": null', '"folds": 99999999', 1), "folds"),
    "half a character": (lambda content: json.dumps(content).replace("A work", "\\ud800", 1), r"results\.json"),
    "bytes": (b"\xff\xfe\x00", r"results\.json: not valid JSON"),
    "nested": ("[" * 100_000, r"results\.json: not valid JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_study_is_left_out_and_reported_and_the_others_stay(
    params: Params, name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fer.console.log.propagate", True)
    made, message = BROKEN[name]
    write_study(params.root, "whole")
    path = write_study(params.root, "broken") / "results.json"
    content = made(json.loads(path.read_text())) if callable(made) else made
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    page = report.run(params).read_text()
    (problem,) = collect(params).studies.problems
    assert re.search(message, problem), problem
    assert problem.startswith("reports/studies/broken/results.json"), problem
    assert str(params.root) not in page
    assert section(page).count('class="stale"') == 1
    assert [study.name for study in collect(params).studies.results] == ["whole"]
    assert "left out of the report: reports/studies/broken" in caplog.text


def test_unknown_files_are_reported_and_notes_are_not(params: Params) -> None:
    folder = write_study(params.root, "whole")
    studies = folder.parent
    for name in ("README.md", "mine.yaml", ".gitignore"):
        (studies / name).write_text("")
    (studies / "weights.bin").write_bytes(b"\0")
    (studies / "empty").mkdir()
    (studies / "folder" / "results.json").mkdir(parents=True)
    (studies / "nowhere").symlink_to(studies / "gone")
    (folder / "broken.svg").write_text("<html></html>")
    (folder / "half.svg").write_text("<svg><g>")
    (folder / "folder.svg").mkdir()
    found = collect(params).studies
    assert [study.name for study in found.results] == ["whole"]
    named = sorted(problem.partition(":")[0] for problem in found.problems)
    names = ("empty", "folder/results.json", "nowhere", "weights.bin")
    names += ("whole/broken.svg", "whole/folder.svg", "whole/half.svg")
    assert named == [f"reports/studies/{name}" for name in names]
    assert "Left out: reports/studies/empty: no results.json in it" in render(collect(params))


def test_malicious_names_and_figures_stay_text(params: Params) -> None:
    folder = write_study(params.root, "a <b> & 'c'")
    (folder / "x.svg").write_text("<svg><script>alert(1)</script></svg>")
    page = report.run(params).read_text()
    assert Outline(page).open == []
    assert "alert(1)" not in page
    assert "studies/a%20%3Cb%3E%20%26%20%27c%27/table.md" in page


def test_a_file_in_place_of_the_studies_folder_is_reported(params: Params) -> None:
    (params.root / "reports").mkdir()
    (params.root / "reports" / "studies").write_text("")
    assert collect(params).studies.problems == ("reports/studies: Not a directory",)
    assert "Left out: reports/studies: Not a directory." in section(render(collect(params)))


def test_results_of_earlier_versions_are_named_with_their_new_place(params: Params) -> None:
    (params.root / "studies" / "own").mkdir(parents=True)
    (params.root / "studies" / "own" / "results.json").write_text("{}")
    assert collect(params).studies.problems == ("studies/own: of an earlier version; move it to reports/studies",)
