"""Single modules against the worked examples of tests/assets/conformance, which the published code computed."""

from contextlib import nullcontext
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders.conformance import (
    ASSETS,
    assert_close,
    assert_summary,
    draws,
    keras_state,
    load,
    model_input,
    nchw,
    nhwc,
    published_model,
)
from torch import Tensor, nn

from fer.models import Resize, create_model
from fer.models.ddamfn import attention_loss
from fer.models.layers.attention import countable
from fer.models.layers.routing import RoutingAttention, route
from fer.models.lhc_net import LHCBlock, LHCNet
from fer.shards.pixels import ModelInput, normalize, resize
from fer.weights.layouts import LAYOUTS
from fer.weights.layouts.lhc import LHC_NET
from fer.weights.tensorflow import read_checkpoint


@pytest.mark.parametrize("num_heads", [1, 2, 3, 4])
def test_attention_loss_is_the_worked_example(num_heads: int) -> None:
    expected = load("train_utils")["ddamfn_attention_loss"]["n_heads"][str(num_heads)]
    heads = [np.random.Generator(np.random.PCG64(i)).random((2, 3, 2, 2)) for i in range(num_heads)]
    maps = torch.from_numpy(np.stack(heads, axis=1))
    official = next(value for key, value in expected.items() if key.startswith("official"))
    paper = next(value for key, value in expected.items() if key.startswith("paper"))
    assert_close(attention_loss(maps, "code"), official, 1e-12, "code")
    assert_close(attention_loss(maps, "paper"), paper or 0.0, 1e-12, "paper")


@pytest.mark.parametrize("fixture", ["lhc_net", "lhc_netc"])
def test_attention_of_every_block_is_the_published_codes(fixture: str) -> None:
    model, document = published_model(fixture, fixture)
    assert isinstance(model, LHCNet)
    entries = {key: value for key, value in document["intermediate_eval"].items() if key.startswith("LHC in")}
    assert len(entries) == 5
    blocks = cast(list[LHCBlock], list(model.lhc))
    inputs: list[Tensor] = []
    for block in blocks:
        block.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    with torch.inference_mode():
        model.eval()(model_input(document))
        for block, x, (where, expected) in zip(blocks, inputs, entries.items(), strict=True):
            steps = block_steps(block, x)
            steps["attention A"] = steps["attention A"].flatten(2).unflatten(2, (block.num_heads, -1)).transpose(1, 2)
            for name in ("scores S", "T", "normalised scores N", "weights W", "attention A"):
                key = next(key for key in expected if key.startswith(name))
                assert_summary(steps[name], expected[key], f"{where}: {key}", relative=1e-5)


def block_steps(block: LHCBlock, x: Tensor) -> dict[str, Tensor]:
    """The published formulas step by step, on our block's layers, and our attention: (B,n,...) each."""
    batch, channels = x.shape[:2]
    heads = block.num_heads
    padding = block.pool // 2
    query = F.avg_pool2d(x, block.pool, 1, padding, count_include_pad=False)
    key = F.max_pool2d(x, block.pool, 1, padding)
    q, k = (
        torch.stack(
            [
                F.linear(band, weight, bias)
                for band, weight, bias in zip(
                    pooled.reshape(batch, channels, heads, -1).unbind(2),
                    block.embed.weight,
                    block.embed.bias,
                    strict=True,
                )
            ],
            dim=1,
        )
        for pooled in (query, key)
    )  # (B,n,C,d)
    scores = q @ k.transpose(2, 3)  # (B,n,C,C)
    T = block.temperature(scores.mean(3)).sigmoid()  # (B,n,C)
    normalized = scores / block.head_dim ** (block.exponent + T.unsqueeze(-1))
    return {
        "query": query,
        "key": key,
        "q": q,
        "scores S": scores,
        "T": T,
        "normalised scores N": normalized,
        "weights W": normalized.softmax(-1),
        "attention A": block.attention(x),
    }


@pytest.mark.parametrize("case", range(4))
def test_the_block_alone_is_the_worked_example(case: int) -> None:
    document = load("lhc_module_tiny")
    expected = document["cases"][case]
    published = {
        f"conv1/LHC_Module/{key}": torch.from_numpy(t) for key, t in keras_state(document, expected["keys"]).items()
    }
    state = {LHC_NET.our_key(key).removeprefix("lhc.0."): t for key, t in LHC_NET.adapt(published).items()}
    block = LHCBlock(
        expected["channels"],
        expected["resolution"],
        expected["heads"],
        expected["head_dim"],
        pool=expected["pool"],
        kernel=expected["kernel"],
        exponent=expected["g"],
    )
    block.load_state_dict(state, strict=True)
    tanh_w = expected["weight_att (= tanh(w), LHC-NetC)"]
    if tanh_w is not None:
        block.w = nn.Parameter(torch.tensor(float(np.arctanh(tanh_w))))
    x = nchw(np.array(expected["input"], np.float32))
    with torch.inference_mode():
        steps = block_steps(block, x)
        for ours, theirs in {
            "q": "q_embedded (B,heads,C,d)",
            "scores S": "scores S (B,heads,C,C)",
            "T": "T (B,heads,C)",
            "weights W": "attention weights (B,heads,C,C)",
        }.items():
            assert_close(steps[ours], expected[theirs], 1e-5 * max(1.0, steps[ours].abs().max().item()), theirs)
        assert_summary(nhwc(steps["query"]), expected["Q_avgpool_same (NHWC)"], "query", relative=1e-5)
        assert_summary(nhwc(steps["key"]), expected["K_maxpool_same (NHWC)"], "key", relative=1e-5)
        assert_close(nhwc(block(x)), expected["output (NHWC)"], 2e-6, "output")
        assert_close(nhwc(block(x.contiguous())), expected["output (NHWC)"], 2e-6, "output, channels first")


