"""The recorded attention is what the layers computed: put back into them, it gives their outputs."""

import pytest
import torch

from fer.explain.attention import attention_maps
from fer.models import FerModel, create_model
from fer.models.layers.attention import CrossAttention
from fer.models.layers.routing import RoutingAttention


def made(name: str, **options: object) -> tuple[FerModel, torch.Tensor]:
    torch.manual_seed(0)
    model = create_model(name, **options).eval()
    return model, torch.randn(2, 3, model.input_size, model.input_size)


@pytest.mark.parametrize(
    ("name", "options"),
    [("poster_v2_nano", {}), ("poster_v2_nano", {"window_size": 3}), ("poster_v1_nano", {}), ("btn_nano", {})],
)
@torch.no_grad()
def test_cross_attention_gives_the_output_of_its_layer(name: str, options: dict[str, object]) -> None:
    model, images = made(name, **options)
    kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for key, module in model.named_modules():
        if isinstance(module, CrossAttention):
            module.register_forward_hook(lambda _, inputs, output, key=key: kept.update({key: (inputs[1], output)}))
    recorded = {key: one for key, one in attention_maps(model, images).items() if one.kind == "cross"}
    assert set(recorded) == set(kept)
    for key, (context, output) in kept.items():
        layer, weights = model.get_submodule(key), recorded[key].weights
        assert isinstance(layer, CrossAttention)
        values = layer.key_value(context).chunk(2, -1)[1].unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)
        again = layer.proj((weights @ values).transpose(1, 2).flatten(2))
        assert torch.allclose(again, output, atol=1e-5), key


@torch.no_grad()
def test_the_maps_of_poster_v2_are_the_mean_over_the_landmark_queries_of_every_level() -> None:
    model, images = made("poster_v2_nano")
    maps = [one.map for one in attention_maps(model, images).values()]
    assert [None if one is None else tuple(one.shape) for one in maps] == [(2, 1, 12, 12), (2, 2, 6, 6), (2, 4, 3, 3)]
    for one in maps:
        assert one is not None
        assert torch.allclose(one.sum((2, 3)), torch.ones(one.shape[:2]), atol=1e-5)


@torch.no_grad()
def test_windows_are_joined_where_they_were_cut() -> None:
    model, images = made("poster_v2_nano", window_size=3)
    recorded = attention_maps(model, images)["fusions.0.attention"]
    assert recorded.weights.shape == (2 * 16, 1, 9, 9)
    assert recorded.map is not None
    first, last = recorded.weights[0].mean(1)[0].view(3, 3), recorded.weights[15].mean(1)[0].view(3, 3)
    assert torch.equal(recorded.map[0, 0, :3, :3], first)
    assert torch.equal(recorded.map[0, 0, 9:, 9:], last)


@torch.no_grad()
def test_only_landmark_tokens_of_poster_v1_are_places() -> None:
    model, images = made("poster_v1_nano")
    recorded = attention_maps(model, images)
    assert {key: one.map is None for key, one in recorded.items()} == {key: ".image." in key for key in recorded}


@torch.no_grad()
def test_btn_shows_its_training_branch_too() -> None:
    model, images = made("btn_nano")
    recorded = attention_maps(model, images)
    shapes = {key: tuple(one.map.shape) for key, one in recorded.items() if one.map is not None}
    assert shapes["branch.mla.attentions.0"] == (2, 2, 6, 6)
    assert shapes["branch.class_maps"] == (2, 7, 3, 3)
    assert set(attention_maps(*made("btn_nano", use_bt=False, use_mla=False))) == {
        f"poster.fusions.{level}.attention" for level in range(3)
    }


@torch.no_grad()
def test_ddamfn_shows_a_map_of_each_head_of_rank_one() -> None:
    model, images = made("ddamfn_nano")
    recorded = attention_maps(model, images)
    assert list(recorded) == ["heads.0", "heads.1"]
    for one in recorded.values():
        assert one.kind == "direction"
        assert torch.linalg.matrix_rank(one.weights[0, 0], rtol=1e-4) == 1, "a row's weight times a column's"


@pytest.mark.parametrize("name", ["dynamic_vit_nano"])
@torch.no_grad()
def test_routing_counts_how_many_regions_keep_each(name: str) -> None:
    model, images = made(name)
    recorded = attention_maps(model, images)
    layers = {key: module for key, module in model.named_modules() if isinstance(module, RoutingAttention)}
    assert set(recorded) == set(layers)
    for key, layer in layers.items():
        one = recorded[key]
        assert one.weights.shape == (2, layer.num_regions**2, layer.topk)
        assert one.map is not None
        region = torch.tensor([0, layer.num_regions - 1])
        kept = (one.weights == region[1]).any(2).float().mean(1)
        assert torch.allclose(one.map[:, 0, 0, region[1]], kept)


@torch.no_grad()
def test_channel_attention_sums_to_one() -> None:
    model, images = made("lhc_net_nano")
    recorded = attention_maps(model, images)
    assert next(tuple(one.weights.shape) for one in recorded.values()) == (2, 8, 16, 16)
    for one in recorded.values():
        assert one.kind == "channel"
        assert torch.allclose(one.weights.sum(-1), torch.ones(one.weights.shape[:-1]), atol=1e-5)


def test_nothing_is_left_on_the_model() -> None:
    model, images = made("btn_nano")
    attention_maps(model, images)
    assert not [module for module in model.modules() if module._forward_hooks]


def test_a_model_without_attention_has_none() -> None:
    assert attention_maps(*made("mfn_nano")) == {}
