"""Searches in the report and as charts: every trial, what to believe; and no damaged file costs the page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from builders.published import make_project
from page_outline import Outline

from fer.config import parse
from fer.io.files import write_json
from fer.params import Params
from fer.report import charts
from fer.report.collect import collect
from fer.report.page import render
from fer.report.searches import SearchFile, charts_of

SPACE = [
    ("learning_rate", {"low": 1e-4, "high": 0.1, "log": True}),
    ("optimizer", {"choices": ["adamw", "sgd"]}),
    ("momentum", {"low": 0.5, "high": 0.9, "when": {"optimizer": ["sgd"]}}),
]


def trial(
    number: int, best: float | None, *, cost: float | None = None, reason: str = "", **values: Any
) -> dict[str, Any]:
    status = "failed" if reason else "finished"
    return {
        "number": number, "key": f"{number:03d}-x", "values": values, "status": status, "epochs": 2, "best": best,
        "best_epoch": 2, "seconds": 1.0, "reason": reason, "cost": cost, "run_id": None,
    }  # fmt: skip


def spread(mean: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"count": 2, "mean": mean, "std": 0.01, "low": low, "high": high}


def content(**changes: Any) -> dict[str, Any]:
    """What a search over SPACE left, of four trials and two confirming ones."""
    return {
        "best_trial": 3, "best": 0.7, "metric": "val_accuracy", "cost": "gmacs", "front": [2, 3],
        "confirmed": {"winner": spread(0.64), "recipe": spread(0.6), "gain": spread(0.04, -0.01, 0.09)},
        "importance": {"learning_rate": 0.75, "optimizer": 0.25}, "seed": 7, "data_digest": "d" * 64,
        "fingerprint": "f" * 64, "budget": {"method": "tpe", "epochs": 2, "stopping": "none"}, "space": SPACE,
        "trials": [
            trial(1, 0.6, cost=2.0, learning_rate=0.001, optimizer="adamw"),
            trial(2, 0.5, cost=1.0, learning_rate=0.0001, optimizer="sgd", momentum=0.5),
            trial(3, 0.7, cost=2.0, learning_rate=0.01, optimizer="sgd", momentum=0.9),
            trial(4, None, reason="DivergedError: the loss is <NaN>", learning_rate=0.1, optimizer="adamw"),
            trial(5, 0.63, cost=2.0, learning_rate=0.01, optimizer="sgd", momentum=0.9, seed=8),
        ],
    } | changes  # fmt: skip


def found(**changes: Any) -> SearchFile:
    return parse(SearchFile, content(**changes), "a search")


@pytest.fixture
def params(tmp_path: Path) -> Params:
    return make_project(tmp_path)


def test_the_page_has_every_trial_with_its_reason_and_what_to_believe(params: Params) -> None:
    write_json(params.root / "tuned" / "toy" / "nano.json", content())
    page = render(collect(params))
    outline = Outline(page)
    assert outline.open == []
    assert outline.addresses == []
    section = page[page.index('<h2 id="searches">') : page.index('<h2 id="reading">')]
    rows = re.findall(r'<th scope="row" class="n">(\d)</th>', section)
    assert rows == ["1", "2", "3", "4", "5"]
    assert "DivergedError: the loss is &lt;NaN&gt;" in section
    assert "0.6400 ± 0.0100; in the search 0.7000" in section
    assert "+0.0400 in the mean of the seeds, 95 % interval -0.0100 to +0.0900; not shown to be better" in section
    assert section.count("<svg") == 3


def test_a_page_without_searches_has_no_such_section(params: Params) -> None:
    assert 'id="searches"' not in render(collect(params))


@pytest.mark.parametrize("damage", ["{", "[]", '{"best_trial": 1}', '{"space": [], "surprise": 1}'])
def test_a_damaged_search_is_named_and_costs_nothing_else(damage: str, params: Params) -> None:
    write_json(params.root / "tuned" / "toy" / "nano.json", content())
    (params.root / "tuned" / "toy" / "other.json").write_text(damage)
    searches = collect(params).searches
    assert [search.model for search in searches.results] == ["nano"]
    assert len(searches.problems) == 1
    assert searches.problems[0].startswith("tuned/toy/other.json")


def test_a_gain_that_may_be_nothing_is_said_to_be_unproven() -> None:
    sure = {"winner": spread(0.7), "recipe": spread(0.6), "gain": spread(0.1, 0.05, 0.15)}
    assert "not shown" not in " ".join(found(confirmed=sure).conclusion)
    assert "not shown to be better" in found().conclusion[-1]
    assert found(confirmed={}).conclusion == []


def test_each_ranked_trial_is_a_line_through_all_axes_the_best_one_marked() -> None:
    drawn = charts_of(found())
    assert list(drawn) == ["trials", "importance", "front"]
    lines = re.findall(r'<polyline class="line (\w)" stroke-opacity="([\d.]+)" points="([^"]+)">', drawn["trials"])
    assert [kind for kind, _, _ in lines] == ["a", "a", "b"], (
        "the worst first, the winner last; none failed or confirming"
    )
    points = [[tuple(map(float, point.split(","))) for point in line.split()] for _, _, line in lines]
    assert {len(line) for line in points} == {4}
    rates = [line[0][1] for line in points]  # 0.0001, 0.001, 0.01 on a logarithmic axis, from the bottom up
    assert rates[0] - rates[1] == pytest.approx(rates[1] - rates[2], abs=0.2)
    assert rates[0] > rates[2]
    assert points[1][2][1] > points[0][2][1], "a trial without the parameter passes below the axis"
    assert "none" in drawn["trials"]


@pytest.mark.parametrize("changes", [{}, {"metric": "val_loss", "cost": None, "front": [], "importance": {}}])
def test_charts_alone_are_whole_images_with_their_colors(changes: dict[str, Any]) -> None:
    drawn = charts_of(found(**changes))
    assert ("front" in drawn) == (changes == {})
    for chart in drawn.values():
        root = ElementTree.fromstring(charts.alone(chart))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "--accent" in charts.alone(chart)


def test_the_lowest_loss_is_the_best() -> None:
    assert [one.number for one in found(metric="val_loss", cost=None).ranked] == [3, 1, 2]


def test_a_search_without_results_has_no_charts() -> None:
    assert charts_of(found(trials=[trial(1, None, reason="no", learning_rate=0.1)])) == {}
