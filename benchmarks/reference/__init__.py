"""What our models' speed is measured against: the published forward passes, written out plainly.

Each is a function of the published state dict that computes what the published code computes, in its order and memory
layout, what nothing uses included. Its logits are those of tests/assets/conformance.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from benchmarks.reference import biformer, ddamfn, ir50, lhc, mobilefacenet, poster_v2, vit
from benchmarks.reference.published import KERAS, TORCH, Names, Published

__all__ = ["IR50", "YARDSTICKS", "Published", "Yardstick"]


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """A published network and the model of ours that computes the same.

    Attributes:
        forward: (B,3,S,S) -> the logits, or the output that stands for them where the network has no classifier.
        size: S in pixels.
        model, options: of `create_model`.
        classifies: whether the output is one of logits.
        names: of the tensors' keys.
        official: images/s of the published code itself, evaluation at batch 32 and forward and backward at batch 16,
            on two cores of an AMD EPYC with AVX-512; None where it was not measured with PyTorch.
    """

    forward: Callable[[Published, Tensor], Tensor]
    size: int
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    classifies: bool = True
    names: Names = TORCH
    official: tuple[float, float] | None = None


def _biformer(name: str, size: biformer.Size, official: tuple[float, float]) -> Yardstick:
    return Yardstick(forward=lambda p, x: biformer.biformer(p, x, size), size=224, model=name, official=official)


IR50 = Yardstick(
    forward=lambda p, x: ir50.ir50(p, x)[-1],
    size=112,
    model="ir50",
    options={"num_classes": 0, "stages": 3},
    classifies=False,
    official=(13.9, 4.9),
)
"""The one that the others' speed is compared with."""

YARDSTICKS = {
    "ddamfn": Yardstick(forward=lambda p, x: ddamfn.ddamfn(p, x)[0], size=112, model="ddamfn", official=(34.5, 11.6)),
    "mfn": Yardstick(
        forward=ddamfn.mfn,
        size=112,
        model="mfn",
        options={"num_classes": 0},
        classifies=False,
        official=(37.1, 11.7),
    ),
    "poster_v2": Yardstick(forward=poster_v2.poster_v2, size=224, model="poster_v2", official=(8.0, 3.1)),
    "ir50": IR50,
    "mobilefacenet": Yardstick(
        forward=lambda p, x: mobilefacenet.mobilefacenet(p, x)[-1],
        size=112,
        model="mobilefacenet_landmarks",
        options={"num_classes": 0},
        classifies=False,
        official=(90.0, 36.0),
    ),
    "dynamic_vit_tiny": _biformer("dynamic_vit_tiny", biformer.TINY, (9.9, 2.5)),
    "dynamic_vit_small": _biformer("dynamic_vit_small", biformer.SMALL, (5.4, 1.3)),
    "dynamic_vit_base": _biformer("dynamic_vit_base", biformer.BASE, (2.5, 0.66)),
    "vit_b16": Yardstick(forward=vit.vit_b16, size=224, model="vit_b16"),
    "resnet34v2": Yardstick(forward=lhc.resnet34v2, size=224, model="resnet34v2", names=KERAS),
    "lhc_net": Yardstick(forward=lhc.lhc_net, size=224, model="lhc_net", names=KERAS),
}
"""By the name that `fer bench models` knows them by."""
