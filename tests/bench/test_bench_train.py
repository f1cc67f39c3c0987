"""Promises of `fer bench train`."""

import pytest
import torch
from builders.limits import patience

from benchmarks.__main__ import parse
from benchmarks.result import REGISTRY, BenchResult
from benchmarks.steps import Turns
from fer.models import FerModel, TrainOutput, register


@register("bench_toy")
class Toy(FerModel):
    """Next to nothing, so that the benchmark itself is what takes time."""

    def __init__(self, num_classes: int = 7, **_: object) -> None:
        super().__init__(num_classes, input_size=8)
        self.fc = torch.nn.Linear(3 * 8 * 8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor | TrainOutput:
        logits = self.fc(x.flatten(1))
        return TrainOutput(logits, {}) if self.training else logits


def measure(monkeypatch: pytest.MonkeyPatch, *words: str) -> BenchResult:
    from fer import params

    loaded = params.load()
    recipe = loaded.recipes["ddamfn_nano"].model_copy(update={"model": "bench_toy", "options": {}})
    object.__setattr__(loaded, "recipes", {**loaded.recipes, "ddamfn_nano": recipe})
    monkeypatch.setattr(params, "load", lambda: loaded)
    return REGISTRY["train"].run(parse(["train", "--batch", "8", "--seconds", "0", *words]))


def test_each_result_is_a_ratio_beside_its_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = ["loop", "sam", "checkpoint", "bf16"]
    result = measure(monkeypatch, "--parts", *parts, "--convolutional", "bench_toy", "--accuracy-of", "bench_toy")
    rows = {row["what"]: row for row in result.rows}
    assert [row["goal"] for row in result.rows] == ["<= 1.03", "<= 2.05", "<= 0.02", ">= 1.5", ""]
    assert rows["SAM's step / plain step"]["figure"] > 0
    assert 0 < rows["checkpoints' part of an epoch"]["figure"] < 1
    assert all(row["met"] in (("yes", "no") if row["goal"] else ("",)) for row in result.rows)
    assert all(row["median of"] >= 3 for row in result.rows)
    assert len({tuple(row) for row in result.rows}) == 1
    assert result.table().startswith("ddamfn_nano, 8 images an update, 1 threads a worker")


@pytest.mark.slow
@pytest.mark.timeout(patience(120))
def test_two_workers_are_measured_beside_two_processes_and_one() -> None:
    words = ["train", "--batch", "8", "--seconds", "0", "--parts", "workers"]
    together, apart, halves, of_both = REGISTRY["train"].run(parse(words)).rows
    assert together["figure"] > 0
    assert apart["goal"] == halves["goal"] == of_both["goal"] == ""
    assert of_both["figure"] == pytest.approx(together["figure"] / halves["figure"], rel=0.01)


def test_the_ratio_is_the_median_of_the_ratios_of_neighbours() -> None:
    turns = Turns([2.0, 9.0, 3.0], [1.0, 3.0, 2.0], [1.0] * 3, [2.0] * 3)
    assert (turns.ratio, turns.cpu) == (2.0, 0.5)


@pytest.mark.parametrize("batch", ["2", "7"])
def test_a_batch_that_two_workers_cannot_share_is_refused(batch: str) -> None:
    with pytest.raises(ValueError, match=f"--batch {batch}: an even number from 4 on"):
        REGISTRY["train"].run(parse(["train", "--batch", batch]))
