"""IR, MobileFaceNet, ResNet-50, BiFormer and ViT-B/16 as their published code names them.

POSTER's published models hold the first two under prefixes of their own: `ir_rename` and `mobilefacenet_rename` serve
them too. Their weights before training come from files of the branches alone: `fer.weights.parts`.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from fer.models.ir import IR18, IR50
from fer.weights.layouts.base import Layout

_IR_UNIT = {
    "res_layer.0": "bn",
    "res_layer.1": "conv",
    "res_layer.2": "act",
    "res_layer.3": "project.conv",
    "res_layer.4": "project.bn",
    "shortcut_layer.0": "shortcut.conv",
    "shortcut_layer.1": "shortcut.bn",
}

_MOBILEFACENET = {
    "conv1": "stem",
    "conv2_dw": "stem_dw",
    "conv_23": "down1",
    "conv_3.model": "stage1",
    "conv_34": "down2",
    "conv_4.model": "stage2",
    "conv_45": "down3",
    "conv_5.model": "stage3",
    "conv_6_sep": "out",
}

Rename = tuple[tuple[str, str], ...]


def ir_rename(theirs: str = "", ours: str = "features.", depths: tuple[int, ...] = IR50.depths) -> Rename:
    """`Layout.rename` from the published names under the prefix `theirs` to those of `IRFeatures` under `ours`.

    The units are body1.0, body2.0, ... (POSTER V2), or body.0 ... body.23 through all stages (face.evoLVe, POSTER).
    """
    prefix, our_stage = re.escape(theirs), re.escape(ours) + r"stage\d\.\d+"
    numbered = (f"stage{stage}.{unit}" for stage, depth in enumerate(depths, 1) for unit in range(depth))
    return (
        (rf"^{prefix}input_layer\.0\.", f"{ours}stem.conv."),
        (rf"^{prefix}input_layer\.1\.", f"{ours}stem.bn."),
        (rf"^{prefix}input_layer\.2\.", f"{ours}stem.act."),
        (rf"^{prefix}body(\d)\.", rf"{ours}stage\1."),
        *((rf"^{prefix}body\.{number}\.", f"{ours}{unit}.") for number, unit in enumerate(numbered)),
        *((rf"^({our_stage})\.{re.escape(name)}\.", rf"\1.{our_name}.") for name, our_name in _IR_UNIT.items()),
    )


def mobilefacenet_rename(theirs: str = "", ours: str = "features.") -> Rename:
    """`Layout.rename` from the published names under `theirs` to those of `MobileFaceNetFeatures` under `ours`."""
    prefix, our_prefix = re.escape(theirs), re.escape(ours)
    return (
        *((rf"^{prefix}{re.escape(name)}\.", f"{ours}{our_name}.") for name, our_name in _MOBILEFACENET.items()),
        (rf"^({our_prefix}(?:down\d|stage\d\.\d+))\.conv\.", r"\1.expand."),
        (rf"^({our_prefix}(?:down\d|stage\d\.\d+))\.conv_dw\.", r"\1.depthwise."),
        (rf"^({our_prefix}.*)\.prelu\.", r"\1.act."),
    )


def _num_classes(published: Mapping[str, Tensor]) -> int:
    return published["fc.weight"].shape[0] if "fc.weight" in published else 0


def _ir50_stages(published: Mapping[str, Tensor]) -> int:
    return 4 if any(key.startswith(("body4.", "body.21.", "body.22.", "body.23.")) for key in published) else 3


def _without_dead_head(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The files of the three-stage network hold the head of the four-stage one, which nothing depends on."""
    if _ir50_stages(published) == 4:
        return published
    return {key: tensor for key, tensor in published.items() if not key.startswith("output_layer.")}


_IR_HEAD = (
    (r"^output_layer\.0\.", "head.bn1."),
    (r"^output_layer\.3\.", "head.embed."),
    (r"^output_layer\.4\.", "head.bn2."),
)

IR18_LAYOUT = Layout(
    rename=(*ir_rename(depths=IR18.depths), *_IR_HEAD),
    options=lambda published: {"num_classes": _num_classes(published)},
)

IR50_LAYOUT = Layout(
    rename=(*ir_rename(), *_IR_HEAD),
    options=lambda published: {"num_classes": _num_classes(published), "stages": _ir50_stages(published)},
    adapt=_without_dead_head,
)

MOBILEFACENET = Layout(
    rename=(
        *mobilefacenet_rename(),
        (r"^(?:output_layer\.)?conv_6_dw\.", "head.pool."),
        (r"^(?:output_layer\.)?linear\.", "head.embed."),
        (r"^(?:output_layer\.)?bn\.", "head.bn."),
    ),
    options=lambda published: {"num_classes": _num_classes(published)},
)

RESNET50 = Layout(
    rename=(
        (r"^(conv|bn)1\.", r"stem.\1."),
        (r"^layer1\.", "stages.0."),
        (r"^layer2\.", "stages.1."),
        (r"^layer3\.", "stages.2."),
        (r"^layer4\.", "stages.3."),
        (r"\.(conv|bn)1\.", r".reduce.\1."),
        (r"\.(conv|bn)2\.", r".spatial.\1."),
        (r"\.(conv|bn)3\.", r".expand.\1."),
        (r"\.downsample\.0\.", ".shortcut.conv."),
        (r"\.downsample\.1\.", ".shortcut.bn."),
    ),
    options=lambda published: {"num_classes": published["fc.weight"].shape[0]},
)

BIFORMER = Layout(
    rename=(
        (r"^downsample_layers\.0\.0\.", "stem.0.conv."),
        (r"^downsample_layers\.0\.1\.", "stem.0.bn."),
        (r"^downsample_layers\.0\.3\.", "stem.2.conv."),
        (r"^downsample_layers\.0\.4\.", "stem.2.bn."),
        *(
            (rf"^downsample_layers\.{number}\.{child}\.", rf"halvings.{number - 1}.{name}.")
            for number in (1, 2, 3)
            for child, name in enumerate(("conv", "bn"))
        ),
        (r"\.pos_embed\.", ".position."),
        (r"\.attn\.qkv\.qkv\.", ".attn.qkv."),
        (r"\.attn\.wo\.", ".attn.proj."),
        (r"\.attn\.lepe\.", ".attn.local."),
        (r"\.attn\.", ".attention."),
        (r"\.mlp\.0\.", ".mlp.fc1."),
        (r"\.mlp\.3\.", ".mlp.fc2."),
    ),
    options=lambda published: {"num_classes": published["head.weight"].shape[0]},
)
"""Of `checkpoint["model"]`. Neither the input size nor the number of regions nor topk shows in the tensors."""

VIT = Layout(
    rename=(
        (r"^patch_embed\.proj\.", "patches."),
        (r"^cls_token$", "transformer.cls_token"),
        (r"^pos_embed$", "transformer.positions"),
        (r"^(blocks|norm)\.", r"transformer.\1."),
        (r"\.attn\.", ".attention."),
    ),
    options=lambda published: {"num_classes": published["head.weight"].shape[0]},
)
"""The names of timm's `vit_base_patch16_224`, in which the weights are distributed; the originals are JAX arrays.
Dynamic attention has the same tensors as full."""

LAYOUTS = {
    **dict.fromkeys(("dynamic_vit_base", "dynamic_vit_small", "dynamic_vit_tiny"), BIFORMER),
    "ir18": IR18_LAYOUT,
    "ir50": IR50_LAYOUT,
    "mobilefacenet": MOBILEFACENET,
    "mobilefacenet_landmarks": MOBILEFACENET,
    "resnet50": RESNET50,
    "vit_b16": VIT,
}
