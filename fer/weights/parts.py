"""The weights that a model starts from: those of a whole checkpoint, and those of parts of it, as backbones.

    sources = locate({WHOLE: "biformer_base"}, root)
    kept = load_sources(model, sources, labels)

Published face networks are rarely trained on expressions: of them the models take only the convolutional part, and of a
ViT-B/16 as a part the transformer, without the embedding of its patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fer.console import log
from fer.io.cache import local
from fer.io.files import FileError, below, sha256
from fer.labels import is_identities
from fer.models import FerModel, create_model
from fer.models.ir import IRFeatures
from fer.models.layers.tokens import ClassTokenTransformer
from fer.models.mfn import MFNFeatures
from fer.models.mobilefacenet import LandmarkBackbone, MobileFaceNetFeatures
from fer.weights.published import load_state
from fer.weights.registry import find, register
from fer.weights.store import has_description, load_model

WHOLE = ""
"""In place of a part's name: the whole model, `start_from` in a recipe."""

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
    """The initial weights of a part of a model.

    Attributes:
        part: its name, or `WHOLE`.
        path, digest: of the file; absolute, or its URL in a store; and its SHA-256.
        model, labels: of published weights in the register, whose files say neither; labels only where they are known.
    """

    part: str
    path: str
    digest: str
    model: str | None = None
    labels: tuple[str, ...] = ()

    @property
    def identity(self) -> tuple[str, ...]:
        """What decides a result: all but the place."""
        return (self.part, self.digest, self.model or "", *self.labels)


def key_of(part: str) -> str:
    """The key of the recipe that names the source of a part."""
    return f"pretrained.{part}" if part else "start_from"


def list_parts(model: FerModel) -> list[str]:
    """The parts of a model that weights can be loaded into; those of a model within it with its name and a dot."""
    return [name for name, module in model.named_modules() if type(module) in DONORS]


def locate(given: Mapping[str, str], root: Path, parent: Path | None = None) -> tuple[PartSource, ...]:
    """The files of parts, each given as a name in `fer weights list` that was pulled, or as a path below `root`.

    Args:
        given: part -> source; `WHOLE` comes first, so that the others have the last word.
        parent: searched for files that `root` lacks.

    Raises:
        FileError: one is not there, or reads BGR.
    """
    sources = []
    for part, source in sorted(given.items()):
        entry = register().get(source)
        path = find(source) if entry else below(source, root, parent)
        if entry and entry.channels == "bgr":
            raise FileError(
                f"{key_of(part)} = {source!r}: of BGR images; run `fer weights import {source} --out FILE`, name FILE"
            )
        if not path.is_file():
            raise FileError(f"{key_of(part)} = {source!r}: neither a file ({path}) nor a name in `fer weights list`")
        model = entry.model if entry else None
        labels = tuple(entry.labels) if entry and isinstance(entry.labels, list) else ()
        sources.append(PartSource(part, str(path.resolve()), sha256(path), model, labels))
    return tuple(sources)


def load_sources(model: FerModel, sources: Sequence[PartSource], labels: Sequence[str]) -> list[str]:
    """Fills a new model from all its sources, in order.

    Args:
        labels: of the data, in the order of the model's classes.

    Returns:
        the tensors that a whole checkpoint left at their first values; empty where there is none.

    Raises:
        FileError, ValueError: as `load_whole` and `load_part`.
    """
    kept: list[str] = []
    for source in sources:
        if source.part == WHOLE:
            kept = load_whole(model, source, labels)
        else:
            load_part(model, source)
            kept = [key for key in kept if not key.startswith(f"{source.part}.")]
    return kept


def load_whole(model: FerModel, source: PartSource, labels: Sequence[str]) -> list[str]:
    """Fills a model by the tensors' names from a checkpoint of it, or of a model that it contains, as LHC-Net its host.

    The file is one that this project wrote, or a published one: of the model in the register, else of `model` itself.
    The classifier, all tensors whose shape follows the number of classes, is taken over where the file's classes are
    known to be those of the data, in the data's order; else it keeps its first values, as what only the model has.

    Returns:
        the names of the tensors that keep their first values.

    Raises:
        FileError: weights that cannot be read.
        ValueError: a tensor that has no place in the model, or another shape there.
    """
    assert model.name is not None
    path = local(source.path)
    if _is_ours(path):
        whole, info = load_model(path)
        state, theirs = whole.state_dict(), () if is_identities(info.label_space) else info.labels
        if (info.mean, info.std) != (model.mean, model.std):
            log.warning(f"{path}: expects pixels normalized by mean {info.mean}, std {info.std}, not as {model.name}")
    else:
        state, theirs = load_state(source.model or model.name, path), source.labels
    with torch.device("meta"):
        wider = create_model(model.name, model.num_classes + 1, **model.options).state_dict()
    order = [theirs.index(label) for label in labels] if sorted(theirs) == sorted(labels) else []
    own, taken, faults = model.state_dict(), {}, []
    for key, tensor in state.items():
        if key not in own:
            faults.append(f"unexpected: {key}")
        elif axes := [axis for axis, size in enumerate(own[key].shape) if size != wider[key].shape[axis]]:
            if order and tensor.shape == own[key].shape and all(tensor.shape[axis] == len(order) for axis in axes):
                for axis in axes:
                    tensor = tensor.index_select(axis, torch.tensor(order))
                taken[key] = tensor
        elif tensor.shape != own[key].shape:
            faults.append(f"{key}: shape {tuple(tensor.shape)}, {model.name} has {tuple(own[key].shape)}")
        else:
            taken[key] = tensor
    _refuse(path, f"not weights that {model.name} can start from", faults)
    model.load_state_dict(taken, strict=False)
    return [key for key in own if key not in taken]


def load_part(model: FerModel, source: PartSource) -> None:
    """Fills a part with the features of a network of its kind; every tensor must be there, and fit.

    The file is one that this project wrote, or a published one of the part's kind. Of IR-50 with four stages a branch
    of three takes the first three; of ViT-B/16 a transformer of fewer blocks takes the first ones, and keeps its own
    positions where it has another number of tokens (inferred: the paper does not say what POSTER V2's Table 7 loads).

    Raises:
        FileError: weights that cannot be read.
        ValueError: the model has no such part, or the weights are those of another network.
    """
    part, path = source.part, local(source.path)
    if part not in list_parts(model):
        known = ", ".join(list_parts(model)) or "none"
        raise ValueError(f"{key_of(part)}: {model.name} has no such part; its parts: {known}")
    module = model.get_submodule(part)
    whole = load_model(path)[0].state_dict() if _is_ours(path) else load_state(DONORS[type(module)], path)
    state, expected = branch_state(module, whole), module.state_dict()
    faults = [f"missing: {key}" for key in expected.keys() - state.keys()]
    faults += [f"unexpected: {key}" for key in state.keys() - expected.keys()]
    faults += [
        f"{key}: shape {tuple(state[key].shape)}, {part} has {tuple(expected[key].shape)}"
        for key in expected.keys() & state.keys()
        if state[key].shape != expected[key].shape
    ]
    _refuse(path, f"not the weights of {part} of {model.name}", faults)
    module.load_state_dict(state)


def _is_ours(path: Path) -> bool:
    return path.suffix == ".safetensors" and has_description(path)


def _refuse(path: Path, what: str, faults: Sequence[str]) -> None:
    if faults:
        listing = "\n  ".join(sorted(faults)[:8])
        raise ValueError(f"{path}: {what} ({len(faults)} tensors):\n  {listing}")


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
