"""Reference implementations: the published forward passes, transcribed plainly, which `fer bench models` times.

Each is a function of the published state dict that computes what the published code computes, in its order and memory
layout, what nothing uses included. Its logits are those of tests/assets/conformance.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from benchmarks.reference import biformer, ddamfn, ir50, lhc, mobilefacenet, poster_v2, vit
from benchmarks.reference.published import KERAS, TORCH, Names, Published

__all__ = ["REFERENCES", "Published", "Reference"]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A published network and the model of ours that computes the same.

    Attributes:
        forward: (B,3,S,S) -> the logits, or the output that stands for them where the network has no classifier.
        size: S in pixels.
        model, options: of `create_model`.
        classifies: whether the output is one of logits.
        names: of the tensors' keys.
    """

    forward: Callable[[Published, Tensor], Tensor]
    size: int
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    classifies: bool = True
    names: Names = TORCH


def _biformer(name: str, size: biformer.Size) -> Reference:
    return Reference(forward=lambda p, x: biformer.biformer(p, x, size), size=224, model=name)


REFERENCES = {
    "ddamfn": Reference(forward=lambda p, x: ddamfn.ddamfn(p, x)[0], size=112, model="ddamfn"),
    "mfn": Reference(
        forward=ddamfn.mfn,
        size=112,
        model="mfn",
        options={"num_classes": 0},
        classifies=False,
    ),
    "poster_v2": Reference(forward=poster_v2.poster_v2, size=224, model="poster_v2"),
    "ir50": Reference(
        forward=lambda p, x: ir50.ir50(p, x)[-1],
        size=112,
        model="ir50",
        options={"num_classes": 0, "stages": 3},
        classifies=False,
    ),
    "mobilefacenet": Reference(
        forward=lambda p, x: mobilefacenet.mobilefacenet(p, x)[-1],
        size=112,
        model="mobilefacenet_landmarks",
        options={"num_classes": 0},
        classifies=False,
    ),
    "dynamic_vit_tiny": _biformer("dynamic_vit_tiny", biformer.TINY),
    "dynamic_vit_small": _biformer("dynamic_vit_small", biformer.SMALL),
    "dynamic_vit_base": _biformer("dynamic_vit_base", biformer.BASE),
    "vit_b16": Reference(forward=vit.vit_b16, size=224, model="vit_b16"),
    "resnet34v2": Reference(forward=lhc.resnet34v2, size=224, model="resnet34v2", names=KERAS),
    "lhc_net": Reference(forward=lhc.lhc_net, size=224, model="lhc_net", names=KERAS),
}
"""By the name that `fer bench models` knows them by."""
