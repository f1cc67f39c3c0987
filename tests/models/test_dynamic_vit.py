"""What the dynamic-attention transformers and the layers they stand on promise beyond parity."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fer.models import create_model
from fer.models.inference import for_inference
from fer.models.layers.attention import attention, countable, is_countable
from fer.models.layers.conv import ResidualDepthwiseConv
from fer.models.layers.linear import DropPath, FusedLinear
from fer.models.layers.routing import gathered_attention, masked_attention, route


def test_at_256_pixels_there_are_eight_regions_per_side() -> None:
    with torch.device("meta"):
        model = create_model("dynamic_vit_tiny", input_size=256)
    assert model.input_size == 256
    assert model.get_submodule("stages.0.0.attention").num_regions == 8


def test_drop_path_rates_rise_to_the_last_block() -> None:
    with torch.device("meta"):
        model = create_model("dynamic_vit_tiny", drop_path_rate=0.13)
    rates = [module.rate for module in model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.01 * i for i in range(14)])


@pytest.mark.parametrize("topk", [1, 3, 16])
def test_mask_and_gather_are_the_same_function_with_the_same_gradient(topk: int) -> None:
    torch.manual_seed(0)
    grad = torch.randn(2, 8, 8, 6, dtype=torch.float64)
    results = []
    qkv = torch.randn(2, 8, 8, 18, dtype=torch.float64, requires_grad=True)
    chosen = route(qkv[..., :12], 4, topk)
    for attend in (masked_attention, gathered_attention):
        out = attend(qkv, chosen, num_heads=2, scale=0.5)
        results.append((out, *torch.autograd.grad(out, qkv, grad)))
    for masked, gathered in zip(*results, strict=True):
        torch.testing.assert_close(masked, gathered, rtol=1e-12, atol=1e-12)


def test_a_region_sees_its_chosen_regions_alone() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(1, 8, 8, 18)
    chosen = route(qkv[..., :12], 4, 2)
    other = qkv.clone()
    unseen = next(region for region in range(16) if region not in chosen[0, 5])
    row, column = unseen // 4 * 2, unseen % 4 * 2
    other[:, row : row + 2, column : column + 2, 6:] += 1.0
    for attend in (masked_attention, gathered_attention):
        before, after = (attend(x, chosen, num_heads=2, scale=0.5)[:, 2:4, 2:4] for x in (qkv, other))  # region 5
        assert torch.equal(before, after)


def test_the_choice_of_regions_has_no_gradient() -> None:
    assert not route(torch.randn(1, 4, 4, 8, requires_grad=True), 2, 1).requires_grad


def test_countable_writes_attention_out_and_ends() -> None:
    q, k, v = torch.randn(3, 2, 2, 5, 4).unbind()
    bias = torch.randn(2, 1, 5, 5)
    fused = attention(q, k, v, bias, scale=0.3)
    with countable(), FlopCounterMode(display=False) as counter:
        assert is_countable()
        torch.testing.assert_close(attention(q, k, v, bias, scale=0.3), fused)
    assert counter.get_total_flops() == 2 * 2 * (2 * 2 * 5 * 5 * 4)
    assert not is_countable()


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(4000, 3, 2)
    y = drop(x).flatten(1)
    assert (y == y[:, :1]).all()
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert y.mean().item() == pytest.approx(1.0, abs=0.05)
    assert drop.eval()(x) is x
    assert DropPath(0.0)(x) is x


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_fused_linear_is_the_linear_layer(gelu: bool, bias: bool) -> None:
    linear = nn.Linear(24, 40, bias=bias)
    fused = FusedLinear(linear, gelu=gelu)
    x = torch.randn(2, 5, 24, requires_grad=True)
    expected = F.gelu(linear(x)) if gelu else linear(x)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), expected)
    y = fused(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x), torch.autograd.grad(expected.sum(), x))
    with torch.autocast("cpu", torch.bfloat16):
        assert fused(x.detach()).dtype == torch.bfloat16


def test_folded_residual_convolution_is_the_same() -> None:
    conv = ResidualDepthwiseConv(6, 3)
    x = torch.randn(2, 5, 5, 6)
    torch.testing.assert_close(conv.folded()(x), conv(x))
    assert conv.bfloat16().folded() is conv


def nano_for_inference() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = create_model("dynamic_vit_nano").eval()
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        return for_inference(model), x, model(x)


def test_the_copy_for_inference_exports_and_hands_gradients_to_its_input() -> None:
    model, x, expected = nano_for_inference()
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), expected, rtol=1e-4, atol=1e-5)
    x.requires_grad_()
    logits = model(x)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
    assert gradient.abs().sum() > 0


def test_the_copy_for_inference_runs_under_autocast_and_in_bfloat16() -> None:
    model, x, expected = nano_for_inference()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(x).float(), expected, rtol=0.1, atol=0.1)
        torch.testing.assert_close(model.bfloat16()(x.bfloat16()).float(), expected, rtol=0.1, atol=0.1)
