"""Promises of `fer bench loop`."""

import builders.projects  # noqa: F401 - registers the toy model
import pytest
import torch

from benchmarks import reference
from benchmarks.__main__ import parse
from benchmarks.result import REGISTRY, BenchResult


def run(*words: str) -> BenchResult:
    args = parse(["loop", *words])  # which also registers the benchmarks
    return REGISTRY["loop"].run(args)


def linear(network: reference.Published, x: torch.Tensor) -> torch.Tensor:
    """A network of one layer, as the published ones are written."""
    return network.linear(x.flatten(1), "fc", 7)


def test_a_loop_is_measured_beside_the_published_one(monkeypatch: pytest.MonkeyPatch) -> None:
    small = reference.Reference(forward=linear, size=16, model="toy")
    monkeypatch.setattr(reference, "REFERENCES", {"small": small})
    result = run("--batch", "4", "--steps", "2", "--seconds", "0", "--workers", "1")
    (row,) = result.rows
    assert row["ratio"] == pytest.approx(row["ours img/s"] / row["published img/s"], rel=0.05, abs=0.01)
    assert 0 < row["waiting for data %"] < 100
    assert (row["goal met"] == "yes") == (row["ratio"] >= 4)
    assert result.title == "training at batch 4 on cpu, ours in fp32"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "ddamfm"], "--models ddamfm.*did you mean 'ddamfn'"),
        (["--models", "mfn"], "--models mfn"),
        (["--device", "abacus"], "cpu is allowed, and cuda on a machine that has it"),
        (["--batch", "1"], "--batch 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(*words)
