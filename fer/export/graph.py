"""A model as one graph from the levels of a crop to its logits: what every format is written from.

The graph is that of `fer.models.inference.for_inference`: BatchNorms and learned factors are in the weights before
them. Normalization is in the graph, so that a caller cannot get it wrong.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fer.models import FerModel

INPUT, OUTPUT = "images", "logits"
"""Names of the tensors in every format."""

_MOST_IMAGES = 1 << 16


class Graph(nn.Module):
    """Levels 0 to 255 of RGB crops at the model's size -> logits (B, classes).

    Args:
        model: in evaluation mode.
        raw: the input is what the model itself takes, float32 (B,3,S,S), normalized. Otherwise it is (B,S,S,3): uint8,
            or float32 for a model whose resized images keep their fractions (`FerModel.truncate`).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: FerModel, *, raw: bool) -> None:
        super().__init__()
        self.model = model
        self.raw = raw
        self.dtype = torch.float32 if raw or model.truncate else torch.uint8
        self.shape = (3, *[model.input_size] * 2) if raw else (*[model.input_size] * 2, 3)
        self.register_buffer("mean", torch.tensor(model.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(model.std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if not self.raw:
            # In this order, as `fer.shards.pixels.normalize`.
            images = images.permute(0, 3, 1, 2).to(torch.float32).div(255.0).sub(self.mean).div(self.std)
        logits: Tensor = self.model(images)
        return logits


def trace(graph: Graph) -> ExportedProgram:
    """The graph's operations, for any number of images from 1 on.

    Raises:
        ValueError: the model does something that has no graph, such as a choice that depends on the images.
    """
    example = torch.zeros(2, *graph.shape, dtype=graph.dtype)
    batch = Dim("batch", min=1, max=_MOST_IMAGES)
    with explained("torch-export", graph.model), torch.no_grad():
        return torch.export.export(graph.eval(), (example,), dynamic_shapes=({0: batch},))


@contextmanager
def explained(format: str, model: FerModel) -> Iterator[None]:
    """Turns an exporter's error into a ValueError that names the format, the model and the operations."""
    try:
        with quietly():
            yield
    except OSError:  # the disk's
        raise
    except Exception as error:
        name = model.name or type(model).__name__
        raise ValueError(f"{format} cannot take {name}: {_reason(error)}; export to another --format") from error


@contextmanager
def quietly() -> Iterator[None]:
    """Hides the exporters' warnings about their own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _reason(error: BaseException) -> str:
    """The operations that an exporter's errors name; else what the first of them says."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    operations = sorted({match for one in chain for match in re.findall(r"aten(?:::|\.)\w+(?:\.\w+)?", str(one))})
    if operations:
        return f"it has no {', '.join(operations)}"
    return next((line.strip() for line in str(chain[-1]).splitlines() if line.strip()), type(chain[-1]).__name__)
