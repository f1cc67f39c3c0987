"""What a printed number says by itself: how exact it is, what counts it can be of, and the mean of its row."""

from __future__ import annotations

import math

from fer import published
from fer.labels import named
from fer.ledger.counts import table
from fer.published import Number

FOLDER_CONTEMPT = 499
"""Test images of contempt in AffectNet-8's folder release; 500 are printed."""

MEANS_OF_RUNS = ("Top 40%", "Top 40% w/o best", "Top 25%", "Top 25% w/o best")

_DROPS_ZEROS = ("poster_v2",)
"""Works that print 86.90 as 86.9: their percentages have two decimals."""


def decimals(number: Number) -> int:
    """Digits behind the point, of 3.50E-05 seven."""
    if number.work in _DROPS_ZEROS and number.unit == "%":
        return 2
    mantissa, _, exponent = number.printed.lower().partition("e")
    return len(mantissa.partition(".")[2]) - int(exponent or 0)


def close(number: Number, ours: float) -> bool:
    """Whether a number rounds or truncates to the printed one."""
    unit = 10.0 ** -decimals(number)
    return -unit / 2 <= round(ours - number.value, 9) < unit


def test_sizes(number: Number) -> tuple[int, ...]:
    """Test images that an accuracy is of, one number or either of two; () for means of runs and for other metrics."""
    if not number.dataset:
        return ()
    sizes = table(number.dataset)["test"]
    if number.metric == "class_accuracy":
        name = named(number.setting) or ""
        return (sizes[name], FOLDER_CONTEMPT) if name == "contempt" else (sizes[name],)
    whole = sum(sizes.values())
    if number.metric == "mean_accuracy":  # of equal classes
        return (whole,) if number.dataset == "AI-Hub" else ()
    if number.metric != "accuracy" or number.setting in MEANS_OF_RUNS or number.table == "Table 9":
        return ()
    return (whole, whole - 1) if number.dataset == "AffectNet-8" else (whole,)


def on_grid(number: Number, size: int) -> bool:
    """Whether some k / size rounds or truncates to the printed percentage."""
    near = correct(number, size)
    return any(close(number, 100 * k / size) for k in range(near - 2, near + 3))


def size_of(number: Number) -> int:
    """Test images: of two possible numbers the one that the printed accuracy fits."""
    sizes = test_sizes(number)
    return next((size for size in sizes if on_grid(number, size)), sizes[0])


def correct(number: Number, size: int) -> int:
    """The count of correct images nearest to a printed accuracy."""
    return round(number.value / 100 * size)


def nearest(number: Number, size: int) -> str:
    """The two fractions around a percentage."""
    low = math.floor(number.value / 100 * size)
    return " < ".join(f"{k:,}/{size:,} = {100 * k / size:.4f}" for k in (low, low + 1))


def cells(number: Number) -> list[Number]:
    """The accuracies, of classes or folds, that a printed mean is of; none for another number."""
    row = published.numbers(work=number.work, table=number.table, row=number.row, dataset=number.dataset)
    if number.metric == "mean_accuracy":
        return [one for one in row if one.metric == "class_accuracy"]
    return [one for one in row if one.setting.startswith("Fold")] if "folds" in number.setting else []


def described(number: Number) -> str:
    """What can be said of an accuracy without a run: its count of images, and the mean of its row; may be empty."""
    found = []
    if sizes := test_sizes(number):
        size = size_of(number)
        k = correct(number, size)
        found.append(f"{k:,} of {size:,} images" if on_grid(number, size) else f"no count of {sizes[0]:,} images")
    if row := cells(number):
        mean = sum(one.value for one in row) / len(row)
        found.append(f"mean of the row's {len(row)}: {mean:.3f}, {'equal' if close(number, mean) else 'not equal'}")
    return "; ".join(found)