def test_a_tensorflow_checkpoint_becomes_the_network_that_tensorflow_ran() -> None:
    """The tiny checkpoint's own network: convolution, BatchNorm, LHC block, mean pooling, classifier."""
    expected = load("tf_ckpt_tiny/expected")
    read = read_checkpoint(ASSETS / "tf_ckpt_tiny")
    plain = {key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE"): torch.from_numpy(array) for key, array in read.items()}
    t = LHC_NET.adapt(plain)
    block = LHCBlock(3, 4, 2, 5)
    prefix = "LHC_Module/"
    state = {LHC_NET.our_key(f"/{key.removeprefix(prefix)}"): x for key, x in t.items() if key.startswith(prefix)}
    block.load_state_dict({key.removeprefix("."): x for key, x in state.items()}, strict=True)
    x = nchw(np.random.Generator(np.random.PCG64(7)).standard_normal((2, 4, 4, 3)).astype(np.float32))
    with torch.inference_mode():
        x = F.conv2d(x, t["conv1/kernel"], padding=1)
        x = F.batch_norm(x, t["bn/moving_mean"], t["bn/moving_variance"], t["bn/gamma"], t["bn/beta"], eps=2e-5)
        probabilities = F.linear(block(x).mean((2, 3)), t["fc3/kernel"], t["fc3/bias"]).softmax(1)
    assert_close(probabilities, expected["output softmax"], 1e-6, "probabilities")


def test_resize_of_fer2013_is_the_published_one() -> None:
    """In floating point to its digits; as the pipeline does it, which keeps uint8, within a rounding."""
    expected = load("fer_resize")
    gray = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (2, 48, 48, 1))
    exact = F.interpolate(nchw(gray.astype(np.float32)), (224, 224), mode="bilinear", align_corners=False)
    assert_summary(nhwc(exact), expected["output_224"], "resized", relative=1e-5)
    assert_close(exact[0, 0, 0, :16], expected["row0 image0 first 16"], 1e-4, "first row")
    assert_close(exact[1, 0, 100, 96:112], expected["row100 image1 cols 96..112"], 1e-4, "row 100")
    # OpenCV weighs in fixed point, so that it may round to the farther gray level. The published training data are
    # rounded down, and then stored as JPEG; the published validation and test data stay in floating point.
    target = ModelInput(224, Resize(antialias=False))
    ours = np.stack([resize(image, target) for image in gray[..., 0].astype(np.uint8)])
    assert_close(ours, exact[:, 0], 0.8, "uint8")
    assert_close(ours.mean(), exact.mean(), 0.15, "mean of uint8")


@pytest.mark.parametrize("name", ["resnet34v2", "lhc_net", "lhc_netc"])
def test_input_is_pixels_as_the_published_code_resizes_them(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert (model.input_size, model.mean, model.resize) == (224, (0.0, 0.0, 0.0), Resize(antialias=False))
    white = normalize(torch.full((1, 1, 1, 3), 255, dtype=torch.uint8), model.mean, model.std)
    assert_close(white, 255.0, 1e-4, "a white pixel")


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
        values = draws(key, shape) * (2 / np.sqrt(fan_in) if formula.startswith("weight2") else 0.1)
        ours = LAYOUTS["dynamic_vit_tiny"].our_key(f"stages.0.0.attn.{key}").removeprefix("stages.0.0.attention.")
        state[ours] = torch.from_numpy(values)
    module.load_state_dict(state, strict=True)
    shape = (1, *expected["map"], dim)
    x = torch.from_numpy(np.random.Generator(np.random.PCG64(0)).standard_normal(shape))
    with torch.no_grad():
        chosen = route(module.qkv(x)[..., : 2 * dim], side, topk)
        with countable() if reference else nullcontext():
            out = module(x)
    assert chosen.tolist() == expected["region top-k indices (B, n_win^2, topk), sorted by affinity"]
    assert_close(out, expected["output (NHWC)"], 1e-12, "output")
