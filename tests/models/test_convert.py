"""The importer of published checkpoints drops what is dead, by name, and lets nothing else pass."""

import pytest
import torch
from torch import Tensor

from fer.models import create_model
from fer.weights import convert, dead_keys, published_options

from .conformance import load, published_state


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in published_state(load("ddamfn_7cls")).items()}


def test_module_prefix_and_numpy_arrays_make_no_difference(published: dict[str, Tensor]) -> None:
    plain = convert("ddamfn", published)
    prefixed = convert("ddamfn", {f"module.{key}": value.numpy() for key, value in published.items()})
    assert list(plain) == list(prefixed)
    assert all(torch.equal(plain[key], prefixed[key]) for key in plain)


def test_dead_parameters_may_be_absent(published: dict[str, Tensor]) -> None:
    dead = set(dead_keys("ddamfn", published))
    live = {key: value for key, value in published.items() if key not in dead}
    assert len(dead) == 1190 - 969
    create_model("ddamfn").load_state_dict(convert("ddamfn", live), strict=True)


def test_heads_and_classes_are_read_from_the_shapes() -> None:
    published = published_state(load("ddamfn_7cls_h3"))
    assert published_options("ddamfn", published) == {"num_classes": 7, "num_heads": 3}
    assert published_options("ddamfn", published_state(load("ddamfn_8cls"))) == {"num_classes": 8, "num_heads": 2}
    assert published_options("mfn", published_state(load("mfn"))) == {"num_classes": 0}


def test_every_fault_is_named(published: dict[str, Tensor]) -> None:
    broken = dict(published)
    del broken["features.0.conv.weight"]
    broken["features.5.model.3.project.conv.weight"] = torch.zeros(128, 255, 1, 1)
    broken["features.9.extra"] = torch.zeros(1)
    with pytest.raises(ValueError, match="not the published layout of 'ddamfn'") as error:
        convert("ddamfn", broken)
    assert "missing: the tensor for features.stem.conv.weight" in str(error.value)
    assert "features.5.model.3.project.conv.weight: shape (128, 255, 1, 1)" in str(error.value)
    assert "unexpected: features.9.extra" in str(error.value)


def test_another_layout_is_refused(published: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="not the published layout of 'mfn'"):
        convert("mfn", published)
    with pytest.raises(ValueError, match=r"missing: fc\.weight"):
        convert("ddamfn", {"conv1.conv.weight": torch.zeros(64, 3, 3, 3)})
    with pytest.raises(
        ValueError,
        match=r"no published layout is known for 'ddamfn_nano' - did you mean 'ddamfn'\?; known: ddamfn, .*, mfn",
    ):
        convert("ddamfn_nano", published)
