"""The importer of published checkpoints drops what is dead, by name, and lets nothing else pass."""

import functools
import io
from typing import Any

import numpy as np
import pytest
import torch
from builders.conformance import keras_state, load, published_state
from torch import Tensor

from fer.models import create_model
from fer.models.ir import IR50_THREE_STAGES, IRFeatures
from fer.models.mobilefacenet import PUBLISHED, LandmarkBackbone
from fer.weights.convert import convert, dead_keys, published_options
from fer.weights.layouts import LAYOUTS
from fer.weights.parts import branch_state
from fer.weights.published import WRAPPERS
from fer.weights.torchfile import _Unpickler


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in published_state(load("ddamfn_7cls")).items()}


def test_module_prefix_and_numpy_arrays_make_no_difference(published: dict[str, Tensor]) -> None:
    plain = convert("ddamfn", published)
    prefixed = convert("ddamfn", {f"module.{key}": value.numpy() for key, value in published.items()})
    assert list(plain) == list(prefixed)
    assert all(torch.equal(plain[key], prefixed[key]) for key in plain)


def test_dead_parameters_may_be_absent(published: dict[str, Tensor]) -> None:
    dead = set(dead_keys("ddamfn", published))
    live = {key: value for key, value in published.items() if key not in dead}
    assert len(dead) == 1190 - 969
    create_model("ddamfn").load_state_dict(convert("ddamfn", live), strict=True)


def test_heads_and_classes_are_read_from_the_shapes() -> None:
    published = published_state(load("ddamfn_7cls_h3"))
    assert published_options("ddamfn", published) == {"num_classes": 7, "num_heads": 3}
    assert published_options("ddamfn", published_state(load("ddamfn_8cls"))) == {"num_classes": 8, "num_heads": 2}
    assert published_options("mfn", published_state(load("mfn"))) == {"num_classes": 0}


def test_every_wrong_tensor_is_named(published: dict[str, Tensor]) -> None:
    broken = dict(published)
    del broken["features.0.conv.weight"]
    broken["features.5.model.3.project.conv.weight"] = torch.zeros(128, 255, 1, 1)
    broken["features.9.extra"] = torch.zeros(1)
    with pytest.raises(ValueError, match="not the published layout of 'ddamfn'") as error:
        convert("ddamfn", broken)
    assert "missing: the tensor for features.stem.conv.weight" in str(error.value)
    assert "features.5.model.3.project.conv.weight: shape (128, 255, 1, 1)" in str(error.value)
    assert "unexpected: features.9.extra" in str(error.value)


def test_another_layout_is_rejected(published: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="not the published layout of 'mfn'"):
        convert("mfn", published)
    with pytest.raises(ValueError, match=r"missing: fc\.weight"):
        convert("ddamfn", {"conv1.conv.weight": torch.zeros(64, 3, 3, 3)})
    with pytest.raises(
        ValueError,
        match=r"no published layout is known for 'ddamfn_nano' - did you mean 'ddamfn'\?; known: ddamfn, .*, mfn",
    ):
        convert("ddamfn_nano", published)


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


def test_a_file_of_another_depth_is_rejected_by_key() -> None:
    published = published_state(load("poster_v1_small_7cls"))
    with pytest.raises(ValueError, match=r"unexpected: pyramid_fuse\.blocks\.4\.block_l\.norm1\.weight"):
        convert("poster_v1_tiny", published)
    with pytest.raises(ValueError, match=r"missing: the tensor for blocks\.6\.levels\.0\.image\.norm1\.weight"):
        convert("poster_v1_large", published)


def test_heads_of_different_shapes_are_named() -> None:
    document = load("lhc_net")
    state = {key: torch.empty(shape, device="meta") for key, shape, *_ in document["keys"]}
    key = "conv3_4/LHC_Module/Wqk/6/kernel"
    assert set(convert("lhc_net", state))
    with pytest.raises(ValueError, match="unexpected: conv3_4/LHC_Module/Wqk/6/kernel"):
        convert("lhc_net", {**state, key: torch.empty(111, 56, device="meta")})
    with pytest.raises(ValueError, match=r"missing: conv5_3/LHC_Module/Wqk/0/kernel"):
        convert("lhc_net", {k: t for k, t in state.items() if "conv5_3/LHC_Module/Wqk" not in k})
    with pytest.raises(ValueError, match=r"missing: the tensor for lhc\.0\.w"):
        convert("lhc_netc", state)


