"""The papers against themselves: printed numbers that their own counts, texts and tables contradict.

Every finding is computed from the printed numbers, the registry of datasets and our count of the models' costs; its
arithmetic is part of it. What is said of a table in words ("falls", "every other combination") is quoted in the title.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fer import published
from fer.labels import named
from fer.ledger.checks import apply, cost_in_full, cost_of
from fer.ledger.counts import table
from fer.ledger.printed import cells, close, correct, decimals, nearest, on_grid, size_of, test_sizes
from fer.ledger.rules import load_map, rule_of
from fer.published import Number

_EXTREMES = ("Disgust", "Happiness")


@dataclass(frozen=True)
class Finding:
    """What cannot be as printed, or not as the text says: a short name, what, the arithmetic, and the numbers."""

    name: str
    title: str
    arithmetic: str
    numbers: tuple[Number, ...]


def findings() -> list[Finding]:
    """All of them, in a fixed order."""
    checks = (_off_grid, _means, _overall, _differences, _repeated, _sums, _folds, _figure4, _trends, _units, _lhc_net)
    return [finding for check in checks for finding in check()]


def _one(work: str, where: str, row: str, dataset: str, metric: str = "accuracy", setting: str = "") -> Number:
    return next(published.numbers(work=work, table=where, row=row, dataset=dataset, metric=metric, setting=setting))


# ------------------------------------------------------------------------------------------------ counts


def _off_grid() -> Iterator[Finding]:
    """Accuracies that no count of correct images over the test images rounds or truncates to."""
    found: dict[tuple[str, int], list[Number]] = {}
    for number in published.numbers():
        sizes = test_sizes(number) if number.work in published.PAPERS else ()
        if sizes and not any(on_grid(number, size) for size in sizes):
            found.setdefault((number.work, sizes[0]), []).append(number)
    for (work, size), numbers in found.items():
        values = {number.printed: number for number in numbers}
        texts = [f"{printed}: {nearest(number, size)}" for printed, number in values.items()]
        title = f"{published.WORKS[work]}: accuracies that are no count of {size:,} test images: {len(numbers)}"
        yield Finding(f"off-grid {work} {size}", title, "; ".join(texts), tuple(numbers))


def _means() -> Iterator[Finding]:
    """Printed means that are not those of the classes beside them, each class taken for the count that it must be."""
    for number in published.numbers(metric="mean_accuracy"):
        row = cells(number)
        mean = sum(100 * correct(one, size) / size for one in row for size in [size_of(one)]) / len(row)
        if not close(number, mean):
            text = f"({' + '.join(one.printed for one in row)}) / {len(row)} = {mean:.3f}, printed {number.printed}"
            name = f"mean {number.work} {number.row} {number.dataset}"
            yield Finding(name, _title(number, "is not the mean of its row"), text, (number, *row))


def _overall() -> Iterator[Finding]:
    """Overall accuracies that the class-wise ones of the same model and work contradict."""
    for number in published.numbers(metric="mean_accuracy"):
        row, name = cells(number), {"work": number.work, "row": number.row, "dataset": number.dataset}
        stated = list(published.numbers(**name, metric="accuracy", setting=""))
        counted = []
        for last in test_sizes(row[-1]):
            sizes = [*map(size_of, row[:-1]), last]
            counted.append((sum(map(correct, row, sizes)), sum(sizes)))
        wrong = [one for one in stated if not any(close(one, 100 * k / size) for k, size in counted)]
        if wrong:
            texts = " or ".join(f"{k:,}/{size:,} = {100 * k / size:.3f}" for k, size in counted)
            title = _title(wrong[0], f"contradicts the class-wise accuracies of {number.table}")
            text = f"the classes have {texts}, printed {wrong[0].printed}"
            yield Finding(f"overall {' '.join(name.values())}", title, text, (*wrong, *row))


# ------------------------------------------------------------------------------------------------ texts and tables


def _differences() -> Iterator[Finding]:
    """Gains and losses of the text that are not those of its tables."""
    rules = load_map()
    for number in published.numbers():
        if number.metric in ("accuracy_gain", "accuracy_loss", "params_saved", "flops_saved"):
            outcome = apply(number, rule_of(number, rules), ())
            if outcome.verdict == "differs":
                title = _title(number, f"is not the difference of {number.setting or number.row} in its table")
                yield Finding(
                    f"difference {number.work} {number.printed}",
                    title,
                    f"{outcome.how}, printed {number.printed}",
                    (number,),
                )


def _repeated() -> Iterator[Finding]:
    """What one work prints twice, with two values."""
    pairs = (
        ("lhc_net", ("text 1.2", "Human [2]", "FER2013"), ("Results 2", "Human [2]", "FER2013", "accuracy", "TTA no")),
        ("poster_v2", ("text 4.2", "POSTER V2", "CAER-S"), ("Table 5", "POSTER V2", "CAER-S")),
        (
            "poster_v2",
            ("text 4.1", "POSTER V2", "", "learning_rate", "Adam"),
            ("Table 9", "POSTER V2", "RAF-DB", "learning_rate", "Adam"),
        ),
    )
    for work, *both in pairs:
        one, two = (_one(work, *place) for place in both)
        title = f"{published.WORKS[work]}: {one.row}, {one.metric.replace('_', ' ')}: two values"
        text = f"{one.table} prints {one.printed}, {two.table} {two.printed}"
        yield Finding(f"twice {work} {one.metric} {one.dataset}".strip(), title, text, (one, two))


def _sums() -> Iterator[Finding]:
    """Totals that are not the sums of their parts."""
    total, *parts = (
        _one("lhc_net", "text Introduction", "FER2013", "FER2013", *what)
        for what in (
            ("total_size",),
            ("train_size", "train"),
            ("val_size", "public test"),
            ("test_size", "private test"),
        )
    )
    yield _sum("sum lhc_net", "FER2013's size is not the sum of its splits", total, parts)
    classes = [_one("lhc_net", "text Introduction", row, "FER2013", "class_count", "train") for row in _EXTREMES]
    whole = [sum(split[named(one.row) or ""] for split in table("FER2013").values()) for one in classes]
    yield Finding(
        "classes lhc_net",
        "LHC-Net (2021): the smallest and the largest class of FER2013 are those of its training split",
        "; ".join(f"{one.row}: {one.printed} of {size:,}" for one, size in zip(classes, whole, strict=True)),
        tuple(classes),
    )
    seven, eight = (_one("btn", "text 4.1", f"AffectNet({n}cls)", f"AffectNet-{n}", "total_size") for n in (7, 8))
    contempt = _one("btn", "text 4.1", "Contempt", "AffectNet-8", "class_count", "train")
    tests = [
        int(_one("poster_v2", "Table 2", f"AffectNet ({n} cls)", f"AffectNet-{n}", "test_size").value) for n in (7, 8)
    ]
    trains = [int(one.value) - size for one, size in zip((seven, eight), tests, strict=True)]
    yield Finding(
        "sum btn",
        "BTN (2024): AffectNet-8 is not AffectNet-7 and contempt",
        f"less {tests[0]:,} and {tests[1]:,} test images, {seven.printed} and {eight.printed} leave {trains[0]:,} and "
        f"{trains[1]:,} for training; {trains[0]:,} + {int(contempt.value):,} = {trains[0] + int(contempt.value):,}, "
        f"not {trains[1]:,}",
        (seven, eight, contempt),
    )
    one, two = (_one("poster_v2", "Table 2", f"AffectNet ({n} cls)", f"AffectNet-{n}", "train_size") for n in (7, 8))
    yield Finding(
        "sum poster_v2",
        "POSTER V2 (2023): AffectNet-8 is not AffectNet-7 and contempt",
        f"{two.printed} - {one.printed} = {int(two.value - one.value):,}; contempt has {int(contempt.value):,}",
        (one, two),
    )
    yield Finding(
        "counts affectnet",
        "BTN and POSTER V2 print other training sets of AffectNet",
        f"{trains[0]:,} against {int(one.value):,}, and {trains[1]:,} against {int(two.value):,}",
        (seven, eight, one, two),
    )


def _sum(name: str, title: str, total: Number, parts: Sequence[Number]) -> Finding:
    added = sum(int(one.value) for one in parts)
    text = f"{' + '.join(f'{int(one.value):,}' for one in parts)} = {added:,}, printed {int(total.value):,}"
    return Finding(name, f"{published.WORKS[total.work]}: {title}", text, (total, *parts))


def _folds() -> Iterator[Finding]:
    """DDAMFN's ten folds: which images can have been folded."""
    folds = [one for one in published.numbers(work="ddamfn", table="Table 9") if one.setting.startswith("Fold")]
    splits = {split: sum(row.values()) for split, row in table("RAF-DB").items()}
    sets = {"training": splits["train"], "test": splits["test"], "all": sum(splits.values())}
    texts = []
    for name, size in sets.items():
        fits = [one for one in folds if any(on_grid(one, n) for n in {size // 10, -(-size // 10)})]
        texts.append(f"{len(fits)} of {len(folds)} fit folds of the {size:,} {name} images")
    title = "DDAMFN (2023), Table 9: equal folds of no set of images give all ten accuracies"
    yield Finding("folds ddamfn", title, "; ".join(texts), tuple(folds))


def _figure4() -> Iterator[Finding]:
    """Probabilities of a photograph that do not add to 100 %."""
    rows: dict[str, list[Number]] = {}
    for number in published.numbers(work="btn", table="Figure 4"):
        rows.setdefault(number.row, []).append(number)
    for name, row in rows.items():
        added = sum(one.value for one in row)
        unit = sum(10.0 ** -decimals(one) for one in row)
        if not -unit < added - 100 <= unit / 2:  # rounded, or cut off
            text = f"{' + '.join(one.printed for one in row)} = {added:.4f}"
            yield Finding(
                f"figure 4 {name}",
                f"BTN (2024), Figure 4 {name}: the probabilities do not add to 100 %",
                text,
                tuple(row),
            )


def _trends() -> Iterator[Finding]:
    """What the text says of a table's course, against the table."""
    weights = [one for one in published.numbers(work="btn", table="Table 6") if float(one.row.partition("=")[2]) >= 2.0]
    rises = [f"{two.printed} at {two.row[7:]} is above {one.printed} at {one.row[7:]}" for one, two in _rising(weights)]
    yield Finding(
        "trend lambda", 'BTN (2024), Table 6: "decreases rapidly from 2.0 to 3.0"', "; ".join(rises), tuple(weights)
    )
    for dataset in ("RAF-DB", "AffectNet-7", "AffectNet-8"):
        row = list(published.numbers(work="btn", table="Table 7", dataset=dataset))
        best = max(row, key=lambda one: one.value)
        falls = [
            f"{two.printed} at {two.setting[11:]} is below {one.printed} at {one.setting[11:]}"
            for two, one in _rising(row[row.index(best) :: -1])
        ]
        if falls:
            title = f'BTN (2024), Table 7, {dataset}: "a trend of improved performance" up to the best batch'
            yield Finding(f"trend batch {dataset}", title, "; ".join(f"{text}" for text in falls), tuple(row))
    top, other = (_one("lhc_net", "Results 2", row, "FER2013", "accuracy", "TTA no") for row in ("LHC-NetC", "LHC-Net"))
    yield Finding(
        "claim lhc_net",
        'LHC-Net (2021), Results 2: LHC-Net "has the top accuracy both with and without TTA"',
        f"without TTA {top.row} has {top.printed}, {other.row} {other.printed}",
        (top, other),
    )
    for dataset in ("RAF-DB", "AffectNet-7"):
        with_, without = (
            _one("poster_v2", "Table 7", "ViT w/ pre-trained weights", dataset, "accuracy", mark)
            for mark in ("yes (✓)", "no (✗)")
        )
        yield Finding(
            f"marks poster_v2 {dataset}",
            f"POSTER V2 (2023), Table 7, {dataset}: the text says that pre-trained weights cost accuracy",
            f"with {with_.printed}, without {without.printed}: {with_.value - without.value:+.2f} points",
            (with_, without),
        )


def _rising(row: Sequence[Number]) -> Iterator[tuple[Number, Number]]:
    """Neighbors of which the second is above the first."""
    return ((one, two) for one, two in pairwise(row) if two.value > one.value)


# ------------------------------------------------------------------------------------------------ costs


def _units() -> Iterator[Finding]:
    """Tables whose rows are counted by two conventions, and what is left of a saving when they are counted alike."""
    columns = (
        ("poster_v2", "Table 6", "flops", {"POSTER V1": "poster_v1_large", "POSTER V2": "poster_v2"}),
        ("poster_v2", "Table 6", "params", {"POSTER V1": "poster_v1_large", "POSTER V2": "poster_v2"}),
        ("ddamfn", "Table 2", "params", {"MFN (our backbone)": "mfn", "DDAMFN (our model)": "ddamfn"}),
        ("dynamic_attention", "Results FLOPS", "flops", {"ViT-16-224": "vit_b16", "Ours": "dynamic_vit_base"}),
    )
    for work, where, metric, models in columns:
        numbers = [next(published.numbers(work=work, table=where, metric=metric, row=row)) for row in models]
        conventions = [cost_of(model, one)[1] for one, model in zip(numbers, models.values(), strict=True)]
        alike = [_alike(model, metric) for model in models.values()]
        printed, ours = (1 - two / one for one, two in ((numbers[0].value, numbers[1].value), alike))
        text = "; ".join(
            f"{one.row}: {one.printed} {one.unit} ({convention})"
            for one, convention in zip(numbers, conventions, strict=True)
        )
        what = {"flops": "GMACs", "params": "M live parameters"}[metric]
        text += f"; alike: {alike[0]:.3f} and {alike[1]:.3f} {what}, "
        text += f"a saving of {100 * ours:.1f} %, printed {100 * printed:.1f} %"
        title = f"{published.WORKS[work]}, {where}: {metric} of two conventions in one column"
        yield Finding(f"units {work} {metric}", title, text, tuple(numbers))


def _alike(model: str, metric: str) -> float:
    cost = cost_in_full(model)
    return float(cost.operations.macs / 1e9 if metric == "flops" else cost.parameters / 1e6)


def _lhc_net() -> Iterator[Finding]:
    """Local against global heads, by equations 21 and 23 with d = HW / 2n and n = 8."""
    from fer.studies.lhc_analysis import sections, threshold  # imports torch

    n = 8
    pairs = [(a, b) for a, b, _ in sections(n)]
    whole = [(a, b) for a, b in pairs if a <= threshold(56 * 56, 196, n) * b]
    full = [pair for pair in whole if sum(pair) == n]
    number = _one("lhc_net", "text 2.2", "first two blocks", "", "local_wins_above_A_over_B", "d = HW/2n, n = 8")
    yield Finding(
        "combinations lhc_net",
        'LHC-Net (2021), section 2.2: but for (0, 8) and (1, 7) "every other combination" favors local heads',
        f"of the {n + 1} pairs with A + B = {n}, {len(full)} favor the global head: {', '.join(map(str, full))}; "
        f"of all {len(pairs)} with A + B <= {n}, {len(whole)}: {', '.join(map(str, whole))}",
        (number,),
    )


def _title(number: Number, what: str) -> str:
    return f"{published.WORKS[number.work]}, {number.table}, {number.row}, {number.dataset}: {number.printed} {what}"
