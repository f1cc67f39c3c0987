"""What ResNet34v2, LHC-Net and LHC-NetC promise beyond parity."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer.labels import SPACES
from fer.models import FerModel, create_model
from fer.models.lhc_net import NANO, LHCBlock, LHCNet, LHCNetC
from fer.models.resnet34v2 import ResNet34V2
from fer.shards.pixels import ModelInput
from fer.weights.store import load_model, save_model


def pixels(model: FerModel, size: int = 4, seed: int = 0) -> Tensor:
    """Smooth random images, pixels 0..255."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.rand(size, 3, 6, 6, generator=generator)
    return 255 * F.interpolate(cells, (model.input_size,) * 2, mode="bilinear").clamp(0, 1)


def nano(seed: int = 0, **options: Any) -> LHCNet:
    torch.manual_seed(seed)
    model = create_model("lhc_net_nano", **options)
    assert isinstance(model, LHCNet)
    return model


PLAIN = replace(NANO, residual_weights=None)
"""The nano network as LHC-Net is published, with blocks of full weight."""


def nano_c(**options: Any) -> LHCNetC:
    torch.manual_seed(0)
    return LHCNetC(config=NANO, **options)


# ------------------------------------------------------------------------------------------------ the ablations


def test_without_blocks_lhc_net_is_its_host() -> None:
    torch.manual_seed(0)
    host = ResNet34V2(config=NANO.host)
    model = nano(seed=0, blocks=(False,) * 5)
    assert list(model.state_dict()) == list(host.state_dict())
    x = pixels(host)
    with torch.inference_mode():
        assert torch.equal(model.eval()(x), host.eval()(x))
    with torch.device("meta"):
        published, without = create_model("resnet34v2"), create_model("lhc_net", blocks=(False,) * 5)
    shapes = {key: tensor.shape for key, tensor in published.state_dict().items()}
    assert {key: tensor.shape for key, tensor in without.state_dict().items()} == shapes


@pytest.mark.parametrize("on", range(5))
def test_each_block_is_switched_alone(on: int) -> None:
    model = nano(blocks=[number == on for number in range(5)])
    kept = {key.split(".")[1] for key in model.state_dict() if key.startswith("lhc.")}
    assert kept == {str(on)}
    whole = nano()
    whole.load_host({key: t for key, t in model.state_dict().items() if not key.startswith("lhc.")})
    x = pixels(model)
    with torch.inference_mode():
        assert not torch.allclose(model.eval()(x), whole.eval()(x))


def test_heads_and_dims_are_options() -> None:
    heads, dims = (4, 2, 7, 1, 7), (10, 20, 30, 14, 2)
    with torch.device("meta"):
        model = create_model("lhc_net", 8, num_heads=heads, head_dims=dims)
    block = model.get_submodule("lhc.2")
    assert isinstance(block, LHCBlock)
    assert block.embed.weight.shape == (7, 30, 28 * 28 // 7)
    other = nano(num_heads=[1, 2, 4, 16, 4])
    assert other(pixels(other)).logits.shape == (4, 7)


def test_the_published_settings_are_those_of_the_table_setup_and_reach_the_blocks() -> None:
    with torch.device("meta"):
        blocks = list(create_model("lhc_net").get_submodule("lhc").children())
    found = [(b.num_heads, b.head_dim, b.pool, b.exponent, b.value.kernel_size[0]) for b in blocks]
    assert found == [(8, 196, 3, 1, 3), (8, 196, 3, 1, 3), (7, 56, 3, 1, 3), (7, 14, 3, 1, 3), (1, 25, 3, 1, 3)]
    other = nano(pools=[1, 3, 5, 3, 3], scales=[0, 0.5, 1, 1, 1], kernels=[1, 3, 3, 3, 5])
    found = [(b.pool, b.exponent, b.value.kernel_size[0]) for b in other.lhc]
    assert found == [(1, 0, 1), (3, 0.5, 3), (5, 1, 3), (3, 1, 3), (3, 1, 5)]
    assert other(pixels(other)).logits.shape == (4, 7)


# ------------------------------------------------------------------------------------------------ LHC-NetC


def test_residual_weights_start_as_published() -> None:
    model = nano_c()
    factors = [1 + block.w.tanh().item() for block in model.lhc]  # type: ignore[operator,union-attr]
    assert factors == pytest.approx([1, 1, 1, 0.2384, 0.5379], abs=1e-4)
    plain = LHCNet(config=PLAIN)
    equal = nano_c(residual_weights=(0,) * 5)
    equal.load_host(plain.state_dict())
    x = pixels(plain)
    with torch.inference_mode():
        torch.testing.assert_close(equal.eval()(x), plain.eval()(x))
    with pytest.raises(ValueError, match=r"residual_weights = .*one value for each of the 5"):
        nano_c(residual_weights=(0, 1))


def test_training_only_the_controller_moves_five_scalars_and_no_statistics() -> None:
    model = nano_c(train_only_controller=True)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert list(trainable) == [f"lhc.{block}.w" for block in range(5)]
    assert all(p.ndim == 0 for p in trainable.values())
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(trainable.values(), lr=0.1)
    model.train()
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert model.head.drop.training  # Keras freezes BatchNorm, not dropout
    model.loss(model(pixels(model)), torch.tensor([0, 1, 2, 3])).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    after = model.state_dict()
    assert {key for key in before if not torch.equal(before[key], after[key])} == set(trainable)
    assert any(m.training for m in nano_c().modules() if isinstance(m, nn.BatchNorm2d))


def test_a_controller_of_a_missing_block_is_missing_too() -> None:
    model = nano_c(blocks=(True, True, False, False, False), train_only_controller=True)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["lhc.0.w", "lhc.1.w"]


# ------------------------------------------------------------------------------------------------ weights


def test_the_published_protocol_passes_weights_on() -> None:
    torch.manual_seed(1)
    host = ResNet34V2(config=NANO.host)
    network, controlled = LHCNet(config=PLAIN), nano_c()
    network.load_host(host.state_dict())
    controlled.load_host(network.state_dict())
    for key, tensor in host.state_dict().items():
        assert torch.equal(tensor, controlled.state_dict()[key])
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, controlled.state_dict()[key])
    broken = dict(network.state_dict())
    del broken["lhc.2.value.bias"]
    broken["head.fc3.weight"] = torch.zeros(8, 64)
    broken["extra"] = torch.zeros(1)
    with pytest.raises(ValueError, match="not the weights of this network's host") as error:
        controlled.load_host(broken)
    for fault in ("missing: lhc.2.value.bias", "another shape: head.fc3.weight", "unexpected: extra"):
        assert fault in str(error.value)


