"""Parity of the dynamic-attention transformers with BiFormer as published, by the numbers of tests/assets/conformance.

Three ways are held to the same numbers: the model as it trains, its reference path (keys and values gathered, attention
written out), and its copy for inference.
"""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fer.models import FerModel, TrainOutput, create_model
from fer.models.inference import for_inference
from fer.models.layers import routing
from fer.models.layers.attention import countable
from fer.models.layers.routing import RoutingAttention, route
from fer.weights import convert, dead_keys, published_options
from fer.weights.layouts import LAYOUTS

from .conformance import assert_close, fixture_input, load, published_state

FIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "biformer_tiny_224_default": ("dynamic_vit_tiny", {}),
    "biformer_small_224_default": ("dynamic_vit_small", {}),
    "biformer_base_224_default": ("dynamic_vit_base", {}),
    "biformer_base_224_topk2": ("dynamic_vit_base", {"topk": 2}),
    "biformer_base_256_default": ("dynamic_vit_base", {"input_size": 256}),
}
"""The model and the options that its tensors do not tell."""

TINY = "biformer_tiny_224_default"

SIZED = [pytest.param(fixture, marks=[] if fixture == TINY else [pytest.mark.slow]) for fixture in FIXTURES]
"""The large ones, which take seconds a pass, in the slow tests alone."""


@dataclass
class Filled:
    name: str
    model: FerModel
    document: dict[str, Any]
    x: Tensor


def filled(fixture: str) -> Filled:
    name, options = FIXTURES[fixture]
    document = load(fixture)
    published = published_state(document)
    model = create_model(name, **published_options(name, published), **options, drop_path_rate=0.0)
    model.load_state_dict(convert(name, published), strict=True)
    return Filled(name, model.eval(), document, fixture_input(document["input"]))


@pytest.fixture(scope="module", params=FIXTURES)
def published(request: pytest.FixtureRequest) -> Filled:
    return filled(request.param)


def assert_published_logits(published: Filled, logits: Tensor) -> None:
    document = published.document
    assert_close(logits, document["eval_logits"], document["suggested_tolerance_abs"], "logits")


