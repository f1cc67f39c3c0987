"""Parity of IR-50 and MobileFaceNet with the published implementations, and the layouts of all backbones.

Each fixture fills a state dict of the published layout by a rule, takes it through `fer.weights.convert`, and compares
what the model then computes. So one test holds the architecture and the importer at once.
"""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fer.models import FerModel, create_model
from fer.models.inference import for_inference
from fer.models.ir import IR50_THREE_STAGES, IRFeatures
from fer.models.mobilefacenet import PUBLISHED, LandmarkBackbone
from fer.weights import convert, published_options
from fer.weights.parts import branch_state

from .conformance import assert_close, fixture_input, load, published_model, published_state

FIXTURES = {"ir50": "ir50", "mobilefacenet": "mobilefacenet_landmarks"}

STAGES = {
    "ir50": ["features.stem", "features.stage1", "features.stage2", "features.stage3"],
    "mobilefacenet": ["features.stem", "features.stage1", "features.stage2", "features.out"],
}
"""Our modules for the entries of the fixtures' `intermediate_eval`, in order."""

OUTPUT_LAYER_PARAMETERS = 2 * 512 + 25_088 * 512 + 512 + 2 * 512
"""Of the head that three-stage IR-50 holds and never calls."""


def outputs(fixture: str, model: nn.Module, x: Tensor) -> Tensor:
    """What the fixture calls its logits."""
    with torch.inference_mode():
        if fixture == "ir50":
            maps: Tensor = model.get_submodule("features")(x)[-1]
            return maps.mean((2, 3))[:, :8]
        landmarks: Tensor = model(x)
        return landmarks.flatten(1)


def load_published(fixture: str) -> tuple[FerModel, dict[str, Any]]:
    model, document = published_model(fixture, FIXTURES[fixture])
    return model.eval(), document


@pytest.mark.parametrize("fixture", FIXTURES)
@pytest.mark.parametrize("path", ["nchw", "nhwc", "folded"])
def test_eval_output_is_the_published_codes(fixture: str, path: str) -> None:
    model, document = load_published(fixture)
    x = fixture_input(document["input"])
    if path == "nhwc":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.to(memory_format=torch.channels_last)
    elif path == "folded":
        model = for_inference(model)
    assert_close(
        outputs(fixture, model, x), document["eval_logits"], document["suggested_tolerance_abs"], f"outputs, {path}"
    )


@pytest.mark.parametrize("fixture", FIXTURES)
def test_eval_output_in_float64_agrees_beyond_float32(fixture: str) -> None:
    model, document = load_published(fixture)
    actual = outputs(fixture, model.double(), fixture_input(document["input"]).double())
    assert_close(actual, document["eval_logits_float64"], 1e-11, "outputs")


@pytest.mark.parametrize("fixture", FIXTURES)
def test_every_stage_is_the_published_codes(fixture: str) -> None:
    model, document = load_published(fixture)
    seen: dict[str, Tensor] = {}
    for name in STAGES[fixture]:
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.update({name: output})
        )
    outputs(fixture, model, fixture_input(document["input"]))
    for name, (where, expected) in zip(STAGES[fixture], document["intermediate_eval"].items(), strict=True):
        actual, tolerance = seen[name], 1e-4 * max(1.0, expected["std"])
        assert list(actual.shape) == expected["shape"], where
        assert_close(actual.flatten()[:8], expected["first8"], tolerance, where)
        assert_close(actual.flatten()[-4:], expected["last4"], tolerance, where)
        assert_close(actual.double().mean(), expected["mean"], tolerance, where)
        assert_close(actual.double().std(unbiased=False), expected["std"], tolerance, where)


@pytest.mark.parametrize(("fixture", "dead"), [("ir50", OUTPUT_LAYER_PARAMETERS), ("mobilefacenet", 0)])
def test_published_parameters_are_ours_and_the_dead(fixture: str, dead: int) -> None:
    model, document = load_published(fixture)
    assert sum(p.numel() for p in model.parameters()) + dead == document["n_params"]


