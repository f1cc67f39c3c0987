"""Published state dicts -> ours.

    state = convert("ddamfn", published)
    model = create_model("ddamfn", **published_options("ddamfn", published))
    model.load_state_dict(state)

`published` maps the keys of the authors' code to tensors or numpy arrays; a `module.` prefix (DataParallel) is
stripped.
The published modules hold parameters that no output depends on. Each layout lists them as dead; they are dropped by
name, and whether a file has them does not matter. Nothing else is dropped, invented or reshaped: a key that is missing,
unexpected or of another shape is an error.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fer.models import create_model

Published = Mapping[str, Tensor | np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the published code of one model names its tensors.

    rename: (pattern, replacement) pairs, each applied in turn to a published key to give ours (re.sub).
    dead: patterns of the whole keys that the published forward pass never uses.
    options: the arguments of `create_model` that the shapes tell, `num_classes` among them.
    """

    rename: tuple[tuple[str, str], ...]
    dead: tuple[str, ...]
    options: Callable[[Mapping[str, Tensor]], dict[str, Any]]

    def is_dead(self, key: str) -> bool:
        return any(re.fullmatch(pattern, key) for pattern in self.dead)

    def our_key(self, key: str) -> str:
        for pattern, replacement in self.rename:
            key = re.sub(pattern, replacement, key)
        return key


_STATISTICS = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
"""The tensors of a BatchNorm."""

_MIX_BLOCK_RENAME = (
    (r"\.CA\.conv1\.", ".attention.gate.squeeze."),
    (r"\.CA\.bn1\.", ".attention.gate.bn."),
    (r"\.CA\.conv2\.", ".attention.gate.expand_h."),
    (r"\.CA\.conv3\.", ".attention.gate.expand_w."),
    (r"\.conv_dw\.mixed_depthwise_conv\.", ".mix.convs."),
    (r"^(features\.(?:down|stage)\d\..*?)conv\.(conv|bn|prelu)\.", r"\1expand.\2."),
    (r"\.prelu\.", ".act."),
)
_MIX_BLOCK_DEAD = (rf".*\.conv_dw\.bn\.{_STATISTICS}", r".*\.conv_dw\.prelu\.weight")

_FEATURES = {
    "conv1": "stem",
    "conv2_dw": "stem_dw",
    "conv_23": "down1",
    "conv_3": "stage1",
    "conv_34": "down2",
    "conv_4": "stage2",
    "conv_45": "down3",
    "conv_5": "stage3",
    "conv_6_sep": "out",
}
"""The children of the published MFN, in order, and their names in `MFNFeatures`. DDAMFN's copy numbers them."""

MFN = Layout(
    rename=(
        *((rf"^{theirs}\.", f"features.{ours}.") for theirs, ours in _FEATURES.items()),
        (r"^(features\.stage\d)\.model\.", r"\1."),
        (r"^conv_6_dw\.", "pool."),
        (r"^linear\.", "embed."),
        *_MIX_BLOCK_RENAME,
    ),
    dead=_MIX_BLOCK_DEAD,
    options=lambda published: {"num_classes": published["fc.weight"].shape[0] if "fc.weight" in published else 0},
)

DDAMFN = Layout(
    rename=(
        *((rf"^features\.{number}\.", f"features.{ours}.") for number, ours in enumerate(_FEATURES.values())),
        (r"^(features\.stage\d)\.model\.", r"\1."),
        (r"^cat_head(\d+)\.CoordAtt\.", r"heads.\1."),
        (r"^(heads\.\d+)\.Linear_([hw])\.", r"\1.profile_\2."),
        (r"^(heads\.\d+)\.conv1\.", r"\1.gate.squeeze."),
        (r"^(heads\.\d+)\.bn1\.", r"\1.gate.bn."),
        (r"^(heads\.\d+)\.conv2\.", r"\1.gate.expand_h."),
        (r"^(heads\.\d+)\.conv3\.", r"\1.gate.expand_w."),
        (r"^Linear\.", "pool."),
        *_MIX_BLOCK_RENAME,
    ),
    dead=(
        *_MIX_BLOCK_DEAD,
        r"cat_head\d+\.CoordAtt\.Linear\.conv\.weight",
        rf"cat_head\d+\.CoordAtt\.Linear\.bn\.{_STATISTICS}",
        rf"bn\.{_STATISTICS}",
    ),
    options=lambda published: {
        "num_classes": published["fc.weight"].shape[0],
        "num_heads": len({key.split(".")[0] for key in published if key.startswith("cat_head")}),
    },
)

LAYOUTS: dict[str, Layout] = {"ddamfn": DDAMFN, "mfn": MFN}


def convert(name: str, published: Published) -> dict[str, Tensor]:
    """The state dict of `create_model(name, **published_options(name, published))`, complete for a strict load.

    Raises ValueError naming every key that is missing, unexpected, ambiguous or of another shape.
    """
    layout, tensors = _layout(name), _tensors(published)
    with torch.device("meta"):
        expected = create_model(name, **published_options(name, tensors)).state_dict()
    state: dict[str, Tensor] = {}
    faults: list[str] = []
    for key, tensor in tensors.items():
        if layout.is_dead(key):
            continue
        ours = layout.our_key(key)
        if ours not in expected:
            faults.append(f"unexpected: {key}")
        elif ours in state:
            faults.append(f"{key}: a second tensor for {ours}")
        elif tensor.shape != expected[ours].shape:
            faults.append(f"{key}: shape {tuple(tensor.shape)}, but {ours} has {tuple(expected[ours].shape)}")
        state[ours] = tensor
    faults += [f"missing: the tensor for {ours}" for ours in expected if ours not in state]
    if faults:
        raise ValueError(f"not the published layout of {name!r}:\n  " + "\n  ".join(faults))
    return state


def published_options(name: str, published: Published) -> dict[str, Any]:
    """The arguments of `create_model(name, ...)`, `num_classes` included, that the published tensors were made for."""
    layout, tensors = _layout(name), _tensors(published)
    try:
        return layout.options(tensors)
    except KeyError as error:
        raise ValueError(f"not the published layout of {name!r}:\n  missing: {error.args[0]}") from None


def dead_keys(name: str, keys: Iterable[str]) -> list[str]:
    """Those of the published keys (without `module.`) that no output of the published model depends on."""
    layout = _layout(name)
    return [key for key in keys if layout.is_dead(key)]


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise ValueError(f"no published layout is known for {name!r}; known: {', '.join(sorted(LAYOUTS))}")
    return LAYOUTS[name]


def _tensors(published: Published) -> dict[str, Tensor]:
    return {key.removeprefix("module."): torch.as_tensor(value) for key, value in published.items()}
