"""Parity of POSTER V2 with the published implementation, by the numbers of tests/assets/conformance."""

from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer.models import FerModel, TrainOutput, create_model
from fer.models.inference import for_inference
from fer.models.layers.attention import countable
from fer.models.poster_v2 import Fusion, PosterV2
from fer.weights import dead_keys

from .conformance import assert_close, fixture_input, load, published_model

FIXTURES = ["poster_v2_7cls", "poster_v2_8cls"]

OFFICIAL = "train_mode official (landmark BatchNorm in train mode too: batch statistics, running stats drift)"
FROZEN = "train_mode with face_landback.eval() (what frozen should mean)"
SAM_STEP = "one official SAM(Adam lr=3.5e-5, rho=0.05) step"
LANDMARK_BN = {OFFICIAL: "drift", FROZEN: "frozen"}

GRADIENTS = {
    "VIT.head.linear.weight": "head.weight",
    "attn1.qkv.weight": "fusions.0.attention.key_value.weight",
    "attn3.relative_position_bias_table": "fusions.2.attention.position_bias.table",
    "last_face_conv.weight": "fusions.2.landmark_conv.weight",
    "ir_back.input_layer.0.weight": "image.stem.conv.weight",
    "ffn1.gamma1": "fusions.0.attention.proj.scale",
    "VIT.pos_embed": "vit.positions",
    "embed_q.0.weight": "embeddings.0.0.weight",
}


@cache
def filled(fixture: str) -> tuple[FerModel, dict[str, Any]]:
    """Shared by the tests: the model in evaluation mode, and the fixture."""
    model, document = published_model(fixture, "poster_v2")
    return model.eval(), document


def in_float64(model: FerModel) -> FerModel:
    """A copy in float64, its attention scaled as the published code's: that computes head_dim^-0.5 in float32."""
    model = deepcopy(model).double()
    for module in model.modules():
        if isinstance(module, Fusion):
            module.attention.scale = torch.tensor(module.attention.scale, dtype=torch.float32).item()
    return model


@pytest.mark.parametrize("fixture", FIXTURES)
def test_eval_output_is_the_published_codes(fixture: str) -> None:
    model, document = filled(fixture)
    with torch.inference_mode():
        logits = model(fixture_input(document["input"]))
    assert_close(logits, document["eval_logits"], document["suggested_tolerance_abs"], "logits")


@pytest.mark.parametrize("fixture", FIXTURES)
def test_folded_output_in_channels_last_is_the_published_codes(fixture: str) -> None:
    model, document = filled(fixture)
    x = fixture_input(document["input"]).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        logits = for_inference(model)(x)
    assert_close(logits, document["eval_logits"], document["suggested_tolerance_abs"], "logits")


def test_eval_output_in_float64_agrees_beyond_float32() -> None:
    model, document = filled("poster_v2_7cls")
    model = in_float64(model)
    x = fixture_input(document["input"]).double()
    with torch.inference_mode():
        assert_close(model(x), document["eval_logits_float64"], 1e-12, "logits")
        assert_close(for_inference(model)(x), document["eval_logits_float64"], 1e-12, "logits, folded")


def stage_outputs(model: PosterV2, x: Tensor) -> dict[str, Tensor]:
    """What the published code calls its intermediate results, in its layouts."""
    outputs: dict[str, Any] = {}
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: outputs.__setitem__(name, output))
        for name, module in model.named_modules()
    ]
    with torch.inference_mode(), countable():  # the reference path has every token of the last block
        model(x)
    for handle in handles:
        handle.remove()
    stages = dict(zip(("out3", "out4", "conv_features"), outputs["landmarks"], strict=True))
    stages = {f"face_landback.{name}": stage for name, stage in stages.items()}
    stages["last_face_conv"] = outputs["fusions.2.landmark_conv"]
    for number, image in enumerate(outputs["image"], 1):
        fusion = f"fusions.{number - 1}"
        attention_scale = model.get_parameter(f"{fusion}.attention.proj.scale")
        stages[f"ir_back.body{number}"] = image
        stages[f"conv{number}"] = outputs[f"{fusion}.down"]
        stages[f"attn{number}"] = outputs[f"{fusion}.attention"] / attention_scale.detach()
        stages[f"ffn{number}"] = outputs[fusion].permute(0, 2, 3, 1)
    stages["window1.shortcut"] = outputs["fusions.0.norm1"]
    stages["embed_q"] = outputs["embeddings.0"].transpose(1, 2)
    stages["embed_k"] = outputs["embeddings.1"].transpose(1, 2)
    stages["embed_v"] = outputs["embeddings.2"]
    stages["VIT.blocks.0"] = outputs["vit.blocks.0"]
    stages["VIT.blocks.1"] = outputs["vit.blocks.1"]
    stages["VIT.se_block"] = outputs["gate"]
    return stages


