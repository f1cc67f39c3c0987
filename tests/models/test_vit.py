"""What ViT-B/16 promises, with full and with dynamic attention."""

import pytest
import torch
from torch import Tensor

from fer.models.layers.attention import attention, countable
from fer.models.vit import RoutedSelfAttention


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
