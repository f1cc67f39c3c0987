"""Parity of ResNet34v2, LHC-Net and LHC-NetC with the published code under TensorFlow, by stored numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer.models import FerModel, Resize, create_model
from fer.models.inference import for_inference
from fer.models.lhc_net import LHCBlock, LHCNet
from fer.models.resnet34v2 import ResNet34V2
from fer.shards.pixels import ModelInput, normalise, resize
from fer.weights import convert
from fer.weights.layouts.lhc import LHC_NET
from fer.weights.tensorflow import read_checkpoint

from .conformance import ASSETS, assert_close, load
from .keras_conformance import keras_model, keras_state, nchw, nhwc, pixels

FIXTURES = ["resnet34v2", "lhc_net", "lhc_netc"]


@pytest.fixture(scope="module", params=FIXTURES)
def published(request: pytest.FixtureRequest) -> tuple[ResNet34V2, dict[str, Any]]:
    """Our model with the fixture's weights, in evaluation mode; not to be changed. And the fixture."""
    model, document, _ = keras_model(request.param, request.param)
    return cast(ResNet34V2, model.eval()), document


def assert_summary(x: Tensor, expected: dict[str, Any], what: str) -> None:
    """A map (B,C,H,W) or another tensor against the fixture's summary of it in Keras' order."""
    x = nhwc(x)
    assert list(x.shape) == expected["shape"], what
    # Relative to the largest value: a sum of terms of this size was rounded on either side.
    tolerance = 1e-5 * max(1.0, abs(expected["min"]), abs(expected["max"]))
    assert_close(x.flatten()[:8], expected["first8"], tolerance, what)
    assert_close(x.flatten()[-4:], expected["last4"], tolerance, what)
    for figure, value in {"mean": x.double().mean(), "std": x.double().std(unbiased=False)}.items():
        assert_close(value, expected[figure], tolerance, f"{figure} of {what}")
    assert_close(x.min(), expected["min"], tolerance, f"least of {what}")
    assert_close(x.max(), expected["max"], tolerance, f"largest of {what}")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_eval_output_is_the_published_codes(
    published: tuple[FerModel, dict[str, Any]], memory_format: torch.memory_format
) -> None:
    model, document = published
    with torch.inference_mode():
        logits = model(pixels(document["input"]).contiguous(memory_format=memory_format))
    assert_close(logits, document["eval_logits"], document["suggested_tolerance_abs"], "logits")
    assert_close(logits.softmax(1), document["eval_probs"], 1e-5, "probabilities")


def test_folded_for_inference_the_output_is_the_published_codes(published: tuple[FerModel, dict[str, Any]]) -> None:
    model, document = published
    folded = for_inference(model)
    batch_norms = sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert batch_norms == 1 + 16 + 1  # of the pixels, the first of every unit, and the last
    with torch.inference_mode():
        logits = folded(pixels(document["input"]))
    assert_close(logits, document["eval_logits"], document["suggested_tolerance_abs"], "logits")


@pytest.mark.parametrize("published", ["lhc_net", "lhc_netc"], indirect=True)
def test_eval_output_in_float64_agrees_beyond_float32(published: tuple[FerModel, dict[str, Any]]) -> None:
    model, document = published
    expected = next(value for key, value in document.items() if key.startswith("eval_logits_float64"))
    model.double()
    try:
        with torch.inference_mode():
            logits = model(pixels(document["input"]).double())
    finally:
        model.float()
    assert_close(logits, expected, 1e-12, "logits")


