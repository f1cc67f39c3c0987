"""What a model's features look like: distances within and between classes, and their t-SNE and PCA (BTN, figure 8;
POSTER V2, figure 12).

Features are what the classifier reads, the input of the last linear layer with an output a class, scaled to length 1.

Shapes: N faces, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fer.evaluation.figures import styled
from fer.shards.read import EvalBatches, ModelInput, ShardSplit, normalize

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from fer.models import FerModel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_PERPLEXITY = 30.0
_COLORS = ("#56626e", "#e69f00", "#0072b2", "#56b4e9", "#cc79a7", "#009e73", "#d55e00", "#b5a300")
_MARKERS = "o^sDvP*X"


def embed(model: FerModel, images: Tensor) -> Tensor:
    """Features (B, F) of images as the model takes them, not yet scaled.

    Args:
        model: in evaluation mode.

    Raises:
        ValueError: the model has no linear layer with an output a class.
    """
    import torch

    read: list[Tensor] = []
    layers = [
        one for one in model.modules() if isinstance(one, torch.nn.Linear) and one.out_features == model.num_classes
    ]
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0])) for layer in layers]
    try:
        with torch.inference_mode():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not read or read[-1].shape[:-1] != images.shape[:1]:
        raise ValueError(f"model {model.name!r}: no linear layer with an output a class, whose input could be shown")
    return read[-1]


def embed_split(
    model: FerModel, split: ShardSplit, *, batch_size: int = 128, threads: int = 1, device: str = "cpu"
) -> Floats:
    """Features (N, F) of length 1 of all rows, in the split's order.

    Args:
        model: in evaluation mode, on the device.
        threads: that read and decode.
    """
    batches = EvalBatches(
        split, model_input=ModelInput.of(model), batch_size=batch_size, threads=threads, cache_bytes=0
    )
    with closing(batches):
        found = [
            embed(model, normalize(batch.images.to(device), model.mean, model.std)).double().cpu().numpy()
            for batch in batches
        ]
    return unit(np.concatenate(found))


def unit(features: npt.NDArray[np.floating]) -> Floats:
    """The same of length 1; zeros stay zeros."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    scaled: Floats = np.divide(features, lengths, out=np.zeros(features.shape), where=lengths > 0)
    return scaled


@dataclass(frozen=True)
class Distances:
    """Cosine distances, 1 minus the cosine: 0 the same direction, 1 at right angles.

    Attributes:
        between: (K, K), the mean over all pairs of two faces, one of each class; on the diagonal over all pairs of two
            different faces of the class. NaN where there is no pair.
    """

    between: Floats

    @property
    def intra(self) -> float:
        """Mean of the classes' own: intra-class distance."""
        return float(np.nanmean(np.diag(self.between)))

    @property
    def inter(self) -> float:
        """Mean over the pairs of different classes: inter-class distance."""
        return float(np.nanmean(self.between[~np.eye(len(self.between), dtype=bool)]))

    @property
    def ratio(self) -> float:
        """Intra by inter: the smaller, the better the classes are separated; 1: not at all."""
        return self.intra / self.inter

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: `intra`, `inter`, `ratio`, `between`; None in place of NaN."""
        between = [[None if np.isnan(value) else value for value in line] for line in self.between.tolist()]
        return {"intra": self.intra, "inter": self.inter, "ratio": self.ratio, "between": between}


def distances(features: Floats, labels: Ints, classes: int) -> Distances:
    """Distances within and between classes, exact over all pairs: the mean cosine of pairs is that of their means.

    Args:
        features: (N, F), of length 1. labels: int64 (N,).
    """
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    sums = np.zeros((classes, features.shape[1]))
    np.add.at(sums, labels, features)
    lengths = np.zeros(classes)
    np.add.at(lengths, labels, (features**2).sum(axis=1))
    cosines = sums @ sums.T - np.diag(lengths)  # without each face's pair with itself
    pairs = np.outer(counts, counts) - np.diag(counts)
    return Distances(1 - np.divide(cosines, pairs, out=np.full(cosines.shape, np.nan), where=pairs > 0))


def projections(features: Floats, seed: int) -> dict[str, Floats]:
    """Two dimensions (N, 2) of features (N, F), N >= 3, by "t-SNE" and "PCA".

    t-SNE (van der Maaten and Hinton, JMLR 2008) with scikit-learn's defaults but for the perplexity, which is at most a
    third of the faces, and one thread, so that the same seed gives the same bits.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    with threadpool_limits(1):
        return {
            "t-SNE": TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features),
            "PCA": PCA(2, random_state=seed).fit_transform(features),
        }


@styled
def draw(
    panels: Mapping[str, Mapping[str, Floats]],
    distances: Mapping[str, Distances],
    labels: Ints,
    classes: Sequence[str],
    title: str,
) -> Figure:
    """Models side by side, one row a projection, the same faces in each panel.

    Args:
        panels: model -> projection -> (N, 2). distances: of each model.
        labels: int64 (N,).
    """
    from matplotlib.figure import Figure

    names = list(next(iter(panels.values())))
    figure = Figure(figsize=(4.6 * len(panels) + 1.3, 4.4 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), len(panels), squeeze=False)
    for column, (model, of_model) in enumerate(panels.items()):
        for row, name in enumerate(names):
            panel = axes[row, column]
            for index, label in enumerate(classes):
                points = of_model[name][labels == index]
                style = {"marker": _MARKERS[index % 8], "color": _COLORS[index % 8], "label": label}
                panel.scatter(*points.T, s=9, linewidths=0, alpha=0.75, **style)
            panel.set(xticks=[], yticks=[], xlabel=name)
            panel.grid(False)
        found = distances[model]
        axes[0, column].set_title(f"{model}\nintra {found.intra:.3f}, inter {found.inter:.3f}", fontsize=10)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", markerscale=2, title=title)
    return figure
