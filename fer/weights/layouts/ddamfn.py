"""DDAMFN and MFN as their published code names them."""

from fer.weights.layouts.base import STATISTICS, Layout

_MIX_BLOCK_RENAME = (
    (r"\.CA\.conv1\.", ".attention.gate.squeeze."),
    (r"\.CA\.bn1\.", ".attention.gate.bn."),
    (r"\.CA\.conv2\.", ".attention.gate.expand_h."),
    (r"\.CA\.conv3\.", ".attention.gate.expand_w."),
    (r"\.conv_dw\.mixed_depthwise_conv\.", ".mix.convs."),
    (r"^(features\.(?:down|stage)\d\..*?)conv\.(conv|bn|prelu)\.", r"\1expand.\2."),
    (r"\.prelu\.", ".act."),
)
_MIX_BLOCK_DEAD = (rf".*\.conv_dw\.bn\.{STATISTICS}", r".*\.conv_dw\.prelu\.weight")

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
        rf"cat_head\d+\.CoordAtt\.Linear\.bn\.{STATISTICS}",
        rf"bn\.{STATISTICS}",
    ),
    options=lambda published: {
        "num_classes": published["fc.weight"].shape[0],
        "num_heads": len({key.split(".")[0] for key in published if key.startswith("cat_head")}),
    },
)

LAYOUTS = {"ddamfn": DDAMFN, "mfn": MFN}