@contextmanager
def outputs(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """What the modules return within the block, by the given names."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: seen.__setitem__(name, output))
        for name, module in modules.items()
    ]
    yield seen
    for handle in handles:
        handle.remove()


def test_every_stage_is_the_published_codes(published: tuple[ResNet34V2, dict[str, Any]]) -> None:
    model, document = published
    expected = document["intermediate_eval"]
    modules: dict[str, nn.Module] = {"bn+relu": model.head.bn, "fc1": model.head.fc1, "fc2": model.head.fc2}
    if isinstance(model, LHCNet):
        modules |= {f"conv{stage}_{unit}": m for stage, s in enumerate(model.stages, 2) for unit, m in enumerate(s, 1)}
        last = ["conv1", *(f"conv{stage}_{len(s)}" for stage, s in enumerate(model.stages, 2))]
        modules |= dict(zip(last, model.lhc, strict=True))  # a block's output is the published unit's
    else:
        stages = cast(Any, model.stages)
        modules |= {"bn_data": model.stem.norm, "pooling0": model.stem, "relu1": model.head.bn}
        modules |= {
            "stage2_unit1_relu1": stages[1][0].bn1,
            "stage3_unit1_relu1": stages[2][0].bn1,
            "stage4_unit1_relu1": stages[3][0].bn1,
        }
    with torch.inference_mode(), outputs(modules) as seen:
        model(pixels(document["input"]))
    compared = 0
    for name, x in seen.items():
        where = next((key for key in expected if key == name or key.startswith((f"{name} (", f"{name}+"))), None)
        if where is not None:
            x = x.relu() if "relu" in where else x
            assert_summary(x, expected[where], where)
            compared += 1
    assert compared == (20 if isinstance(model, LHCNet) else 6)


@pytest.mark.parametrize("fixture", ["lhc_net", "lhc_netc"])
def test_attention_of_every_block_is_the_published_codes(fixture: str) -> None:
    model, document, _ = keras_model(fixture, fixture)
    assert isinstance(model, LHCNet)
    entries = {key: value for key, value in document["intermediate_eval"].items() if key.startswith("LHC in")}
    assert len(entries) == 5
    blocks = cast(list[LHCBlock], list(model.lhc))
    inputs: list[Tensor] = []
    for block in blocks:
        block.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    with torch.inference_mode():
        model.eval()(pixels(document["input"]))
        for block, x, (where, expected) in zip(blocks, inputs, entries.items(), strict=True):
            steps = block_steps(block, x)
            bands = steps["attention A"].flatten(2).unflatten(2, (block.num_heads, -1)).transpose(1, 2)  # (B,n,C,P)
            assert_summary_of_steps(steps, expected, where)
            key = next(key for key in expected if key.startswith("attention A"))
            assert_tensor_summary(bands, expected[key], f"{where}: {key}")


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
    normalised = scores / block.head_dim ** (block.exponent + T.unsqueeze(-1))
    return {
        "query": query,
        "key": key,
        "q": q,
        "scores S": scores,
        "T": T,
        "normalised scores N": normalised,
        "weights W": normalised.softmax(-1),
        "attention A": block.attention(x),
    }


def assert_summary_of_steps(steps: dict[str, Tensor], expected: dict[str, Any], where: str) -> None:
    for name in ("scores S", "T", "normalised scores N", "weights W"):
        assert_tensor_summary(steps[name], expected[name], f"{where}: {name}")


def assert_tensor_summary(x: Tensor, expected: dict[str, Any], what: str) -> None:
    """As `assert_summary`, of a tensor whose axes are the published ones already."""
    assert list(x.shape) == expected["shape"], what
    assert_summary(x.flatten(), {**expected, "shape": [x.numel()]}, what)


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
        assert_summary(steps["query"], expected["Q_avgpool_same (NHWC)"], "query")
        assert_summary(steps["key"], expected["K_maxpool_same (NHWC)"], "key")
        assert_close(nhwc(block(x)), expected["output (NHWC)"], 2e-6, "output")
        assert_close(nhwc(block(x.contiguous())), expected["output (NHWC)"], 2e-6, "output, channels first")


def test_without_values_lhc_net_is_its_host() -> None:
    """The published proof of the weights' import: blocks whose value convolution is zero add nothing."""
    host, document, _ = keras_model("resnet34v2", "resnet34v2")
    model = create_model("lhc_net")
    assert isinstance(model, LHCNet)
    model.load_host(host.state_dict())
    x = pixels(document["input"])
    with torch.inference_mode():
        for block in model.lhc:
            assert isinstance(block, LHCBlock)
            block.value.weight.zero_()
        logits, expected = model.eval()(x), host.eval()(x)
    assert torch.equal(logits, expected)
    assert_close(logits, document["eval_logits"], document["suggested_tolerance_abs"], "logits")


def test_tensorflow_names_make_no_difference(published: tuple[FerModel, dict[str, Any]]) -> None:
    model, document = published
    state = keras_state(document, document["keys"])
    named = {f"{key}/.ATTRIBUTES/VARIABLE_VALUE": value for key, value in state.items()}
    converted = convert(document["model"], named)
    ours = model.state_dict()
    assert set(converted) == set(ours)
    assert all(torch.equal(converted[key], ours[key]) for key in ours)


def test_published_number_of_weights_is_ours_with_the_statistics(published: tuple[FerModel, dict[str, Any]]) -> None:
    model, document = published
    weights = sum(t.numel() for key, t in model.state_dict().items() if not key.endswith("num_batches_tracked"))
    assert weights == document["n_weights_total"]


@pytest.mark.parametrize(
    ("name", "trainable", "with_statistics"),
    [
        ("resnet34v2", 27_590_858, 27_606_224),
        ("lhc_net", 32_396_302, 32_411_668),
        ("lhc_netc", 32_396_307, 32_411_673),
    ],
)
def test_parameters_are_the_published(name: str, trainable: int, with_statistics: int) -> None:
    with torch.device("meta"):
        model = create_model(name)
    statistics = sum(b.numel() for key, b in model.named_buffers() if not key.endswith("num_batches_tracked"))
    parameters = sum(p.numel() for p in model.parameters())
    assert (parameters, parameters + statistics) == (trainable, with_statistics)
    if isinstance(model, LHCNet):
        attention = sum(p.numel() for key, p in model.lhc.named_parameters() if not key.endswith(".w"))
        assert attention == 4_805_444


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
    grey = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (2, 48, 48, 1))
    exact = F.interpolate(nchw(grey.astype(np.float32)), (224, 224), mode="bilinear", align_corners=False)
    assert_summary(exact, expected["output_224"], "resized")
    assert_close(exact[0, 0, 0, :16], expected["row0 image0 first 16"], 1e-4, "first row")
    assert_close(exact[1, 0, 100, 96:112], expected["row100 image1 cols 96..112"], 1e-4, "row 100")
    # OpenCV weighs in fixed point, so that it may round to the farther grey level. The published training data are
    # rounded down, and then stored as JPEG; the published validation and test data stay in floating point.
    target = ModelInput(224, Resize(antialias=False))
    ours = np.stack([resize(image, target) for image in grey[..., 0].astype(np.uint8)])
    assert_close(ours, exact[:, 0], 0.8, "uint8")
    assert_close(ours.mean(), exact.mean(), 0.15, "mean of uint8")


@pytest.mark.parametrize("name", FIXTURES)
def test_input_is_pixels_as_the_published_code_resizes_them(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert (model.input_size, model.mean, model.resize) == (224, (0.0, 0.0, 0.0), Resize(antialias=False))
    white = normalise(torch.full((1, 1, 1, 3), 255, dtype=torch.uint8), model.mean, model.std)
    assert_close(white, 255.0, 1e-4, "a white pixel")
