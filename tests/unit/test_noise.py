"""The comparison of two models under label noise: paired, with an interval that covers, and an answer either way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fer.evaluation.figures import save
from fer.evaluation.metrics import paired_bootstrap
from fer.studies import figures as study_figures
from fer.studies.noise import Answers, compare, growth, interval, markdown, verdict


def answers(right: list[list[int]], seeds: tuple[int, ...] = (0, 1)) -> Answers:
    return Answers(seeds=seeds, labels=np.arange(len(right[0])), right=np.array(right, dtype=bool))


def drawn(accuracy: float, *, seeds: int = 4, faces: int = 4000, seed: int = 0) -> Answers:
    random = np.random.default_rng(seed)
    right = random.random((seeds, faces)) < accuracy
    return Answers(seeds=tuple(range(seeds)), labels=np.zeros(faces, np.int64), right=right)


def test_differences_are_paired_by_seed_and_face() -> None:
    one = answers([[1, 0, 0, 1], [1, 1, 0, 0]])
    other = answers([[1, 1, 0, 1], [1, 1, 1, 0], [0, 0, 0, 0]], seeds=(0, 1, 2))
    found = compare(one, other)
    assert found["one"]["mean"] == 0.5
    assert found["difference"]["mean"] == pytest.approx(0.25)  # seed 2 has no partner
    assert found["difference"]["std"] == 0
    assert found["difference"]["detectable"] == 0
    assert found["faces"] == 4


def test_the_interval_over_faces_is_the_binomials() -> None:
    differences = np.array([[1] * 300 + [0] * 700])
    found = paired_bootstrap(differences, seeds=False)
    half = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert (found.low, found.high) == (pytest.approx(0.3 - half, abs=0.003), pytest.approx(0.3 + half, abs=0.003))


def test_the_interval_over_seeds_and_faces_has_the_variance_of_both() -> None:
    random = np.random.default_rng(0)
    seeds = random.normal(0, 0.5, (40, 1))  # much wider than the faces' part
    differences = seeds + random.normal(0, 1, (40, 2000))
    both, faces = paired_bootstrap(differences)(differences, seeds=False)
    expected = 2 * 1.96 * float(seeds.std()) / 40**0.5
    assert both.high - both.low == pytest.approx(expected, rel=0.1)
    assert faces.high - faces.low < 0.1 * expected


def test_the_same_draws_give_the_same_interval() -> None:
    differences = np.random.default_rng(0).integers(-1, 2, (3, 500))
    assert paired_bootstrap(differences) == paired_bootstrap(differences)


def test_an_answer_is_given_either_way() -> None:
    better = verdict(compare(drawn(0.6), drawn(0.7, seed=1)), "V2", "BTN")
    worse = verdict(compare(drawn(0.7), drawn(0.6, seed=1)), "V2", "BTN")
    same = verdict(compare(drawn(0.7), drawn(0.7, seed=1)), "V2", "BTN")
    alone = verdict(compare(drawn(0.6, seeds=1), drawn(0.7, seeds=1, seed=1)), "V2", "BTN")
    assert better.startswith("BTN is better, by ")
    assert worse.startswith("V2 is better, by ")
    assert same.startswith("no difference found; one of ")
    assert alone == "one seed: nothing can be said of other trainings"


def test_what_noise_takes_from_either_is_compared_face_by_face() -> None:
    low = (answers([[1, 1, 1, 1]], (0,)), answers([[1, 1, 1, 1]], (0,)))
    high = (answers([[0, 0, 1, 1]], (0,)), answers([[0, 1, 1, 1]], (0,)))
    found = growth(low, high)
    assert found is not None
    assert found["mean"] == pytest.approx(0.25)
    other_faces = tuple(Answers(seeds=one.seeds, labels=one.labels + 1, right=one.right) for one in high)
    assert growth(low, (other_faces[0], other_faces[1])) is None


def test_series_of_other_faces_or_without_a_common_seed_are_refused() -> None:
    with pytest.raises(ValueError, match="not tested on the same faces"):
        compare(answers([[1, 0]], (0,)), answers([[1, 0, 1]], (0,)))
    with pytest.raises(ValueError, match="no seed was trained for both"):
        compare(answers([[1, 0]], (0,)), answers([[1, 0]], (1,)))


def test_an_answer_rests_on_the_wider_of_both_intervals() -> None:
    faces = 4000
    right = np.arange(faces) < 0.6 * faces
    # Two seeds that gain 2 and 6 points: the bootstrap is sure, Student with one degree of freedom is not.
    gains = [np.arange(faces) < share * faces for share in (0.62, 0.66)]
    labels = np.zeros(faces, np.int64)
    one = Answers(seeds=(0, 1), labels=labels, right=np.stack([right, right]))
    few = compare(one, Answers(seeds=(0, 1), labels=labels, right=np.stack(gains)))["difference"]
    assert few["bootstrap"]["low"] > 0
    assert (interval(few).low, interval(few).high) == (few["low"], few["high"])
    assert few["low"] == pytest.approx(0.04 - 12.706 * 0.02, abs=1e-4)  # t of one degree of freedom
    assert verdict({"difference": few}, "V2", "BTN").startswith("no difference found")
    # Two seeds alike to the face: Student's interval is a point, other faces are not.
    alike = compare(one, Answers(seeds=(0, 1), labels=labels, right=np.stack([gains[0], gains[0]])))["difference"]
    assert alike["low"] == pytest.approx(alike["high"])
    assert interval(alike).high - interval(alike).low > 0.005


def test_the_report_is_a_table_and_a_figure(tmp_path: Path) -> None:
    pairs = [(drawn(0.7), drawn(0.7, seed=1)), (drawn(0.6), drawn(0.65, seed=1))]
    report = {
        "series": ["V2", "BTN"],
        "levels": [{"level": level, **compare(*pair)} for level, pair in zip((0.0, 30.0), pairs, strict=True)],
        "growth": growth(*pairs),
    }
    text = markdown("A title", "A source", ["A note."], report)
    assert "| wrong labels, % | V2, % | BTN, % |" in text
    assert "4,000 test faces" in text
    assert "From 0 to 30 % wrong labels, BTN gains +" in text
    assert "found four times in five with" in text
    path = tmp_path / "noise.svg"
    save(study_figures.noise(report, "A title"), path)
    assert path.read_text().startswith("<?xml")


def test_what_one_seed_cannot_say_is_said() -> None:
    pairs = [(drawn(0.7, seeds=1), drawn(0.7, seeds=1, seed=1)), (drawn(0.6, seeds=1), drawn(0.65, seeds=1, seed=1))]
    levels = [{"level": level, **compare(*pair)} for level, pair in zip((0.0, 30.0), pairs, strict=True)]
    text = markdown("A title", "A source", [], {"series": ["V2", "BTN"], "levels": levels, "growth": growth(*pairs)})
    assert text.count("one seed: nothing can be said of other trainings") == 2
    assert "; one seed, so for other faces alone)." in text
    assert "Power:" not in text
