"""The costs that the papers print, and the counting conventions under which our models reproduce them.

    paper = published_costs("poster_v2", cost)
    paper.total                  # 58,316,594 parameters in the published module
    [(number.printed, number.ours) for number in paper.numbers]   # ("43.7 M", "43.724 M"), ("8.4 G", "8.482 G")

Every paper counts in its own way, and two of them differently from one row of a table to the next. All are for
classifiers of 7 classes (the vision transformer's head makes no difference in the printed digits).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fer.models.cost import Cost

_UNITS = {"M": 1e6, "G": 1e9, "%": 1e-2}


@dataclass(frozen=True, kw_only=True)
class _Convention:
    """How a printed number was counted. `count` takes our cost and the published module; `per_mega` is M."""

    text: str
    count: Callable[[Cost, "_Paper"], float]
    per_mega: float = 1e6


@dataclass(frozen=True, kw_only=True)
class _Paper:
    """What the published module has and ours has not, and its printed numbers.

    dead: parameters that no output depends on, by the name of the published module that holds them.
    keras: whether the running statistics count as weights.
    discarded_parameters: of layers that run and whose result is not used.
    uncounted_operations: what thop counts of the published module and our count by its rules does not.
    """

    numbers: tuple[tuple[str, str, _Convention], ...] = ()
    dead: Mapping[str, int] = field(default_factory=dict)
    keras: bool = False
    discarded_parameters: int = 0
    uncounted_operations: int = 0

    def total(self, cost: Cost) -> int:
        return cost.parameters + sum(self.dead.values()) + (cost.statistics if self.keras else 0)


@dataclass(frozen=True)
class PrintedNumber:
    """As printed, where, our count under its convention, and the convention in words."""

    printed: str
    where: str
    ours: str
    convention: str


@dataclass(frozen=True, kw_only=True)
class PublishedCosts:
    """Of one model. `total`: parameters of the published module; `dead`: those without effect, by module."""

    total: int
    dead: Mapping[str, int]
    numbers: tuple[PrintedNumber, ...]


def published_costs(name: str, cost: Cost) -> PublishedCosts | None:
    """The published costs for our `cost` of model `name` with 7 classes; None for a model that is not published."""
    paper = _PAPERS.get(name)
    if paper is None:
        return None
    numbers = tuple(
        PrintedNumber(
            printed=printed, where=where, ours=_ours(printed, convention, cost, paper), convention=convention.text
        )
        for printed, where, convention in paper.numbers
    )
    return PublishedCosts(total=paper.total(cost), dead=paper.dead, numbers=numbers)


def _ours(printed: str, convention: _Convention, cost: Cost, paper: _Paper) -> str:
    """Our count in the unit of the printed number, to three decimals."""
    unit = printed.split()[1]
    divisor = convention.per_mega if unit == "M" else _UNITS[unit]
    return f"{convention.count(cost, paper) / divisor:.3f} {unit}"


_TOTAL = _Convention(
    text="all parameters, dead ones too; printed truncated", count=lambda cost, paper: paper.total(cost)
)
_LIVE = _Convention(text="live parameters, in 10^6", count=lambda cost, paper: cost.parameters)
_LIVE_MI = _Convention(text="live parameters, in 2^20", count=lambda cost, paper: cost.parameters, per_mega=2**20)
_KERAS = _Convention(text="all Keras weights, BatchNorm statistics too", count=lambda cost, paper: paper.total(cost))
_LAYERS = _Convention(
    text="thop: parameters of the layers that ran, the unread landmark head too",
    count=lambda cost, paper: cost.parameters - cost.loose + paper.discarded_parameters,
)
_MACS = _Convention(text="multiply-accumulates", count=lambda cost, paper: cost.operations.macs)
_TWICE = _Convention(text="two operations a multiply-accumulate", count=lambda cost, paper: 2 * cost.operations.macs)
_THOP_TWICE = _Convention(
    text="thop, two operations a MAC; printed truncated",
    count=lambda cost, paper: 2 * (cost.operations.thop + paper.uncounted_operations),
)
_TORCHSTAT = _Convention(
    text="torchstat: MACs, biases, normalization, activation", count=lambda cost, paper: cost.operations.torchstat
)
_THOP = _Convention(
    text="thop: MACs of layers, no attention products; printed truncated",
    count=lambda cost, paper: cost.operations.thop + paper.uncounted_operations,
)
_ATTENTION_SHARE = _Convention(
    text="4,805,444 in the attention blocks, of all Keras weights",
    count=lambda cost, paper: 4_805_444 / paper.total(cost),
)

_LANDMARK_HEAD = 96_016
_IR_HEAD = 12_847_616
_UNUSED_IN_MIX_CONV = 29_184

# By thop's rules: depthwise 7x7, BatchNorm, linear, BatchNorm.
_LANDMARK_HEAD_OPERATIONS = 512 * 49 + 4 * 512 + 512 * 136 + 4 * 136


def _poster_v1(parameters: str, operations: str, depth: int) -> _Paper:
    """thop takes a transposed convolution of stride 2 for twice its MACs: that of 100 tokens to a width of 512, and to
    256, a block. The published last LayerNorm takes all 100 tokens, ours the one that is read.
    """
    return _Paper(
        dead={
            "ir_back.output_layer": _IR_HEAD,
            "face_landback.output_layer": _LANDMARK_HEAD,
            "pyramid_fuse.cls_token": 512,
        },
        uncounted_operations=_LANDMARK_HEAD_OPERATIONS + depth * 100 * 100 * (512 + 256) + 4 * 99 * 512,
        numbers=((parameters, "POSTER V2, Table 6", _TOTAL), (operations, "POSTER V2, Table 6", _THOP_TWICE)),
    )


_PAPERS = {
    "poster_v1_tiny": _poster_v1("52.2 M", "13.6 G", depth=4),
    "poster_v1_small": _poster_v1("62.0 M", "14.7 G", depth=6),
    "poster_v1_large": _poster_v1("71.8 M", "15.7 G", depth=8),
    "poster_v2": _Paper(
        dead={
            "ir_back.output_layer": _IR_HEAD,
            "face_landback.output_layer": _LANDMARK_HEAD,
            "VIT.IRLinear1": 787_200,
            "VIT.IRLinear2": 393_728,
            "VIT.patch_embed.proj": 197_376,
            "VIT.CON1": 196_608,
            "VIT.blocks.{0,1}.conv": 44_104,
            "VIT.eca_block.conv": 5,
        },
        discarded_parameters=_LANDMARK_HEAD,
        # The softmax layers of the three levels, over 784, 196 and 49 keys in 2, 4 and 8 heads: three operations an
        # element, but one addition a row less.
        uncounted_operations=(
            _LANDMARK_HEAD_OPERATIONS + sum(h * n * (3 * n - 1) for h, n in ((2, 784), (4, 196), (8, 49)))
        ),
        numbers=(("43.7 M", "POSTER V2, Table 6", _LAYERS), ("8.4 G", "POSTER V2, Table 6", _THOP)),
    ),
    "mobilefacenet": _Paper(
        numbers=(("1.148 M", "DDAMFN, Table 2", _LIVE_MI), ("230.34 M", "DDAMFN, Table 2", _TORCHSTAT)),
    ),
    "ir18": _Paper(numbers=(("16.78 M", "DDAMFN, Table 2", _LIVE_MI), ("2.6 G", "DDAMFN, Table 2", _TORCHSTAT))),
    "ir50": _Paper(numbers=(("41.56 M", "DDAMFN, Table 2", _LIVE_MI), ("6.31 G", "DDAMFN, Table 2", _TORCHSTAT))),
    "mfn": _Paper(
        dead={"conv_dw.bn, conv_dw.prelu": _UNUSED_IN_MIX_CONV},
        numbers=(("3.973 M", "DDAMFN, Table 2", _LIVE_MI), ("550.74 M", "DDAMFN, Table 2", _TORCHSTAT)),
    ),
    "ddamfn": _Paper(
        dead={"conv_dw.bn, conv_dw.prelu": _UNUSED_IN_MIX_CONV, "cat_head{0,1}.CoordAtt.Linear": 52_224, "bn": 14},
        numbers=(("4.106 M", "DDAMFN, Table 2", _LIVE), ("551.22 M", "DDAMFN, Table 2", _TORCHSTAT)),
    ),
    "resnet34v2": _Paper(keras=True, numbers=(("27.6 M", "LHC-Net, Results 2", _KERAS),)),
    "lhc_net": _Paper(
        keras=True,
        numbers=(("32.4 M", "LHC-Net, Results 2", _KERAS), ("14.8 %", "LHC-Net, Results 2", _ATTENTION_SHARE)),
    ),
    "lhc_netc": _Paper(
        keras=True,
        numbers=(("32.4 M", "LHC-Net, Results 2", _KERAS), ("14.8 %", "LHC-Net, Results 2", _ATTENTION_SHARE)),
    ),
    "vit_b16": _Paper(numbers=(("35.1 G", "dynamic attention, FLOPS", _TWICE),)),
    "dynamic_vit_tiny": _Paper(),
    "dynamic_vit_small": _Paper(),
    "dynamic_vit_base": _Paper(numbers=(("9.8 G", "dynamic attention, FLOPS", _MACS),)),
}
