"""What POSTER V2 promises beyond parity."""

from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer.models import FerModel, create_model
from fer.models.inference import for_inference
from fer.models.layers.attention import RelativePositionBias
from fer.models.layers.linear import ScaledLinear
from fer.models.layers.tokens import Embedding, to_map, to_tokens
from fer.models.poster_v2 import Fusion

ABLATIONS: list[dict[str, Any]] = [
    {},
    {"multi_scale": False},
    {"vit_depth": 0},
    {"vit_depth": 4},
    {"attention": "vanilla"},
    {"window_size": 3},
    {"window_size": 6},
    {"cross_fusion": False},
    {"cross_fusion": False, "window_size": 3},
    {"cross_fusion": False, "attention": "vanilla"},
    {"multi_scale": False, "vit_depth": 0},
    {"project_query": True, "residual": "input"},
]


def batch(model: FerModel, size: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, model.input_size, model.input_size, generator=generator)


@pytest.mark.parametrize("options", ABLATIONS, ids=str)
def test_every_ablation_trains_all_that_it_owns_and_folds(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = create_model("poster_v2_nano", **options)
    output = model(batch(model))
    model.loss(output, torch.tensor([0, 1, 2])).backward()  # type: ignore[no-untyped-call]
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    model.eval()
    folded = for_inference(model)
    with torch.inference_mode():
        torch.testing.assert_close(folded(batch(model)), model(batch(model)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"vit_depth": 0}, 43_753_941 - 2 * 7_087_872 - 149 * 768),
        ({"vit_depth": 8}, 43_753_941 + 6 * 7_087_872),
        ({"attention": "vanilla"}, 43_753_941 + 86_464 - 10_318),
        ({"project_query": True}, 43_753_941 + 86_464),
        ({"window_size": 7}, 43_753_941 - 6_050 - 2_916 + 169 * 6),
    ],
    ids=str,
)
def test_ablations_of_the_published_size_have_the_parameters_of_their_parts(
    options: dict[str, Any], parameters: int
) -> None:
    with torch.device("meta"):
        model = create_model("poster_v2", **options)
        assert sum(p.numel() for p in model.parameters()) == parameters
        assert model.eval()(batch(model, 2).to("meta")).shape == (2, 7)


def test_a_fusion_by_the_papers_equations_4_and_5() -> None:
    """q = z_lm W_q; X' = W-MCSA + X_img; X_o = MLP(Norm(X')) + X', written out for one window and one head."""
    torch.manual_seed(0)
    width, side = 4, 3
    fusion = Fusion(
        width, width, num_heads=1, side=side, window=side, attention="window", project_query=True, residual="input",
        layer_scale=1.0, drop_path_rate=0.0,
    ).eval()  # fmt: skip
    image, landmarks = torch.randn(2, width, 2 * side, 2 * side), torch.randn(2, width, side, side)
    x = to_tokens(fusion.down(image))
    z = fusion.norm1(x)
    w = fusion.attention
    assert w.query is not None
    assert w.position_bias is not None
    k, v = w.key_value(z).chunk(2, dim=2)
    scores = w.query(to_tokens(landmarks)) @ k.mT / width**0.5 + w.position_bias()[:, 0]
    x = x + w.proj(scores.softmax(2) @ v)
    x = x + fusion.mlp(fusion.norm2(x))
    torch.testing.assert_close(fusion(image, landmarks), to_map(x, side))


def test_relative_position_bias_is_swins() -> None:
    side, heads = 4, 3
    bias = RelativePositionBias(side, heads)
    positions = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    offset = positions[:, None] - positions[None, :] + side - 1  # (S*S,S*S,2)
    index = offset[..., 0] * (2 * side - 1) + offset[..., 1]
    assert torch.equal(bias(), bias.table[index].permute(2, 0, 1)[None])


@pytest.mark.parametrize("cross", [True, False])
def test_windows_are_squares_that_attend_in_themselves(cross: bool) -> None:
    torch.manual_seed(0)
    fusion = Fusion(
        8,
        8 if cross else None,
        num_heads=2,
        side=6,
        window=3,
        attention="window",
        project_query=False,
        residual="normalized",
        layer_scale=1.0,
        drop_path_rate=0.0,
    ).double()
    x, landmarks = torch.randn(2, 36, 8).double(), torch.randn(2, 8, 6, 6).double()
    attended = fusion._attend(x, landmarks if cross else None).view(2, 6, 6, 8)
    pooled = landmarks.view(2, 8, 3, 2, 3, 2).mean((3, 5)).flatten(2).transpose(1, 2)
    for row in (0, 3):
        for column in (0, 3):
            window = x.view(2, 6, 6, 8)[:, row : row + 3, column : column + 3].reshape(2, 9, 8)
            expected = fusion.attention(pooled if cross else window, window).view(2, 3, 3, 8)
            torch.testing.assert_close(attended[:, row : row + 3, column : column + 3], expected)


def test_a_window_as_large_as_the_maps_is_the_default() -> None:
    torch.manual_seed(0)
    model = create_model("poster_v2_nano").eval()
    same = create_model("poster_v2_nano", window_size=12).eval()
    same.load_state_dict(model.state_dict(), strict=True)
    with torch.inference_mode():
        assert torch.equal(same(batch(model)), model(batch(model)))


@pytest.mark.parametrize("side", [8, 12, 28])
def test_two_convolutions_of_an_embedding_are_one(side: int) -> None:
    torch.manual_seed(0)
    embedding = Embedding(3, 5, side=side, halvings=2).double()
    x = torch.randn(2, 3, side, side).double()
    torch.testing.assert_close(embedding.folded()(x), embedding(x))


def test_layer_scale_is_folded_into_the_linear_layer() -> None:
    layer = ScaledLinear(4, 3, initial_scale=0.5)
    nn.init.normal_(layer.scale)
    x = torch.randn(5, 4)
    assert type(layer.folded()) is nn.Linear
    torch.testing.assert_close(layer.folded()(x), layer(x))


def test_drop_path_grows_with_the_level() -> None:
    with torch.device("meta"):
        model = create_model("poster_v2")
    rates = [fusion.drop_path.rate for fusion in model.modules() if isinstance(fusion, Fusion)]
    assert rates == [0.0, 0.125, 0.25]


def test_bfloat16_evaluation_is_near_float32() -> None:
    torch.manual_seed(0)
    model = create_model("poster_v2_nano").eval()
    x = batch(model)
    with torch.inference_mode():
        expected = model(x)
        for lower in (for_inference(model), model):
            with torch.autocast("cpu", torch.bfloat16):
                torch.testing.assert_close(lower(x).float(), expected, rtol=0.1, atol=0.05)
            torch.testing.assert_close(deepcopy(lower).bfloat16()(x.bfloat16()).float(), expected, rtol=0.1, atol=0.05)


def test_nearest_neighbor_keeps_every_second_pixel() -> None:
    """Three quarters of the published model's input are never seen."""
    model = create_model("poster_v2_nano").eval()
    x = torch.randn(2, 3, 2 * model.input_size, 2 * model.input_size)
    with torch.inference_mode():
        assert torch.equal(model(x), model(F.interpolate(x, scale_factor=0.5)))
        assert torch.equal(model(x), model(x[..., ::2, ::2].contiguous()))