# ------------------------------------------------------------------------------------------------ layouts
@functools.cache
def _ir50_state() -> dict[str, Any]:
    return {key: torch.from_numpy(value) for key, value in published_state(load("ir50")).items()}


def ir50_state() -> dict[str, Any]:
    """The three-stage file, as a dictionary of the caller's own."""
    return dict(_ir50_state())


def numbered(published: dict[str, Any]) -> dict[str, Any]:
    """The three-stage file's units under the names of face.evoLVe, body.0 ... body.20."""
    starts = {"body1.": 0, "body2.": 3, "body3.": 7}
    state = {}
    for key, value in published.items():
        stage, _, rest = key.partition(".")
        if f"{stage}." in starts:
            unit, _, rest = rest.partition(".")
            key = f"body.{starts[f'{stage}.'] + int(unit)}.{rest}"
        state[key] = value
    return state


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def batch_norm(name: str, channels: int) -> dict[str, Tensor]:
    tensors = {f"{name}.{key}": meta(channels) for key in ("weight", "bias", "running_mean", "running_var")}
    return {**tensors, f"{name}.num_batches_tracked": torch.zeros((), dtype=torch.int64, device="meta")}


def evolve_state(depths: tuple[int, ...], embedding_width: int) -> dict[str, Tensor]:
    """A published file of face.evoLVe with four stages, without values."""
    state = {"input_layer.0.weight": meta(64, 3, 3, 3), **batch_norm("input_layer.1", 64)}
    state |= {"input_layer.2.weight": meta(64)}
    width, number = 64, 0
    for depth, out in zip(depths, (64, 128, 256, 512), strict=True):
        for _ in range(depth):
            unit = f"body.{number}"
            if width != out:
                state |= {f"{unit}.shortcut_layer.0.weight": meta(out, width, 1, 1)}
                state |= batch_norm(f"{unit}.shortcut_layer.1", out)
            state |= batch_norm(f"{unit}.res_layer.0", width)
            state |= {f"{unit}.res_layer.1.weight": meta(out, width, 3, 3), f"{unit}.res_layer.2.weight": meta(out)}
            state |= {f"{unit}.res_layer.3.weight": meta(out, out, 3, 3)} | batch_norm(f"{unit}.res_layer.4", out)
            width, number = out, number + 1
    state |= batch_norm("output_layer.0", 512) | batch_norm("output_layer.4", embedding_width)
    return state | {
        "output_layer.3.weight": meta(embedding_width, 25_088),
        "output_layer.3.bias": meta(embedding_width),
    }


def torchvision_state(num_classes: int) -> dict[str, Tensor]:
    """torchvision's ResNet-50, without values."""
    state = {"conv1.weight": meta(64, 3, 7, 7), **batch_norm("bn1", 64)}
    inputs = 64
    for stage, (depth, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), 1):
        for number in range(depth):
            block = f"layer{stage}.{number}"
            for index, (out, channels, kernel) in enumerate(
                ((width, inputs, 1), (width, width, 3), (4 * width, width, 1)), 1
            ):
                state[f"{block}.conv{index}.weight"] = meta(out, channels, kernel, kernel)
                state |= batch_norm(f"{block}.bn{index}", out)
            if number == 0:
                state[f"{block}.downsample.0.weight"] = meta(4 * width, inputs, 1, 1)
                state |= batch_norm(f"{block}.downsample.1", 4 * width)
            inputs = 4 * width
    return state | {"fc.weight": meta(num_classes, 2048), "fc.bias": meta(num_classes)}


def test_both_namings_of_ir50_give_the_same() -> None:
    published = ir50_state()
    assert published_options("ir50", published) == {"num_classes": 0, "stages": 3}
    renamed = numbered(published)
    assert renamed.keys() != published.keys()
    first, second = convert("ir50", published), convert("ir50", renamed)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_head_of_the_three_stage_file_may_be_absent() -> None:
    published = {key: value for key, value in ir50_state().items() if not key.startswith("output")}
    assert len(published) == 292
    assert len(convert("ir50", published)) == 292