def test_every_stage_choice_and_logit_is_the_published_codes(
    published: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = published.model
    maps: dict[str, Tensor] = {}
    chosen: list[Tensor] = []
    for name, module in model.named_modules():
        if name == "stem" or name == "norm" or name.startswith(("halvings.", "stages.")):
            module.register_forward_hook(lambda _module, _inputs, output, name=name: maps.update({name: output}))

    def recorded_route(*arguments: Any) -> Tensor:
        chosen.append(route(*arguments))
        return chosen[-1]

    monkeypatch.setattr(routing, "route", recorded_route)
    with torch.inference_mode():
        assert_published_logits(published, model(published.x))
    depths = [len(list(stage.children())) for stage in model.get_submodule("stages").children()]
    seen: dict[str, Tensor] = {"norm": maps["norm"]}
    for stage in range(4):
        down = "stem" if stage == 0 else f"halvings.{stage - 1}"
        seen[f"downsample_layers.{stage}"] = maps[down].permute(0, 3, 1, 2)
        seen[f"stages.{stage}.0 (first block)"] = maps[f"stages.{stage}.0"].permute(0, 3, 1, 2)
        seen[f"stages.{stage}"] = maps[f"stages.{stage}"].permute(0, 3, 1, 2)
        if stage < 3:
            indices = chosen[sum(depths[:stage])]
            count, topk = indices.shape[1:]
            seen[f"stages.{stage}.0 router top-k region index (B,{count},{topk}), as float"] = indices.float()
    assert len(seen) == len(published.document["intermediate_eval"]) == 16
    for where, expected in published.document["intermediate_eval"].items():
        actual, tolerance = seen[where], 1e-4 * max(1.0, expected["std"])
        if "router" in where:
            tolerance = 0.0
        assert list(actual.shape) == expected["shape"], where
        assert_close(actual.flatten()[:8], expected["first8"], tolerance, where)
        assert_close(actual.flatten()[-4:], expected["last4"], tolerance, where)
        assert_close(actual.double().mean(), expected["mean"], max(tolerance, 1e-9), where)


def test_the_copy_for_inference_gives_the_published_logits(published: Filled) -> None:
    with torch.inference_mode():
        model = for_inference(published.model)
        assert_published_logits(published, model(published.x.to(memory_format=torch.channels_last)))


def test_parameters_are_the_published_codes(published: Filled) -> None:
    assert dead_keys(published.name, [key for key, *_ in published.document["keys"]]) == []
    assert sum(p.numel() for p in published.model.parameters()) == published.document["n_params"]


@pytest.mark.parametrize("fixture", SIZED)
def test_the_reference_path_gives_the_published_logits(fixture: str) -> None:
    published = filled(fixture)
    with torch.inference_mode(), countable():
        assert_published_logits(published, published.model(published.x))


@pytest.mark.parametrize("fixture", SIZED)
def test_channels_last_gives_the_published_logits(fixture: str) -> None:
    published = filled(fixture)
    model = published.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode():
        assert_published_logits(published, model(published.x.to(memory_format=torch.channels_last)))


@pytest.mark.parametrize("fixture", SIZED)
def test_eval_output_in_float64_agrees_beyond_float32(fixture: str) -> None:
    published = filled(fixture)
    with torch.inference_mode():
        logits = published.model.double()(published.x.double())
        folded = for_inference(published.model)(published.x.double())
    assert_close(logits, published.document["eval_logits_float64"], 1e-11, "logits")
    assert_close(folded, published.document["eval_logits_float64"], 1e-11, "logits of the copy for inference")


@pytest.mark.parametrize("fixture", SIZED)
@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.float64], ids=str)
def test_training_pass_is_the_published_codes(fixture: str, dtype: torch.dtype) -> None:
    published = filled(fixture)
    train = published.document["train"]
    expected, deviation = train["train_mode"], train["train_mode"]["float32_deviation"]
    model = published.model.to(dtype).train()
    output = model(fixture_input(train["input"]).to(dtype))
    assert isinstance(output, TrainOutput)
    loss = model.loss(output, torch.tensor(train["targets"]))
    loss.backward()  # type: ignore[no-untyped-call]
    exact = dtype == torch.float64
    assert_close(output.logits.tolist(), expected["logits"], 1e-10 if exact else 20 * deviation["logits"], "logits")
    assert_close(loss.item(), expected["ce"], 1e-11 if exact else 20 * deviation["ce"], "cross-entropy")
    layout = LAYOUTS[published.name]
    for key, norm in expected["grad_l2"].items():
        gradient = model.get_parameter(layout.our_key(key)).grad
        assert gradient is not None
        tolerance = 1e-10 * norm if exact else max(20 * deviation["grad_l2"][key], 1e-5 * norm)
        assert_close(gradient.double().norm().item(), norm, tolerance, f"gradient of {key}")


@pytest.mark.parametrize("case", range(4))
@pytest.mark.parametrize("reference", [False, True], ids=["mask", "gather"])
def test_routing_attention_alone_is_the_published_codes(case: int, reference: bool) -> None:
    expected = load("bra_module_tiny")["cases"][case]
    dim, side, topk = expected["dim"], expected["n_win (regions per side)"], expected["topk"]
    module = RoutingAttention(
        dim, num_heads=expected["heads"], num_regions=side, topk=topk, kernel=expected["side_dwconv"]
    ).double()
    state = {}
    for key, shape, formula, fan_in in expected["keys"]:
        draws = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(shape)
        values = 2 * draws / np.sqrt(fan_in) if formula.startswith("weight2") else 0.1 * draws
        ours = LAYOUTS["dynamic_vit_tiny"].our_key(f"stages.0.0.attn.{key}").removeprefix("stages.0.0.attention.")
        state[ours] = torch.from_numpy(values)
    module.load_state_dict(state, strict=True)
    shape = (1, *expected["map"], dim)
    x = torch.from_numpy(np.random.Generator(np.random.PCG64(0)).standard_normal(shape))
    with torch.no_grad():
        chosen = route(module.qkv(x)[..., : 2 * dim], side, topk)
        if reference:
            with countable():
                out = module(x)
        else:
            out = module(x)
    assert chosen.tolist() == expected["region top-k indices (B, n_win^2, topk), sorted by affinity"]
    assert_close(out, expected["output (NHWC)"], 1e-12, "output")
