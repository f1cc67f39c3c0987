"""The comparison of two models under label noise: paired, with an interval that covers, and a verdict either way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fer.evaluation.figures import save
from fer.studies import figures as study_figures
from fer.studies.noise import Correctness, compare, growth, interval, markdown, verdict


def runs(correct: list[list[int]], seeds: tuple[int, ...] = (0, 1)) -> Correctness:
    return Correctness(seeds=seeds, labels=np.arange(len(correct[0])), correct=np.array(correct, dtype=bool))


def drawn(accuracy: float, *, seeds: int = 4, faces: int = 4000, seed: int = 0) -> Correctness:
    correct = np.random.default_rng(seed).random((seeds, faces)) < accuracy
    return Correctness(seeds=tuple(range(seeds)), labels=np.zeros(faces, np.int64), correct=correct)


def report(seeds: int) -> dict[str, Any]:
    accuracies = ((0.7, 0.7), (0.6, 0.65))
    pairs = [(drawn(one, seeds=seeds), drawn(other, seeds=seeds, seed=1)) for one, other in accuracies]
    levels = [{"level": level, **compare(*pair)} for level, pair in zip((0.0, 30.0), pairs, strict=True)]
    return {"series": ["V2", "BTN"], "levels": levels, "growth": growth(*pairs)}


def test_differences_are_paired_by_seed_and_image() -> None:
    one = runs([[1, 0, 0, 1], [1, 1, 0, 0]])
    other = runs([[1, 1, 0, 1], [1, 1, 1, 0], [0, 0, 0, 0]], seeds=(0, 1, 2))
    found = compare(one, other)
    assert found["one"]["mean"] == 0.5
    assert found["difference"]["mean"] == pytest.approx(0.25)  # seed 2 has no partner
    assert found["difference"]["std"] == found["difference"]["detectable"] == 0
    assert found["faces"] == 4


@pytest.mark.parametrize(
    ("one", "other", "seeds", "beginning"),
    [
        (0.6, 0.7, 4, "BTN is better, by "),
        (0.7, 0.6, 4, "V2 is better, by "),
        (0.7, 0.7, 4, "no difference found; one of "),
        (0.6, 0.7, 1, "one seed: "),
    ],
)
def test_a_verdict_is_given_either_way(one: float, other: float, seeds: int, beginning: str) -> None:
    found = compare(drawn(one, seeds=seeds), drawn(other, seeds=seeds, seed=1))
    assert verdict(found, "V2", "BTN").startswith(beginning)


def test_the_loss_to_noise_is_compared_image_by_image() -> None:
    low = (runs([[1, 1, 1, 1]], (0,)), runs([[1, 1, 1, 1]], (0,)))
    high = (runs([[0, 0, 1, 1]], (0,)), runs([[0, 1, 1, 1]], (0,)))
    found = growth(low, high)
    assert found is not None
    assert found["mean"] == pytest.approx(0.25)
    one, other = (Correctness(seeds=half.seeds, labels=half.labels + 1, correct=half.correct) for half in high)
    assert growth(low, (one, other)) is None


def test_series_of_other_images_or_without_a_common_seed_are_rejected() -> None:
    with pytest.raises(ValueError, match="not tested on the same faces"):
        compare(runs([[1, 0]], (0,)), runs([[1, 0, 1]], (0,)))
    with pytest.raises(ValueError, match="no seed was trained for both"):
        compare(runs([[1, 0]], (0,)), runs([[1, 0]], (1,)))


def test_a_verdict_rests_on_the_wider_of_both_intervals() -> None:
    faces = 4000
    correct = np.arange(faces) < 0.6 * faces
    # Two seeds that gain 2 and 6 points: the bootstrap is sure, Student with one degree of freedom is not.
    gains = [np.arange(faces) < fraction * faces for fraction in (0.62, 0.66)]
    labels = np.zeros(faces, np.int64)
    one = Correctness(seeds=(0, 1), labels=labels, correct=np.stack([correct, correct]))
    few = compare(one, Correctness(seeds=(0, 1), labels=labels, correct=np.stack(gains)))["difference"]
    assert few["bootstrap"]["low"] > 0
    assert (interval(few).low, interval(few).high) == (few["low"], few["high"])
    assert few["low"] == pytest.approx(0.04 - 12.706 * 0.02, abs=1e-4)  # t of one degree of freedom
    assert verdict({"difference": few}, "V2", "BTN").startswith("no difference found")
    # Two seeds alike to the image: Student's interval is a point, other images are not.
    same = Correctness(seeds=(0, 1), labels=labels, correct=np.stack([gains[0], gains[0]]))
    alike = compare(one, same)["difference"]
    assert alike["low"] == pytest.approx(alike["high"])
    assert interval(alike).high - interval(alike).low > 0.005


def test_the_report_is_a_table_and_a_figure(tmp_path: Path) -> None:
    text = markdown(report(4))
    for words in (
        "| wrong labels, % | V2, % | BTN, % |",
        "4,000 test faces",
        "From 0 to 30 % wrong labels, BTN gains +",
    ):
        assert words in text
    assert "found four times in five with" in text
    save(study_figures.noise(report(4), "A title"), tmp_path / "noise.svg")
    assert (tmp_path / "noise.svg").read_text().startswith("<?xml")


def test_the_table_says_what_one_seed_cannot_show() -> None:
    text = markdown(report(1))
    assert text.count("one seed: nothing can be said of other runs") == 2
    assert "; one seed, so for other faces alone)." in text
    assert "Power:" not in text
