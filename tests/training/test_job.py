"""What identifies a run of training."""

from __future__ import annotations

import json

import pytest
from builders.projects import NANO

from fer.training import job
from fer.training.job import decisive_versions, fingerprint
from fer.training.recipe import Recipe
from fer.weights.parts import PartSource


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate_json(json.dumps({**NANO, **changes}))


@pytest.mark.parametrize(
    "other",
    [
        {"data_digest": "other"},
        {"recipe": recipe(epochs=4)},
        {"seed": 2},
        {"code": "other"},
        {"pretrained": [PartSource("features", "path", "digest")]},
        {"more": {"tta": "flip"}},
    ],
    ids=lambda other: next(iter(other)),
)
def test_fingerprint_depends_on_all_that_decides_a_result(other: dict[str, object]) -> None:
    base = {"data_digest": "data", "recipe": recipe(), "seed": 1, "code": "code"}
    assert fingerprint(**base) == fingerprint(**base)  # type: ignore[arg-type]
    assert fingerprint(**base) != fingerprint(**{**base, **other})  # type: ignore[arg-type]


def test_fingerprint_does_not_depend_on_where_pretrained_weights_lie() -> None:
    here, there = ([PartSource("features", path, "digest")] for path in ("here", "there"))
    assert fingerprint("data", recipe(), 1, "code", here) == fingerprint("data", recipe(), 1, "code", there)


def test_decisive_versions_are_public_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {**job.versions(), "torch": "2.13.0+cpu"}
    monkeypatch.setattr(job, "versions", lambda: installed)
    assert decisive_versions()["torch"] == "2.13.0"
    assert set(decisive_versions()) == {"torch", "numpy", "opencv-python-headless", "pyarrow", "albumentations"}