@pytest.mark.parametrize(
    "key", ["input_layer.0.weight", "body1.0.res_layer.4.running_var", "body3.13.res_layer.1.weight"]
)
def test_a_missing_tensor_of_ir50_is_an_error(key: str) -> None:
    published = ir50_state()
    del published[key]
    with pytest.raises(ValueError, match=r"missing: the tensor for features\.(stem|stage1\.0|stage3\.13)\."):
        convert("ir50", published)


@pytest.mark.parametrize(("name", "depths", "width"), [("ir18", (2, 2, 2, 2), 256), ("ir50", (3, 4, 14, 3), 512)])
def test_four_stages_of_face_evolve_are_imported_with_their_head(
    name: str, depths: tuple[int, ...], width: int
) -> None:
    published = evolve_state(depths, width)
    state = convert(name, published)
    assert published_options(name, published)["num_classes"] == 0
    assert len(state) == len(published)
    assert "head.embed.weight" in state
    del published[f"body.{sum(depths) - 1}.res_layer.1.weight"]
    with pytest.raises(ValueError, match=r"missing: the tensor for features\.stage4\.\d\.conv\.weight"):
        convert(name, published)


def test_the_image_branch_takes_three_stages_of_either_file() -> None:
    with torch.device("meta"):
        branch = IRFeatures(IR50_THREE_STAGES)
    branch.load_state_dict(branch_state(branch, convert("ir50", evolve_state((3, 4, 14, 3), 512))), strict=True)
    branch = IRFeatures(IR50_THREE_STAGES)
    branch.load_state_dict(branch_state(branch, convert("ir50", ir50_state())), strict=True)


def test_the_landmark_branch_takes_the_landmark_networks_features() -> None:
    branch = LandmarkBackbone(PUBLISHED, frozen=True, bn="frozen")
    branch.load_state_dict(
        branch_state(branch, convert("mobilefacenet_landmarks", published_state(load("mobilefacenet")))), strict=True
    )
    assert branch.loaded


def test_embedding_network_is_imported_under_both_namings_of_its_head() -> None:
    document = load("mobilefacenet")
    shapes = {key: shape for key, shape, *_ in document["keys"]}
    wide = {key: meta(*(512 if size == 136 else size for size in shape)) for key, shape in shapes.items()}
    state = convert("mobilefacenet", wide)
    assert published_options("mobilefacenet", wide) == {"num_classes": 0}
    bare = {key.removeprefix("output_layer."): tensor for key, tensor in wide.items()}
    assert convert("mobilefacenet", bare).keys() == state.keys()


def test_classifiers_are_imported_with_their_class_count() -> None:
    published = published_state(load("mobilefacenet"))
    published |= {"fc.weight": np.zeros((8, 136), np.float32), "fc.bias": np.zeros(8, np.float32)}
    assert published_options("mobilefacenet_landmarks", published) == {"num_classes": 8}
    model = create_model("mobilefacenet_landmarks", 8)
    model.load_state_dict(convert("mobilefacenet_landmarks", published), strict=True)


def test_resnet50_is_imported_from_torchvisions_names() -> None:
    published = torchvision_state(1000)
    assert sum(t.numel() for key, t in published.items() if key.endswith((".weight", ".bias"))) == 25_557_032
    state = convert("resnet50", published)
    assert published_options("resnet50", published) == {"num_classes": 1000}
    assert len(state) == len(published) == 320
    assert state["stages.1.0.spatial.conv.weight"] is published["layer2.0.conv2.weight"]
    assert state["stages.3.2.expand.bn.bias"] is published["layer4.2.bn3.bias"]
    assert state["stages.0.0.shortcut.bn.weight"] is published["layer1.0.downsample.1.weight"]
    assert state["stem.conv.weight"] is published["conv1.weight"]
