"""What our speed is measured against computes what the published code computes."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from builders.conformance import assert_close, fixture_input, keras_state, load, pixels, published_state
from torch import Tensor

from benchmarks.reference import REFERENCES, Published, biformer
from benchmarks.reference.ddamfn import ddamfn
from benchmarks.reference.lhc import from_keras, lhc_net
from benchmarks.reference.poster_v2 import poster_v2
from benchmarks.reference.published import KERAS
from fer.models import create_model
from fer.weights.convert import convert

FORWARDS: dict[str, Any] = {
    "ddamfn_7cls": REFERENCES["ddamfn"].forward,
    "ddamfn_7cls_h3": lambda p, x: ddamfn(p, x, num_heads=3)[0],
    "mfn": REFERENCES["mfn"].forward,
    "poster_v2_7cls": REFERENCES["poster_v2"].forward,
    "ir50": lambda p, x: REFERENCES["ir50"].forward(p, x).mean((2, 3))[:, :8],
    "mobilefacenet": REFERENCES["mobilefacenet"].forward,
    "biformer_tiny_224_default": REFERENCES["dynamic_vit_tiny"].forward,
    "biformer_small_224_default": REFERENCES["dynamic_vit_small"].forward,
    "biformer_base_224_default": REFERENCES["dynamic_vit_base"].forward,
    "biformer_base_224_topk2": partial(biformer.biformer, size=replace(biformer.BASE, topk=(2, 2, 2))),
    "biformer_base_256_default": partial(biformer.biformer, size=replace(biformer.BASE, regions=8)),
}
SLOW = [fixture for fixture in FORWARDS if fixture.startswith(("biformer_small", "biformer_base"))]
KERAS_FORWARDS: dict[str, Any] = {
    "resnet34v2": REFERENCES["resnet34v2"].forward,
    "lhc_net": REFERENCES["lhc_net"].forward,
    "lhc_netc": partial(lhc_net, controlled=True),
}


def tensors(document: dict[str, Any]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in published_state(document).items()}


@pytest.mark.parametrize("fixture", [pytest.param(f, marks=pytest.mark.slow) if f in SLOW else f for f in FORWARDS])
def test_reference_gives_the_published_logits(fixture: str) -> None:
    document = load(fixture)
    with torch.inference_mode():
        logits = FORWARDS[fixture](Published(tensors(document)), fixture_input(document["input"]))
    assert_close(logits, document["eval_logits"], document["suggested_tolerance_abs"], "logits")


@pytest.mark.parametrize("fixture", KERAS_FORWARDS)
def test_keras_reference_gives_the_published_logits(fixture: str) -> None:
    document = load(fixture)
    state = keras_state(document, document["keys"])
    weights = from_keras({key: torch.as_tensor(value) for key, value in state.items()})
    with torch.inference_mode():
        logits = KERAS_FORWARDS[fixture](Published(weights, names=KERAS), pixels(document["input"]))
    assert_close(logits, document["eval_logits"], document["suggested_tolerance_abs"], "logits")


def test_reference_trains_as_the_published_code_does() -> None:
    document = load("ddamfn_7cls")
    weights = {key: t.double() if t.is_floating_point() else t for key, t in tensors(document).items()}
    for key, tensor in weights.items():
        tensor.requires_grad_(tensor.is_floating_point() and not key.endswith(("running_mean", "running_var")))
    published = Published(weights, training=True)
    logits, _ = ddamfn(published, fixture_input(document["train"]["input"]).double())
    assert_close(logits.detach(), document["train"]["train_mode"]["logits"], 1e-8, "logits")
    torch.nn.functional.cross_entropy(logits, torch.tensor(document["train"]["targets"])).backward()  # type: ignore[no-untyped-call]
    assert weights["features.0.conv.weight"].grad is not None
    statistics = document["train"]["train_mode"]["features.0.bn.running_mean after one forward, first4"]
    assert_close(weights["features.0.bn.running_mean"][:4], statistics, 1e-9, "running mean")


def test_vit_reference_is_our_vit() -> None:
    """There is no fixture of a plain ViT: the two forward passes, written apart, agree through the importer."""
    published = Published()
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with torch.inference_mode():
        logits = REFERENCES["vit_b16"].forward(published, x)
        model = create_model("vit_b16").eval()
        model.load_state_dict(convert("vit_b16", published.tensors))
        assert_close(model(x), logits, 1e-5, "logits")


def test_weights_made_for_a_reference_are_made_once_and_the_landmark_network_is_frozen() -> None:
    published = Published(training=True)
    x = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    poster_v2(published, x)
    first = dict(published.tensors)
    poster_v2(published, x)
    assert all(published.tensors[key] is tensor for key, tensor in first.items())
    assert len(published.tensors) == len(first)
    trained = {key for key, tensor in first.items() if tensor.requires_grad}
    assert "ir_back.input_layer.0.weight" in trained
    assert not any(key.startswith("face_landback.") or "running" in key for key in trained)


def test_every_reference_names_a_model_of_ours() -> None:
    with torch.device("meta"):
        for reference in REFERENCES.values():
            assert create_model(reference.model, **reference.options).input_size == reference.size
