"""The importers against the recorded layouts of the published files: their keys, wrappers and pickled names."""

import io
from typing import Any

import pytest

from fer.models import create_model
from fer.weights.layouts import LAYOUTS
from fer.weights.published import WRAPPERS
from fer.weights.torchfile import _Unpickler

from .conformance import load

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
def test_no_name_in_a_published_file_is_taken_for_an_attack(file: str, names: str) -> None:
    for name in section(file)[names]:
        module, _, attribute = name.rpartition(".")
        text = b"c" + module.encode() + b"\n" + attribute.encode() + b"\n."
        _Unpickler(io.BytesIO(b"\x80\x02" + text)).load()


def test_the_landmark_network_has_the_recorded_number_of_tensors() -> None:
    keys = section("mobilefacenet_model_best")["keys"]
    assert f"exactly the {len(create_model('mobilefacenet_landmarks', 0).state_dict())} keys" in keys
