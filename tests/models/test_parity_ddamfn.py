"""Parity of DDAMFN and MFN with the published implementations, by the numbers of tests/assets/conformance.

Each fixture fills a state dict of the published layout by a rule, takes it through `fer.weights.convert`, and compares
what the model then computes. So one test holds the architecture and the importer at once.
"""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer.models import FerModel, TrainOutput, create_model
from fer.models.ddamfn import attention_loss
from fer.weights import dead_keys

from .conformance import assert_close, fixture_input, load, published_model

FIXTURES = {"ddamfn_7cls": "ddamfn", "ddamfn_7cls_h3": "ddamfn", "ddamfn_8cls": "ddamfn", "mfn": "mfn"}
TRAIN_FIXTURES = [fixture for fixture, name in FIXTURES.items() if name == "ddamfn"]


def load_published(fixture: str) -> tuple[FerModel, dict[str, Any]]:
    return published_model(fixture, FIXTURES[fixture])


@pytest.mark.parametrize("fixture", FIXTURES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_eval_output_is_the_published_codes(fixture: str, memory_format: torch.memory_format) -> None:
    model, document = load_published(fixture)
    model = model.eval().to(memory_format=memory_format)  # type: ignore[call-overload]
    with torch.inference_mode():
        logits = model(fixture_input(document["input"]).to(memory_format=memory_format))
    assert_close(logits, document["eval_logits"], document["suggested_tolerance_abs"], "logits")


@pytest.mark.parametrize("fixture", FIXTURES)
def test_eval_output_in_float64_agrees_beyond_float32(fixture: str) -> None:
    model, document = load_published(fixture)
    with torch.inference_mode():
        logits = model.double().eval()(fixture_input(document["input"]).double())
    assert_close(logits, document["eval_logits_float64"], 1e-11, "logits")


@pytest.mark.parametrize("fixture", FIXTURES)
def test_every_stage_is_the_published_codes(fixture: str) -> None:
    model, document = load_published(fixture)
    seen: list[Tensor] = []
    for name, module in model.named_modules():
        if name == "pool" or (name.startswith(("features.", "heads.")) and name.count(".") == 1):
            module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.inference_mode():
        model.eval()(fixture_input(document["input"]))
    assert len(seen) >= 10
    for actual, (where, expected) in zip(seen, document["intermediate_eval"].items(), strict=False):
        tolerance = 1e-4 * max(1.0, expected["std"])
        assert list(actual.shape)[:2] == expected["shape"][:2], where
        flat = actual.flatten()
        assert_close(flat[:8], expected["first8"], tolerance, where)
        assert_close(flat[-4:], expected["last4"], tolerance, where)
        assert_close(flat.double().std(unbiased=False), expected["std"], tolerance, where)


def train_mode_figures(fixture: str, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Any]]:
    """What one training-mode forward and backward pass gives, in the fixture's terms; and the fixture's own."""
    model, document = load_published(fixture)
    expected = document["train"]["train_mode"]
    targets = torch.tensor(document["train"]["targets"])
    output = model.to(dtype).train()(fixture_input(document["train"]["input"]).to(dtype))
    assert isinstance(output, TrainOutput)
    loss = model.loss(output, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    published_names = {
        "fc.weight": "fc.weight",
        "cat_head0.CoordAtt.conv1.weight": "heads.0.gate.squeeze.weight",
        "cat_head0.CoordAtt.Linear_h.conv.weight": "heads.0.profile_h.conv.weight",
        "features.0.conv.weight": "features.stem.conv.weight",
        "features.3.model.0.CA.conv1.weight": "features.stage1.0.attention.gate.squeeze.weight",
        "Linear.conv.weight": "pool.conv.weight",
    }
    gradients = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    stem_bn = model.get_submodule("features.stem.bn")
    assert isinstance(stem_bn, nn.BatchNorm2d)
    assert stem_bn.running_mean is not None
    assert stem_bn.running_var is not None
    actual = {
        "logits": output.logits.tolist(),
        "ce": F.cross_entropy(output.logits, targets).item(),
        "attention_loss_official": attention_loss(output.aux["attention"]).item(),
        "loss = ce + 0.1*att": loss.item(),
        "grad_l2_total": float(np.linalg.norm(list(gradients.values()))),
        "grad_l2": {theirs: gradients[ours] for theirs, ours in published_names.items()},
        "features.0.bn.running_mean after one forward, first4": stem_bn.running_mean[:4].tolist(),
        "features.0.bn.running_var after one forward, first4": stem_bn.running_var[:4].tolist(),
    }
    return actual, expected


@pytest.mark.parametrize("fixture", TRAIN_FIXTURES)
def test_training_pass_is_the_published_codes(fixture: str) -> None:
    actual, expected = train_mode_figures(fixture, torch.float64)
    for figure, value in actual.items():
        if figure == "grad_l2":
            for name, norm in value.items():
                assert_close(norm, expected[figure][name], 1e-8 * expected[figure][name], f"gradient of {name}")
        else:
            assert_close(value, expected[figure], 1e-9 * max(1.0, np.abs(expected[figure]).max()), figure)


@pytest.mark.parametrize("fixture", TRAIN_FIXTURES)
def test_training_pass_in_float32_deviates_no_more_than_the_published_codes(fixture: str) -> None:
    actual, expected = train_mode_figures(fixture, torch.float32)
    deviation = expected["float32_deviation"]
    for figure, value in actual.items():
        if figure == "grad_l2":
            for name, norm in value.items():
                tolerance = max(20 * deviation[figure][name], 2e-3 * expected[figure][name])
                assert_close(norm, expected[figure][name], tolerance, f"gradient of {name}")
        else:
            tolerance = max(20 * deviation[figure], 2e-6 * np.abs(expected[figure]).max())
            assert_close(value, expected[figure], tolerance, figure)


@pytest.mark.parametrize("fixture", TRAIN_FIXTURES)
def test_attention_loss_in_eval_mode_has_both_definitions(fixture: str) -> None:
    model, document = load_published(fixture)
    expected = document["train"]["eval_mode_on_train_input"]
    model.double().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eval()
    with torch.inference_mode():
        output = model(fixture_input(document["train"]["input"]).double())
    assert_close(output.logits, expected["logits"], 1e-10, "logits")
    maps = output.aux["attention"]
    assert_close(attention_loss(maps, "code"), expected["attention_loss_official"], 1e-10, "code")
    assert_close(attention_loss(maps, "paper"), expected["attention_loss_paper_equation"], 1e-10, "paper")


@pytest.mark.parametrize("num_heads", [1, 2, 3, 4])
def test_attention_loss_is_the_worked_example(num_heads: int) -> None:
    expected = load("train_utils")["ddamfn_attention_loss"]["n_heads"][str(num_heads)]
    heads = [np.random.Generator(np.random.PCG64(i)).random((2, 3, 2, 2)) for i in range(num_heads)]
    maps = torch.from_numpy(np.stack(heads, axis=1))
    official = next(value for key, value in expected.items() if key.startswith("official"))
    paper = next(value for key, value in expected.items() if key.startswith("paper"))
    assert_close(attention_loss(maps, "code"), official, 1e-12, "code")
    assert_close(attention_loss(maps, "paper"), paper or 0.0, 1e-12, "paper")


@pytest.mark.parametrize("fixture", FIXTURES)
def test_published_parameters_are_ours_and_the_dead(fixture: str) -> None:
    model, document = load_published(fixture)
    dead = set(dead_keys(FIXTURES[fixture], [key for key, *_ in document["keys"]]))
    dead_parameters = {
        key: int(np.prod(shape))
        for key, shape, *_ in document["keys"]
        if key in dead and key.split(".")[-1] in ("weight", "bias")
    }
    ours = sum(p.numel() for p in model.parameters())
    assert ours + sum(dead_parameters.values()) == document["n_params"]
    if fixture in TRAIN_FIXTURES:
        without_gradient = next(v for k, v in document["train"].items() if k.startswith("params_without_grad"))
        assert set(dead_parameters) == set(without_gradient)


@pytest.mark.parametrize(
    ("name", "num_classes", "options", "parameters"),
    [
        ("ddamfn", 7, {}, 4_105_999),
        ("ddamfn", 8, {}, 4_106_512),
        ("ddamfn", 7, {"num_heads": 1}, 4_071_135),
        ("ddamfn", 7, {"num_heads": 3}, 4_140_863),
        ("ddamfn", 7, {"num_heads": 4}, 4_175_727),
        ("mfn", 7, {}, 4_166_063),
        ("mfn", 0, {}, 4_193_448 - 29_184),
    ],
)
def test_parameters_are_the_live_ones_of_the_published_code(
    name: str, num_classes: int, options: dict[str, Any], parameters: int
) -> None:
    assert sum(p.numel() for p in create_model(name, num_classes, **options).parameters()) == parameters
