"""Parts of a model that start from other weights than random ones: backbones, and the landmark network.

    for source in locate({"landmarks": "mobilefacenet_landmarks"}, root):
        load_part(model, source)

Published face networks are rarely trained on expressions: the models take only their convolutional part, and of a
ViT-B/16 the transformer, without the embedding of its patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from fer.io.files import FileError, below, sha256
from fer.models import FerModel
from fer.models.ir import IRFeatures
from fer.models.layers.tokens import ClassTokenTransformer
from fer.models.mfn import MFNFeatures
from fer.models.mobilefacenet import LandmarkBackbone, MobileFaceNetFeatures
from fer.weights.published import load_published
from fer.weights.registry import find, register
from fer.weights.store import has_description, load_model

DONORS: dict[type[nn.Module], str] = {
    ClassTokenTransformer: "vit_b16",
    IRFeatures: "ir50",
    LandmarkBackbone: "mobilefacenet_landmarks",
    MFNFeatures: "mfn",
    MobileFaceNetFeatures: "mobilefacenet",
}
"""The kinds of parts, and the model whose published files hold them."""

_FEATURES = ("features.", "transformer.")
"""The names of that part in the donors."""


@dataclass(frozen=True)
class PartSource:
    """The initial weights of a part of a model: its name, an absolute path, and the SHA-256 of the file there."""

    part: str
    path: str
    digest: str


def list_parts(model: FerModel) -> list[str]:
    """The parts of a model that weights can be loaded into; those of a model within it with its name and a dot."""
    return [name for name, module in model.named_modules() if type(module) in DONORS]


def locate(pretrained: Mapping[str, str], root: Path, parent: Path | None = None) -> tuple[PartSource, ...]:
    """The files of parts, each given as a name in `fer weights list` that was pulled, or as a path below `root`.

    Args:
        parent: searched for files that `root` lacks.

    Raises:
        FileError: one is not there.
    """
    sources = []
    for part, source in sorted(pretrained.items()):
        path = find(source) if source in register() else below(source, root, parent)
        if not path.is_file():
            raise FileError(f"pretrained.{part} = {source!r}: neither a file ({path}) nor a name in `fer weights list`")
        sources.append(PartSource(part, str(path.resolve()), sha256(path)))
    return tuple(sources)


def load_part(model: FerModel, source: PartSource) -> None:
    """Fills a part with the features of a network of its kind; every tensor must be there, and fit.

    The file is one that this project wrote, or a published one of the part's kind. Of IR-50 with four stages a branch
    of three takes the first three; of ViT-B/16 a transformer of fewer blocks takes the first ones, and keeps its own
    positions where it has another number of tokens (inferred: the paper does not say what POSTER V2's Table 7 loads).

    Raises:
        FileError: weights that cannot be read.
        ValueError: the model has no such part, or the weights are those of another network.
    """
    part, path = source.part, Path(source.path)
    if part not in list_parts(model):
        known = ", ".join(list_parts(model)) or "none"
        raise ValueError(f"pretrained.{part}: {model.name} has no such part; its parts: {known}")
    module = model.get_submodule(part)
    donor = DONORS[type(module)]
    ours = path.suffix == ".safetensors" and has_description(path)
    whole = load_model(path)[0] if ours else load_published(donor, path)
    state, expected = branch_state(module, whole.state_dict()), module.state_dict()
    faults = [f"missing: {key}" for key in expected.keys() - state.keys()]
    faults += [f"unexpected: {key}" for key in state.keys() - expected.keys()]
    faults += [
        f"{key}: shape {tuple(state[key].shape)}, {part} has {tuple(expected[key].shape)}"
        for key in expected.keys() & state.keys()
        if state[key].shape != expected[key].shape
    ]
    if faults:
        listing = "\n  ".join(sorted(faults)[:8])
        raise ValueError(f"{path}: not the weights of {part} of {model.name} ({len(faults)} tensors):\n  {listing}")
    module.load_state_dict(state)


def branch_state(module: nn.Module, donor: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a part, out of the whole one of its donor."""
    state = {
        key.removeprefix(prefix): tensor
        for prefix in _FEATURES
        for key, tensor in donor.items()
        if key.startswith(prefix)
    }
    if isinstance(module, IRFeatures):
        children = tuple(f"{name}." for name, _ in module.named_children())
        state = {key: tensor for key, tensor in state.items() if key.startswith(children)}
    if isinstance(module, ClassTokenTransformer):
        expected = module.state_dict()
        blocks = {key for key in state if key.startswith("blocks.")}
        state = {key: tensor for key, tensor in state.items() if key not in blocks or key in expected}
        if "positions" in expected and state["positions"].shape != expected["positions"].shape:
            state["positions"] = expected["positions"]
    return state