def test_every_stage_is_the_published_codes() -> None:
    model, document = filled("poster_v2_7cls")
    assert isinstance(model, PosterV2)
    stages = stage_outputs(model, fixture_input(document["input"]))
    expected_stages = document["intermediate_eval"]
    for name, stage in stages.items():
        where, expected = next((key, value) for key, value in expected_stages.items() if key.startswith(name))
        tolerance = 1e-5 * max(1.0, expected["std"])
        assert stage.numel() == np.prod(expected["shape"]), where
        flat = stage.flatten()
        assert_close(flat[:8], expected["first8"], tolerance, where)
        assert_close(flat[-4:], expected["last4"], tolerance, where)
        assert_close(flat.double().std(unbiased=False), expected["std"], tolerance, where)
    untouched = {key.split(" ")[0] for key in expected_stages} - set(stages)
    assert untouched == {"VIT", "VIT.norm"}  # the tokens as one tensor, and the LayerNorm of tokens that no one reads


def training_model(fixture: str, landmark_bn: str) -> FerModel:
    """In training mode, without drop path, as the fixture was made."""
    filled_model, _ = filled(fixture)
    model = create_model("poster_v2", filled_model.num_classes, landmark_bn=landmark_bn, drop_path_rate=0.0)
    model.load_state_dict(filled_model.state_dict(), strict=True)
    return model.train()


def train_mode_figures(fixture: str, section: str, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Any]]:
    """What one training-mode forward and backward pass gives, in the fixture's terms; and the fixture's own."""
    document = load(fixture)
    model = training_model(fixture, LANDMARK_BN[section])
    model = in_float64(model) if dtype == torch.float64 else model
    output = model(fixture_input(document["train"]["input"]).to(dtype))
    assert isinstance(output, TrainOutput)
    loss = model.loss(output, torch.tensor(document["train"]["targets"]))
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    actual = {
        "logits": output.logits.tolist(),
        "ce": loss.item(),
        "grad_l2_total": float(np.linalg.norm(list(gradients.values()))),
        "grad_l2": {theirs: gradients[ours] for theirs, ours in GRADIENTS.items()},
        "face_landback.conv1.bn.running_mean after, first4": running_mean(model, "landmarks.stem.bn"),
        "ir_back.input_layer.1.running_mean after, first4": running_mean(model, "image.stem.bn"),
    }
    return actual, document["train"][section]


def running_mean(model: nn.Module, name: str) -> list[float]:
    values: list[float] = model.get_buffer(f"{name}.running_mean")[:4].tolist()
    return values


def figures(actual: dict[str, Any]) -> list[tuple[str, str | None, Any]]:
    """(figure, published parameter or None, value) of all."""
    single = [(figure, None, value) for figure, value in actual.items() if figure != "grad_l2"]
    return [*single, *(("grad_l2", name, norm) for name, norm in actual["grad_l2"].items())]


