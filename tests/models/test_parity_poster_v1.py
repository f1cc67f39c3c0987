"""Parity of POSTER V1 with the published implementation, by the numbers of tests/assets/conformance.

The fixture is V1-S; V1-T and V1 differ from it in depth alone. One state dict serves both published models: that of
AffectNet lacks the token mixing.
"""

import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer.models import FerModel, TrainOutput, create_model
from fer.models.inference import for_inference
from fer.models.layers.linear import DropPath
from fer.weights import convert, dead_keys, published_options
from fer.weights.layouts.poster import POSTER_V1

from .conformance import assert_close, fixture_input, load, published_state

NAME = "poster_v1_small"
DOCUMENT = load("poster_v1_small_7cls")
MIXING = re.compile(r"pyramid_fuse\.blocks\.\d+\.block_[lms]\.conv\.(weight|bias)")


@pytest.fixture(scope="module")
def published() -> dict[str, np.ndarray]:
    return published_state(DOCUMENT)


def build(published: dict[str, np.ndarray], **options: Any) -> FerModel:
    model = create_model(NAME, **published_options(NAME, published), **options)
    model.load_state_dict(convert(NAME, published), strict=True)
    return model


@pytest.fixture(scope="module")
def model(published: dict[str, np.ndarray]) -> FerModel:
    return build(published).eval()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_eval_output_is_the_published_codes(model: FerModel, memory_format: torch.memory_format) -> None:
    model.to(memory_format=memory_format)  # type: ignore[call-overload]
    with torch.inference_mode():
        logits = model(fixture_input(DOCUMENT["input"]).to(memory_format=memory_format))
    assert_close(logits, DOCUMENT["eval_logits"], DOCUMENT["suggested_tolerance_abs"], "logits")


def test_folded_for_inference_the_output_is_still_the_published_codes(model: FerModel) -> None:
    with torch.inference_mode():
        logits = for_inference(model)(fixture_input(DOCUMENT["input"]))
    assert_close(logits, DOCUMENT["eval_logits"], DOCUMENT["suggested_tolerance_abs"], "logits")


def test_eval_output_in_float64_agrees_beyond_float32(published: dict[str, np.ndarray]) -> None:
    with torch.inference_mode():
        logits = build(published).double().eval()(fixture_input(DOCUMENT["input"]).double())
    assert_close(logits, DOCUMENT["eval_logits_float64"], 1e-11, "logits")


def test_eval_output_without_token_mixing_is_that_of_the_published_model_for_affectnet(
    published: dict[str, np.ndarray],
) -> None:
    document = DOCUMENT["affectnet"]
    without = {key: tensor for key, tensor in published.items() if not MIXING.fullmatch(key)}
    model = build(without).eval()
    with torch.inference_mode():
        logits = model(fixture_input(DOCUMENT["input"]))
    assert_close(logits, document["eval_logits"], document["suggested_tolerance_abs"], "logits")
    dead = [key for key in document if key.startswith("params_without_grad")]
    ours = sum(p.numel() for p in model.parameters())
    landmark_head = [key for key in dead_keys(NAME, without) if key.startswith("face_landback")]
    unused = sum(without[key].size for key in [*document[dead[0]], *landmark_head] if is_parameter(key))
    assert ours + unused == document["n_params"]