def test_heads_and_dims_of_lhc_net_are_read_from_the_shapes() -> None:
    document = load("lhc_netc")
    published = keras_state(document, [row for row in document["keys"] if "/Wqk/" in row[0] or "fc3" in row[0]])
    assert published_options("lhc_netc", published) == {
        "num_classes": 7,
        "num_heads": (8, 8, 7, 7, 1),
        "head_dims": (196, 196, 56, 14, 25),
    }


def timm_state(num_classes: int) -> dict[str, Tensor]:
    """Zeros under the names and in the shapes of timm's `vit_base_patch16_224`."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 768),
        "pos_embed": (1, 197, 768),
        "patch_embed.proj.weight": (768, 3, 16, 16),
        "patch_embed.proj.bias": (768,),
        "norm.weight": (768,),
        "norm.bias": (768,),
        "head.weight": (num_classes, 768),
        "head.bias": (num_classes,),
    }
    for block in range(12):
        linear = {"attn.qkv": (2304, 768), "attn.proj": (768, 768), "mlp.fc1": (3072, 768), "mlp.fc2": (768, 3072)}
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{norm}.{kind}": (768,) for kind in ("weight", "bias")}
        for layer, shape in linear.items():
            shapes |= {f"blocks.{block}.{layer}.weight": shape, f"blocks.{block}.{layer}.bias": shape[:1]}
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize("attention", ["full", "dynamic"])
def test_published_names_fill_either_attention(attention: str) -> None:
    published = timm_state(1000)
    assert published_options("vit_b16", published) == {"num_classes": 1000}
    with torch.device("meta"):
        model = create_model("vit_b16", 1000, attention=attention)
    model.load_state_dict(convert("vit_b16", published), strict=True, assign=True)


# ------------------------------------------------------------------------------------------------ recorded files

FILES: dict[str, Any] = load("checkpoint_layouts")


def section(beginning: str) -> dict[str, Any]:
    [name] = [name for name in FILES if name.startswith(beginning)]
    found: dict[str, Any] = FILES[name]
    return found


def test_both_namings_of_ir50_mean_the_same_tensors() -> None:
    layout, pairs = LAYOUTS["ir50"], section("ir50.pth")["prefix_map body.N -> three-stage"]
    assert len(pairs) == 21
    for numbered, staged in pairs.items():
        for tail in ("res_layer.1.weight", "res_layer.4.running_mean"):
            ours = layout.our_key(f"{staged}.{tail}")
            assert layout.our_key(f"{numbered}.{tail}") == ours
            assert ours.startswith(f"features.stage{staged[4]}.{staged.split('.')[1]}.")


def test_features_of_mfn_and_of_ddamfn_have_the_same_names_here() -> None:
    pairs = section("DDAMFN pretrained")["mapping_to_DDAMFN"]
    children = {
        theirs.removesuffix(".*"): ours.removesuffix(".*") for theirs, ours in pairs.items() if "," not in theirs
    }
    assert len(children) == 9
    for theirs, ours in children.items():
        assert LAYOUTS["mfn"].our_key(f"{theirs}.conv.weight") == LAYOUTS["ddamfn"].our_key(f"{ours}.conv.weight")


@pytest.mark.parametrize("file", ["POSTER V2 checkpoint", "DDAMFN(++) checkpoints"])
def test_the_wrapper_of_a_state_dict_is_known(file: str) -> None:
    assert len(set(section(file)["top_level_keys"]) & set(WRAPPERS)) == 1


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("POSTER V2 checkpoint", "pickle_globals"),
        ("DDAMFN pretrained", "pickle_globals (synthetic equivalent)"),
        ("DDAMFN(++) checkpoints", "pickle_globals"),
    ],
)
def test_no_name_in_a_published_file_is_rejected(file: str, names: str) -> None:
    for name in section(file)[names]:
        module, _, attribute = name.rpartition(".")
        text = b"c" + module.encode() + b"\n" + attribute.encode() + b"\n."
        _Unpickler(io.BytesIO(b"\x80\x02" + text)).load()


def test_the_landmark_network_has_the_recorded_number_of_tensors() -> None:
    keys = section("mobilefacenet_model_best")["keys"]
    assert f"exactly the {len(create_model('mobilefacenet_landmarks', 0).state_dict())} keys" in keys
