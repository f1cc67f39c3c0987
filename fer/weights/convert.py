"""Published state dicts -> ours.

    state = convert("ddamfn", published)
    model = create_model("ddamfn", **published_options("ddamfn", published))
    model.load_state_dict(state)

`published` maps the keys of the authors' code to tensors or numpy arrays; a `module.` prefix (DataParallel) and the
`/.ATTRIBUTES/VARIABLE_VALUE` of a TensorFlow checkpoint are stripped.
The published modules hold parameters that no output depends on. Each layout lists them as dead; they are dropped by
name, and whether a file has them does not matter; likewise the buffers that our models compute. Nothing else is
dropped, invented or reshaped: a key that is missing, unexpected or of another shape is an error. (One exception: the
number of batches that a BatchNorm has seen, which Keras and old versions of PyTorch do not store, starts at 0.)
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fer.config import nearest
from fer.models import create_model
from fer.weights.layouts import LAYOUTS, Layout

Published = Mapping[str, Tensor | np.ndarray]

_TENSORFLOW_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def convert(name: str, published: Published) -> dict[str, Tensor]:
    """The state dict of `create_model(name, **published_options(name, published))`, complete for a strict load.

    Where the file lacks the head (`num_classes` is None), it is complete but for that.

    Raises ValueError naming every key that is missing, unexpected, ambiguous or of another shape.
    """
    tensors = _tensors(published)
    layout, options = _layout(name).of(tensors), published_options(name, tensors)
    headless = options["num_classes"] is None
    with torch.device("meta"):
        expected = create_model(name, **options | ({"num_classes": 1} if headless else {})).state_dict()
    if headless:
        expected = {ours: tensor for ours, tensor in expected.items() if not layout.is_in_head(ours)}
    state: dict[str, Tensor] = {}
    faults: list[str] = []
    live = {key: t for key, t in tensors.items() if not layout.is_dead(key) and not layout.is_derivable(key)}
    try:
        adapted = layout.adapt(live)
    except (RuntimeError, LookupError) as error:  # shapes that cannot be joined
        raise ValueError(f"not the published layout of {name!r}: {error}") from None
    for key, tensor in adapted.items():
        ours = layout.our_key(key)
        if ours not in expected:
            faults.append(f"unexpected: {key}")
        elif ours in state:
            faults.append(f"{key}: a second tensor for {ours}")
        elif tensor.shape != expected[ours].shape:
            faults.append(f"{key}: shape {tuple(tensor.shape)}, but {ours} has {tuple(expected[ours].shape)}")
        state[ours] = tensor
    for ours in expected:
        if ours.endswith("num_batches_tracked"):
            state.setdefault(ours, torch.zeros((), dtype=torch.int64))
    faults += [f"missing: the tensor for {ours}" for ours in expected if ours not in state]
    if faults:
        raise ValueError(f"not the published layout of {name!r}:\n  " + "\n  ".join(faults))
    return state


def published_options(name: str, published: Published) -> dict[str, Any]:
    """The arguments of `create_model(name, ...)`, `num_classes` included, that the published tensors were made for.

    `num_classes` is None where they are those of a backbone alone.
    """
    tensors = _tensors(published)
    try:
        return _layout(name).of(tensors).options(tensors)
    except KeyError as error:
        raise ValueError(f"not the published layout of {name!r}:\n  missing: {error.args[0]}") from None
    except IndexError:
        raise ValueError(f"not the published layout of {name!r}: a tensor of other dimensions") from None


def dead_keys(name: str, keys: Iterable[str]) -> list[str]:
    """Those of the published keys (without `module.`) that no output of the published model depends on."""
    layout = _layout(name)
    return [key for key in keys if layout.is_dead(key)]


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        known = sorted(LAYOUTS)
        raise ValueError(f"no published layout is known for {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    return LAYOUTS[name]


def _tensors(published: Published) -> dict[str, Tensor]:
    return {
        key.removeprefix("module.").removesuffix(_TENSORFLOW_SUFFIX): torch.as_tensor(value)
        for key, value in published.items()
    }