@pytest.mark.parametrize(
    "section", [pytest.param(OFFICIAL, id="drift", marks=pytest.mark.slow), pytest.param(FROZEN, id="frozen")]
)
def test_training_pass_deviates_no_more_than_the_published_codes(section: str) -> None:
    actual, expected = train_mode_figures("poster_v2_7cls", section, torch.float32)
    for figure, name, value in figures(actual):
        published, deviation = expected[figure], expected["float32_deviation"][figure]
        if name is not None:
            published, deviation = published[name], deviation[name]
        relative = 2e-3 if figure.startswith("grad_l2") else 2e-6
        tolerance = max(20 * deviation, relative * np.abs(published).max())
        assert_close(value, published, tolerance, f"{figure} {name or ''}")


@pytest.mark.slow
@pytest.mark.parametrize("fixture", FIXTURES)
@pytest.mark.parametrize("section", [OFFICIAL, FROZEN], ids=["drift", "frozen"])
def test_training_pass_in_float64_is_the_published_codes(fixture: str, section: str) -> None:
    actual, expected = train_mode_figures(fixture, section, torch.float64)
    for figure, name, value in figures(actual):
        published = expected[figure] if name is None else expected[figure][name]
        tolerance = 1e-9 * (np.abs(published).max() if name else max(1.0, np.abs(published).max()))
        assert_close(value, published, tolerance, f"{figure} {name or ''}")


@pytest.mark.slow
def test_one_step_of_sam_is_the_published_codes() -> None:
    """Its two passes both update the BatchNorm statistics, the landmark network's included."""
    document = load("poster_v2_7cls")
    expected = next(figures for name, figures in document["train"].items() if name.startswith(SAM_STEP))
    model = in_float64(training_model("poster_v2_7cls", "drift"))
    x, targets = fixture_input(document["train"]["input"]).double(), torch.tensor(document["train"]["targets"])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=3.5e-5)

    loss = model.loss(model(x), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    assert_close(loss.detach(), expected["loss first pass"], 1e-9, "first loss")
    weights = [p.detach().clone() for p in parameters]
    norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
    with torch.no_grad():
        for p in parameters:
            assert p.grad is not None
            p.add_(p.grad * 0.05 / (norm + 1e-12))
    optimizer.zero_grad()
    loss = model.loss(model(x), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    assert_close(loss.detach(), expected["loss second pass (at w + e)"], 1e-8, "second loss")
    with torch.no_grad():
        for p, weight in zip(parameters, weights, strict=True):
            p.copy_(weight)
    optimizer.step()
    with torch.inference_mode():
        logits = model.eval()(x)
    assert_close(logits, expected["eval_logits after the step"], 1e-7, "logits after the step")


def test_eval_logits_on_the_training_input() -> None:
    model, document = filled("poster_v2_7cls")
    expected = document["train"]["eval_mode_on_train_input"]
    with torch.inference_mode():
        logits = model(fixture_input(document["train"]["input"]))
    assert_close(logits, expected["logits"], 20 * expected["float32_deviation"]["logits"], "logits")


@pytest.mark.parametrize("fixture", FIXTURES)
def test_published_parameters_are_ours_and_the_dead(fixture: str) -> None:
    document = load(fixture)
    dead = set(dead_keys("poster_v2", [key for key, *_ in document["keys"]]))
    dead_parameters = [
        int(np.prod(shape))
        for key, shape, *_ in document["keys"]
        if key in dead and key.split(".")[-1] in ("weight", "bias")
    ]
    with torch.device("meta"):
        model = create_model("poster_v2", 7 if "7cls" in fixture else 8)
    ours = sum(p.numel() for p in model.parameters())
    assert ours == {"poster_v2_7cls": 43_753_941, "poster_v2_8cls": 43_754_710}[fixture]
    assert ours + sum(dead_parameters) == document["n_params"]


def test_nearest_neighbour_keeps_every_second_pixel() -> None:
    """Three quarters of the published model's input are never seen."""
    model = create_model("poster_v2_nano").eval()
    x = torch.randn(2, 3, 2 * model.input_size, 2 * model.input_size)
    with torch.inference_mode():
        assert torch.equal(model(x), model(F.interpolate(x, scale_factor=0.5)))
        assert torch.equal(model(x), model(x[..., ::2, ::2].contiguous()))
