"""Published weights -> a weights file of this project; the order of the classes is known or given, never a guess."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from fer.io.files import FileError, sha256
from fer.labels import DATASET_LABELS
from fer.models import FerModel
from fer.weights import registry
from fer.weights.published import load_published
from fer.weights.store import WeightsInfo, read_info, save_model


def find_weights(source: str) -> tuple[Path, registry.PublishedWeights | None]:
    """The file of a path, or of the name of weights that were pulled, with their entry in the register.

    Raises:
        ValueError: no such name; or not pulled, with the command.
    """
    path = Path(source)
    if path.exists() or path.name != source or "." in source or Path(f"{source}.index").exists():
        return path, None
    return registry.find(source), registry.entry(source)


def import_weights(
    source: str, out: Path, *, model: str | None = None, labels: Sequence[str] = (), ask: str
) -> WeightsInfo:
    """Writes published weights as a file of this project.

    Args:
        source: a path, or a name of the register.
        model: whose weights they are; None: what the register says.
        labels: the classes in the order of the logits; empty: what the register says.
        ask: how the user gives an unknown order, for the error.

    Returns:
        The description in the file.

    Raises:
        ValueError: as `load_published`; an unknown model; or an order of the classes that is unknown, no order of a
            label space, or not that of the register.
    """
    path, known = find_weights(source)
    name = model or (known.model if known else None)
    if name is None:
        raise ValueError(f"{path}: give with --model the model that these weights are of")
    network = load_published(name, path)
    labels = _order(path, network.num_classes, labels, known, ask)
    extra = {"file": path.name, "sha256": sha256(path) if path.is_file() else None}  # a checkpoint may be a folder
    if known:
        extra |= {"published": source, "source": known.source, "licence": known.licence, "dataset": known.dataset}
        if known.channels == "bgr":
            _read_rgb(network)
    space = registry.label_space(labels).name if labels else "none"
    save_model(network, out, labels, space, extra, name=name, options=network.options)
    return read_info(out)


def _order(
    path: Path, num_classes: int, given: Sequence[str], known: registry.PublishedWeights | None, ask: str
) -> tuple[str, ...]:
    registered = tuple(known.labels) if known and isinstance(known.labels, list) else ()
    if given and registered and tuple(given) != registered:
        raise ValueError(f"{path}: its classes are in the order {', '.join(registered)}, by the register of weights")
    labels = tuple(given) or registered
    if labels:
        registry.label_space(labels)
    if len(labels) == num_classes:
        return labels
    if labels:
        raise ValueError(f"{path}: has {num_classes} classes; {len(labels)} labels are given: {', '.join(labels)}")
    if num_classes > max(map(len, DATASET_LABELS.values())):
        raise FileError(f"{path}: {num_classes} classes, which are not expressions: weights that a run starts from")
    raise ValueError(f"{path}: has {num_classes} classes in an unknown order. {ask}")


def _read_rgb(network: FerModel) -> None:
    """Turns a network that was trained on BGR into one that gives the same logits for RGB.

    It normalized channel c of BGR by the c-th mean and std: so these are reversed, and the input channels of the
    convolutions that read the image.
    """
    network.mean, network.std = _reversed(network.mean), _reversed(network.std)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3 and module.groups == 1:
            flipped: Tensor = module.weight.data.flip(1)
            module.weight.data = flipped.contiguous()


def _reversed(channels: tuple[float, float, float]) -> tuple[float, float, float]:
    first, second, third = channels
    return third, second, first
