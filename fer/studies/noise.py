"""Which of two models is more robust to label noise: paired by seed and test image, with an interval and the power."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fer.evaluation.aggregate import detectable_difference, markdown_table, pairs_needed, percent, spread
from fer.evaluation.metrics import Interval, paired_bootstrap


@dataclass(frozen=True, kw_only=True)
class Correctness:
    """The runs of one series at one level.

    Attributes:
        seeds: (S,), rising.
        labels: int64 (N,) of the test images.
        correct: bool (S, N), whether the run of each seed classifies each image correctly.
    """

    seeds: tuple[int, ...]
    labels: npt.NDArray[np.int64]
    correct: npt.NDArray[np.bool_]


def compare(one: Correctness, other: Correctness) -> dict[str, Any]:
    """Two series at one level: `accuracy` of each as a spread over seeds, and `other` minus `one`, over seeds of both.

    Returns:
        `one`, `other`: spreads; `difference`: its mean and standard deviation over seeds, Student's interval, the
        bootstrap's over images and seeds and over images alone, and `detectable`: the true difference that this number
        of seeds finds with a power of 80 %; None for a single seed, which has no spread. `faces`: N.

    Raises:
        ValueError: the test images are not the same, or no seed is there for both.
    """
    if not np.array_equal(one.labels, other.labels):
        raise ValueError("the two series were not tested on the same faces")
    if not set(one.seeds) & set(other.seeds):
        raise ValueError("no seed was trained for both series: differences are paired by seed")
    differences = paired(one, other)
    over_seeds = spread(differences.mean(axis=1).tolist())
    std = over_seeds.std
    return {
        "one": asdict(spread(one.correct.mean(axis=1).tolist())),
        "other": asdict(spread(other.correct.mean(axis=1).tolist())),
        "difference": {
            **asdict(over_seeds),
            "bootstrap": asdict(paired_bootstrap(differences)),
            "bootstrap_faces": asdict(paired_bootstrap(differences, seeds=False)),
            "detectable": None if std is None else detectable_difference(std, over_seeds.count),
        },
        "faces": len(one.labels),
    }


def paired(one: Correctness, other: Correctness) -> npt.NDArray[np.int8]:
    """`other` minus `one` for the seeds of both, (S, N) of -1, 0, 1."""
    both = [seed for seed in one.seeds if seed in other.seeds]
    mine, theirs = (runs.correct[[runs.seeds.index(seed) for seed in both]].astype(np.int8) for runs in (one, other))
    difference: npt.NDArray[np.int8] = theirs - mine
    return difference


def growth(low: tuple[Correctness, Correctness], high: tuple[Correctness, Correctness]) -> dict[str, Any] | None:
    """How much better the second series does, against the first, at the highest level than at the lowest.

    None where the two levels were not tested on the same images under the same seeds.
    """
    seeds = {runs.seeds for runs in (*low, *high)}
    if not np.array_equal(low[0].labels, high[0].labels) or len(seeds) > 1:
        return None
    differences = paired(*high) - paired(*low)
    over_seeds = spread(differences.mean(axis=1).tolist())
    return {**asdict(over_seeds), "bootstrap": asdict(paired_bootstrap(differences))}


def interval(difference: Mapping[str, Any]) -> Interval:
    """What a verdict rests on: the union of Student's interval over seeds and the bootstrap's over images and seeds.

    The bootstrap's is too narrow where seeds are few; Student's where they happen to be alike, for it knows nothing of
    other images.

    Args:
        difference: of `compare` or `growth`.
    """
    both = [difference["bootstrap"]] if difference["low"] is None else [difference["bootstrap"], difference]
    return Interval(min(one["low"] for one in both), max(one["high"] for one in both))


def verdict(line: Mapping[str, Any], one: str, other: str) -> str:
    """What a level's difference shows, either way, in points."""
    found = line["difference"]
    if found["count"] < 2:
        return "one seed: nothing can be said of other runs"
    ends = interval(found)
    if ends.low > 0 or ends.high < 0:
        better, by = (other, found["mean"]) if ends.low > 0 else (one, -found["mean"])
        return f"{better} is better, by {100 * by:.2f} points"
    return f"no difference found; one of {100 * found['detectable']:.2f} points would have been, four times in five"


def markdown(report: Mapping[str, Any]) -> str:
    """The table for people. `report`: `series` (two names), `levels`: [{level, **compare(...)}], `growth`."""
    one, other = report["series"]
    header = [
        "wrong labels, %", f"{one}, %", f"{other}, %", "seeds", f"{other} minus {one}, points", "95 %",
        "sd of the pairs", "found 4 times in 5 from", "verdict",
    ]  # fmt: skip
    rows = []
    for line in report["levels"]:
        found = line["difference"]
        rows.append(
            [
                f"{line['level']:g}",
                *(_spread(line[key]) for key in ("one", "other")),
                str(found["count"]),
                f"{100 * found['mean']:+.2f}",
                _interval(found),
                percent(found["std"]),
                percent(found["detectable"]),
                verdict(line, one, other),
            ]
        )
    lines = [
        *markdown_table(header, rows),
        "",
        f"{report['levels'][0]['faces']:,} test faces with right labels; ± is the standard deviation over seeds. "
        "95 %: the union of Student's interval over seeds and the paired bootstrap's over faces and seeds.",
    ]
    if report["growth"] is not None:
        grown, levels = report["growth"], [line["level"] for line in report["levels"]]
        alone = "; one seed, so for other faces alone" if grown["count"] < 2 else ""
        lines += [
            "",
            f"From {levels[0]:g} to {levels[-1]:g} % wrong labels, {other} gains {100 * grown['mean']:+.2f} points on "
            f"{one} ({_interval(grown)}{alone}).",
        ]
    stds = [line["difference"]["std"] for line in report["levels"] if line["difference"]["std"] is not None]
    if stds:
        lines += [
            "",
            f"Power: pairs differ by {percent(max(stds))} points (standard deviation over seeds, at the worst level); "
            f"a true difference of 1 point is found four times in five with {pairs_needed(max(stds), 0.01)} seeds.",
        ]
    return "\n".join(lines) + "\n"


def _spread(value: Mapping[str, Any]) -> str:
    return percent(value["mean"]) + ("" if value["std"] is None else f" ± {percent(value['std'])}")


def _interval(difference: Mapping[str, Any]) -> str:
    ends = interval(difference)
    return f"{100 * ends.low:+.2f} to {100 * ends.high:+.2f}"
