"""Promises of `for_inference`: the same logits by fewer passes over memory, and no way back to training."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from fer.models import FerModel, create_model, list_models
from fer.models.inference import FEWEST_IMAGES, for_inference
from fer.models.layers.conv import fold_conv_bn
from fer.models.layers.gate import profiles, weigh

SMALL = [name for name in list_models() if name.endswith(("_nano", "_small")) and "vit_small" not in name]
MODELS = sorted({"ddamfn", "mfn", "mobilefacenet", "resnet34v2"} | {n for n in SMALL if not n.startswith("poster_v1")})


def unsettle(model: nn.Module) -> None:
    """Statistics, slopes and shifts as after some training: at their initial values, folding would do nothing."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() <= 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def build(name: str) -> FerModel:
    torch.manual_seed(0)
    model = create_model(name)
    unsettle(model)
    return model.eval()


def images(model: FerModel, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, model.input_size, model.input_size, generator=generator)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name.endswith("_nano") else [pytest.mark.slow]) for name in MODELS]
)
def test_the_logits_are_those_of_the_model(name: str) -> None:
    model = build(name).double()
    x = images(model, 2).double()
    fast = for_inference(model)
    with torch.inference_mode():
        expected = model(x)
        torch.testing.assert_close(fast(x), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(fast(x.to(memory_format=torch.channels_last)), expected, rtol=1e-9, atol=1e-9)


def test_no_batch_norm_of_a_convolution_is_left() -> None:
    norms = [name for name, module in for_inference(build("ddamfn")).named_modules() if "BatchNorm" in repr(module)[:9]]
    assert norms == []


@pytest.mark.parametrize("name", ["ddamfn_nano", "poster_v2_nano"])
def test_it_is_a_model_like_the_one_it_was_made_of(name: str) -> None:
    model = build(name)
    fast = for_inference(model)
    assert type(fast) is type(model)
    for attribute in ("num_classes", "input_size", "mean", "std", "resize", "name"):
        assert getattr(fast, attribute) == getattr(model, attribute)
    assert not any(parameter.requires_grad for parameter in fast.parameters())


def test_the_model_itself_is_left_alone() -> None:
    model = build("ddamfn_nano").train()
    before = deepcopy(model.state_dict())
    fast = for_inference(model)
    for parameter in fast.parameters():
        parameter.fill_(7.0)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_it_cannot_be_trained() -> None:
    fast = for_inference(build("ddamfn_nano"))
    assert fast.eval() is fast
    for model in (fast, deepcopy(fast)):
        with pytest.raises(RuntimeError, match="train the original model"):
            model.train()


def test_a_copy_has_weights_of_its_own() -> None:
    fast = for_inference(build("ddamfn_nano"))
    x = images(fast, 2)
    with torch.inference_mode():
        before = fast(x)
        copy = deepcopy(fast)
        for parameter in copy.parameters():
            parameter.zero_()
        assert torch.equal(fast(x), before)
        assert not torch.equal(copy(x), before)


@pytest.mark.parametrize("size", [1, FEWEST_IMAGES, 2 * FEWEST_IMAGES + 1])
def test_a_batch_in_parts_is_the_whole_batch(size: int) -> None:
    model = build("ddamfn_nano")
    x = images(model, size)
    with torch.inference_mode():
        torch.testing.assert_close(for_inference(model)(x), model(x), rtol=1e-4, atol=1e-5)


def test_half_precision_stays_near() -> None:
    model = build("ddamfn_nano")
    x = images(model, 4)
    with torch.inference_mode():
        expected = model(x)
        logits = for_inference(model).bfloat16()(x.bfloat16())
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_a_batch_norm_folds_into_the_convolution_before_it(groups: int, bias: bool) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1, groups=groups, bias=bias), nn.BatchNorm2d(12)).double().eval()
    unsettle(layers)
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(fold_conv_bn(layers[0], layers[1])(x), layers(x), rtol=1e-12, atol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_gates_and_profiles_have_the_plain_gradients(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    gate_h = torch.rand(2, 3, 4, 1, dtype=torch.float64, requires_grad=True)
    gate_w = torch.rand(2, 3, 1, 5, dtype=torch.float64, requires_grad=True)
    assert torch.equal(weigh(x, gate_h, gate_w), x * gate_w * gate_h)
    rows, columns = profiles(x)
    torch.testing.assert_close(rows, x.mean(3, keepdim=True))
    torch.testing.assert_close(columns, x.mean(2, keepdim=True))
    assert torch.autograd.gradcheck(weigh, (x, gate_h, gate_w))
    assert torch.autograd.gradcheck(profiles, (x,))
