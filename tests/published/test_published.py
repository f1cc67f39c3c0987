"""The printed numbers that come with the package."""

from __future__ import annotations

import csv
from collections import Counter
from importlib import resources

import pytest

from fer import published

UNITS = {"%", "points", "count", "M", "K", "G", "px", "k px", "deg", "rad", "epochs", "1"}


def test_every_number_that_the_five_papers_print_is_there_once() -> None:
    found = list(published.numbers())
    lines = resources.files("fer.published").joinpath("numbers.csv").read_text(encoding="utf-8").splitlines()
    assert len(found) == sum(1 for _ in csv.DictReader(lines)), "two lines name the same number"
    assert Counter(one.work for one in found) == {
        "btn": 420, "ddamfn": 69, "dynamic_attention": 46, "lhc_net": 158, "poster_v2": 263, "mini_xception": 1,
    }  # fmt: skip
    assert sum(one.work in published.PAPERS for one in found) == 956


def test_every_number_has_a_value_a_unit_and_a_known_work() -> None:
    for one in published.numbers():
        assert one.unit in UNITS
        assert one.work in published.WORKS
        assert isinstance(one.value, float)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (("btn", "Table 6", "lambda=2.0", "RAF-DB"), 92.54),
        (("btn", "Table 7", "BTN", "AffectNet-7", "accuracy", "batch size 144"), 67.60),
        (("poster_v2", "Table 9", "POSTER V2", "RAF-DB", "learning_rate", "Adam"), 3.5e-5),
        (("ddamfn", "text 2.3", "DDAMFN", "", "lambda_a", "default"), 0.1),
        (("ddamfn", "Table 2", "DDAMFN (our model)", "FER2013"), None),
    ],
)
def test_a_number_is_found_by_its_name(name: tuple[str, ...], expected: float | None) -> None:
    assert published.value(*name) == expected


def test_numbers_are_selected_by_any_part_of_their_name() -> None:
    folds = [one.setting for one in published.numbers(work="ddamfn", table="Table 9", row="DDAMFN")]
    assert folds == [*(f"Fold {fold}" for fold in range(1, 11)), "mean of 10 folds"]
    assert not list(published.numbers(work="ddamfn", table="Table 9", row="RAN"))
