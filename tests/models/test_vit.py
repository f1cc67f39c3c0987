"""What ViT-B/16 promises, with full and with dynamic attention."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fer.models import create_model
from fer.models.layers.attention import attention, countable
from fer.models.vit import RoutedSelfAttention


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "routed"}, "attention = 'routed': one of"),
        ({"num_regions": 4}, r"num_regions = 4 does not divide the 14 .*allowed: \[1, 2, 7, 14\]"),
        ({"topk": 50}, r"topk = 50: 1 to 49"),
        ({"num_classes": 0}, "num_classes = 0"),
    ],
)
def test_wrong_option_values_are_named(options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        create_model("vit_b16", **options)


@pytest.mark.parametrize(
    ("num_classes", "attention", "parameters", "gmacs"),
    [(1000, "full", 86_567_656, 17.564), (7, "full", 85_804_039, 17.563), (7, "dynamic", 85_804_039, 16.906)],
)
def test_cost_is_the_published_networks(num_classes: int, attention: str, parameters: int, gmacs: float) -> None:
    with torch.device("meta"):
        model = create_model("vit_b16", num_classes, attention=attention).eval()
        x = torch.empty(1, 3, 224, 224)
    with countable(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=0.0005)


def attention_layer(**options: int) -> tuple[RoutedSelfAttention, Tensor]:
    torch.manual_seed(0)
    return RoutedSelfAttention(8, 2, side=4, **options).double(), torch.randn(2, 17, 8, dtype=torch.float64)


@pytest.mark.parametrize("topk", [1, 2, 4])
def test_routed_attention_by_mask_is_the_reference_path(topk: int) -> None:
    layer, x = attention_layer(num_regions=2, topk=topk)
    masked = layer(x)
    with countable():
        torch.testing.assert_close(layer(x), masked, rtol=1e-12, atol=1e-12)


def test_routed_attention_to_all_regions_is_full_attention() -> None:
    layer, x = attention_layer(num_regions=2, topk=4)
    q, k, v = layer.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    full = layer.proj(attention(q, k, v, scale=0.5).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x), full, rtol=1e-12, atol=1e-12)