def test_every_stage_is_the_published_codes(model: FerModel) -> None:
    seen: dict[str, Tensor] = {}
    published_places = {
        "landmarks.out": "face_landback.conv_features (B,512,7,7)",
        "image.stage3": "ir_back.body (B,256,14,14)",
        "image_proj": "ir_layer (B,49,512)",
        "narrow.0": "pyramid_fuse.downsample_m (B,100,256)",
        "narrow.1": "pyramid_fuse.downsample_s (B,100,128)",
        "gate": "se_block (B,512)",
    }

    def look(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if name.startswith("blocks."):
                for level, width, out in zip("lms", (512, 256, 128), output, strict=True):
                    seen[f"pyramid_fuse.{name} level {level} (B,100,{width})"] = out
            else:
                seen[published_places[name]] = output

        return hook

    names = [*published_places, *(f"blocks.{block}" for block in range(6))]
    handles = [model.get_submodule(name).register_forward_hook(look(name)) for name in names]
    with torch.inference_mode():
        model(fixture_input(DOCUMENT["input"]))
    for handle in handles:
        handle.remove()
    compared = seen.keys() & DOCUMENT["intermediate_eval"].keys()
    assert len(compared) == len(DOCUMENT["intermediate_eval"]) - 1  # the last LayerNorm: ours normalises one token only
    for where in compared:
        actual, expected = seen[where], DOCUMENT["intermediate_eval"][where]
        tolerance = 1e-4 * max(1.0, expected["std"])
        assert list(actual.shape) == expected["shape"], where
        flat = actual.flatten()
        assert_close(flat[:8], expected["first8"], tolerance, where)
        assert_close(flat[-4:], expected["last4"], tolerance, where)
        assert_close(flat.double().std(unbiased=False), expected["std"], tolerance, where)


@pytest.mark.parametrize(
    ("landmark_bn", "figures"),
    [
        ("frozen", "train_mode with face_landback.eval()"),
        pytest.param("drift", "train_mode official", marks=pytest.mark.slow),
    ],
)
def test_training_pass_is_the_published_codes(published: dict[str, np.ndarray], landmark_bn: str, figures: str) -> None:
    train = DOCUMENT["train"]
    expected = next(value for key, value in train.items() if key.startswith(figures))
    model = build(published, landmark_bn=landmark_bn).double().train()
    for module in model.modules():
        if isinstance(module, DropPath):
            module.eval()
    targets = torch.tensor(train["targets"])
    output = model(fixture_input(train["input"]).double())
    assert isinstance(output, TrainOutput)
    loss = model.loss(output, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    assert_close(output.logits.detach(), expected["logits"], 1e-10, "logits")
    assert_close(F.cross_entropy(output.logits, targets).item(), expected["ce"], 1e-10, "cross-entropy")
    assert_close(loss.item(), expected["loss = 2*lsce + ce"], 1e-10, "loss")
    gradients = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    total = expected["grad_l2_total"]
    assert_close(np.linalg.norm(list(gradients.values())), total, 1e-9 * total, "gradient")
    for theirs, norm in expected["grad_l2"].items():
        assert_close(gradients[POSTER_V1.our_key(theirs)], norm, 1e-8 * norm, f"gradient of {theirs}")
    for ours, theirs in (("landmarks.stem.bn", "face_landback.conv1.bn"), ("image.stem.bn", "ir_back.input_layer.1")):
        mean = model.get_submodule(ours).running_mean
        assert isinstance(mean, Tensor)
        assert_close(mean[:4], expected[f"{theirs}.running_mean after, first4"], 1e-10, f"statistics of {ours}")


def test_published_parameters_are_ours_and_the_dead(model: FerModel) -> None:
    keys = {key: shape for key, shape, *_ in DOCUMENT["keys"]}
    dead = {key: int(np.prod(keys[key])) for key in dead_keys(NAME, keys) if is_parameter(key)}
    assert sum(p.numel() for p in model.parameters()) + sum(dead.values()) == DOCUMENT["n_params"]
    without_gradient = DOCUMENT["train"]["params_without_grad (the frozen landmark network aside)"]
    assert {key for key in dead if not key.startswith("face_landback")} == set(without_gradient)


def test_a_file_of_another_depth_is_refused_by_the_names_of_its_tensors(published: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"unexpected: pyramid_fuse\.blocks\.4\.block_l\.norm1\.weight"):
        convert("poster_v1_tiny", published)
    with pytest.raises(ValueError, match=r"missing: the tensor for blocks\.6\.levels\.0\.image\.norm1\.weight"):
        convert("poster_v1_large", published)


def is_parameter(key: str) -> bool:
    return key.split(".")[-1] in ("weight", "bias", "cls_token")