def test_the_preparation_of_images_is_kept_with_the_weights(tmp_path: Path) -> None:
    for truncate in (False, True):
        model = nano(truncate=truncate)
        save_model(
            model, tmp_path / "m.safetensors", SPACES["basic7"].labels, "basic7", name="lhc_net_nano",
            options={"truncate": truncate},
        )  # fmt: skip
        assert ModelInput.of(load_model(tmp_path / "m.safetensors")[0]) == ModelInput(64, model.resize, truncate)


# ------------------------------------------------------------------------------------------------ numbers


def plain_attention(block: LHCBlock, x: Tensor) -> Tensor:
    """The published order of operations, a head at a time, without the trick of scaling the queries."""
    batch, channels, height, width = x.shape
    query = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False).reshape(batch, channels, block.num_heads, -1)
    key = F.max_pool2d(x, 3, 1, 1).reshape(batch, channels, block.num_heads, -1)
    value = F.avg_pool2d(block.value(x), 3, 1, 1, count_include_pad=False).reshape(query.shape)
    out = []
    for head, (weight, bias) in enumerate(zip(block.embed.weight, block.embed.bias, strict=True)):
        q, k = F.linear(query[:, :, head], weight, bias), F.linear(key[:, :, head], weight, bias)
        scores = q @ k.transpose(1, 2)
        T = block.temperature(scores.mean(2)).sigmoid().unsqueeze(2)
        out.append((scores / block.head_dim ** (block.exponent + T)).softmax(2) @ value[:, :, head])
    return torch.stack(out, 2).reshape(batch, channels, height, width)


def test_attention_and_its_gradients_are_those_of_a_loop_over_heads() -> None:
    torch.manual_seed(0)
    block = LHCBlock(6, 6, 3, 5).double()
    nn.init.normal_(block.embed.bias)
    x = torch.randn(2, 6, 6, 6, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, 6, 6, 6, dtype=torch.float64)
    results = []
    for attention in (block.attention(x), plain_attention(block, x)):
        gradients = torch.autograd.grad((attention * direction).sum(), [x, *block.parameters()])
        results.append((attention, *gradients))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_half_precision_follows_maps_of_any_scale() -> None:
    """The scores grow with the square of the map; bfloat16 keeps the network finite and close to float32."""
    torch.manual_seed(0)
    model = LHCNet(config=PLAIN).eval()
    for scale in (1, 30):
        x = scale * torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0)).relu()
        block = model.lhc[0]
        with torch.inference_mode():
            exact = block(x)
            with torch.autocast("cpu", torch.bfloat16):
                autocast = block(x)
            half = copy.deepcopy(block).bfloat16()(x.bfloat16())
        for low in (autocast, half):
            assert torch.isfinite(low).all()
            assert (low - exact).abs().mean() < 0.02 * exact.abs().mean()


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_nano_learns_from_scratch(precision: str) -> None:
    """Two classes of images that differ by the place of a bright square, a handful of steps."""
    model = nano(num_classes=2, drop_rate=0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(30):
        targets = torch.randint(2, (16,), generator=generator)
        x = 40 * torch.rand(16, 3, 64, 64, generator=generator) + 60
        for image, target in zip(x, targets, strict=True):
            image[:, 16:28, 10 + 28 * target : 26 + 28 * target] += 80
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            output = model(x)
        loss = model.loss(output, targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.2


def test_frozen_normalization_of_pixels_has_no_scale() -> None:
    """As published: BatchNorm of the pixels with a shift alone."""
    model = nano()
    assert [name for name, _ in model.stem.norm.named_parameters()] == ["bias"]
    assert model.stem.norm.eps == model.head.bn.eps == 2e-5
    assert create_model("resnet34v2").get_submodule("head.bn").momentum == 0.01
