"""IR, MobileFaceNet, ResNet-50, BiFormer and ViT-B/16 as their published code names them.

MobileFaceNet and ViT-B/16 are published in several layouts.

POSTER's published models hold the first two under prefixes of their own: `ir_rename` and `mobilefacenet_rename` serve
them too. Their weights before training come from files of the branches alone: `fer.weights.parts`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fer.models.base import IMAGENET_MEAN, IMAGENET_STD
from fer.models.ir import IR18, IR50
from fer.weights.layouts.base import Layout, channels_first

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


def _classes_of(key: str, without: int | None = None) -> Callable[[Mapping[str, Tensor]], dict[str, Any]]:
    """`Layout.options` for the number of classes alone, that of the rows of the classifier."""
    return lambda published: {"num_classes": published[key].shape[0] if key in published else without}


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
    options=_classes_of("fc.weight", without=0),
)

IR50_LAYOUT = Layout(
    rename=(*ir_rename(), *_IR_HEAD),
    options=lambda published: {**_classes_of("fc.weight", without=0)(published), "stages": _ir50_stages(published)},
    adapt=_without_dead_head,
)

_PAPERS_UNITS = ("down1", *(f"stage1.{unit}" for unit in range(4)),
                 "down2", *(f"stage2.{unit}" for unit in range(6)),
                 "down3", *(f"stage3.{unit}" for unit in range(2)))  # fmt: skip
_PAPERS_LAYERS = (*(f"{conv}.{layer}" for conv in ("expand", "depthwise") for layer in ("conv", "bn", "act")),
                  "project.conv", "project.bn")  # fmt: skip

MOBILEFACENET_112X96 = Layout(
    sign="linear7.conv.weight",
    rename=(
        (r"^conv1\.", "features.stem."),
        (r"^dw_conv1\.", "features.stem_dw."),
        (r"^conv2\.", "features.out."),
        *((rf"^blocks\.{number}\.conv\.", f"features.{unit}.") for number, unit in enumerate(_PAPERS_UNITS)),
        *(
            (rf"^(features\.(?:down\d|stage\d\.\d))\.{number}\.", rf"\1.{layer}.")
            for number, layer in enumerate(_PAPERS_LAYERS)
        ),
        (r"\.prelu\.", ".act."),
    ),
    adapt=lambda published: {key: one for key, one in published.items() if not re.match(r"linear[17]\.", key)},
    options=lambda published: {"num_classes": None},
    head=(r"(head|fc)\..*",),
)
"""Of Xiaoccer/MobileFaceNet_Pytorch, the paper's network for crops of 112 x 96: its head has no place in ours."""

MOBILEFACENET = Layout(
    variants=(MOBILEFACENET_112X96,),
    rename=(
        *mobilefacenet_rename(),
        (r"^(?:output_layer\.)?conv_6_dw\.", "head.pool."),
        (r"^(?:output_layer\.)?linear\.", "head.embed."),
        (r"^(?:output_layer\.)?bn\.", "head.bn."),
    ),
    options=_classes_of("fc.weight", without=0),
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
    options=_classes_of("fc.weight"),
    head=(r"fc\..*",),
)
"""The names of torchvision and of timm."""

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
    options=_classes_of("head.weight"),
    head=(r"head\..*",),
)
"""Of `checkpoint["model"]`. Neither the input size nor the number of regions nor topk shows in the tensors."""


def _with_our_pixels(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """torchvision's ViT expects ImageNet's mean and standard deviation, ours pixels x in [-1, 1].

    (0.5 x + 0.5 - mean) / std goes into the patch embedding, which pads nothing: the same function, but for rounding.
    """
    if not {"conv_proj.weight", "conv_proj.bias"} <= published.keys():
        return published
    weight, bias = (published[f"conv_proj.{kind}"].double() for kind in ("weight", "bias"))
    mean, std = (weight.new_tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    own = {"weight": weight * (0.5 / std), "bias": bias + (weight * ((0.5 - mean) / std)).sum((1, 2, 3))}
    return {**published, **{f"conv_proj.{kind}": one.to(published["conv_proj.bias"]) for kind, one in own.items()}}


VIT_TORCHVISION = Layout(
    sign="conv_proj.weight",
    rename=(
        (r"^conv_proj\.", "patches."),
        (r"^class_token$", "transformer.cls_token"),
        (r"^encoder\.pos_embedding$", "transformer.positions"),
        (r"^encoder\.ln\.", "transformer.norm."),
        (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"transformer.blocks.\1."),
        (r"\.ln_(\d)\.", r".norm\1."),
        (r"\.self_attention\.in_proj_", ".attention.qkv."),
        (r"\.self_attention\.out_proj\.", ".attention.proj."),
        (r"\.mlp\.(?:linear_1|0)\.", ".mlp.fc1."),
        (r"\.mlp\.(?:linear_2|3)\.", ".mlp.fc2."),
        (r"^heads\.head\.", "head."),
    ),
    adapt=_with_our_pixels,
    options=_classes_of("heads.head.weight"),
    head=(r"head\..*",),
)
"""The files name the layers of an MLP linear_1 and linear_2, torchvision since 0.14 names them 0 and 3."""


def _from_jax(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Kernels in PyTorch's shape, the heads of attention side by side, queries, keys and values in one tensor.

    Before fine-tuning a hidden layer stands before the classifier: both are left out.
    """
    pretraining = ("pre_logits/", "head/") if "pre_logits/kernel" in published else ()
    adapted: dict[str, Tensor] = {}
    for key, tensor in published.items():
        if key.startswith(pretraining):
            continue
        if re.search("/(query|key|value)/", key):
            tensor = tensor.flatten(-2)
        elif key.endswith("/out/kernel"):
            tensor = tensor.flatten(0, 1)
        adapted[key] = channels_first(tensor) if key.endswith("/kernel") else tensor
    for query in [key for key in adapted if "/query/" in key]:
        three = [query.replace("/query/", f"/{part}/") for part in ("query", "key", "value")]
        if adapted.keys() >= set(three):  # one that is missing is named by the error
            adapted[query.replace("/query/", "/qkv/")] = torch.cat([adapted.pop(key) for key in three])
    return adapted


VIT_JAX = Layout(
    sign="embedding/kernel",
    rename=(
        (r"^embedding/", "patches/"),
        (r"^cls$", "transformer/cls_token"),
        (r"^Transformer/posembed_input/pos_embedding$", "transformer/positions"),
        (r"^Transformer/encoder_norm/", "transformer/norm/"),
        (r"^Transformer/encoderblock_(\d+)/", r"transformer/blocks/\1/"),
        (r"/LayerNorm_0/", "/norm1/"),
        (r"/LayerNorm_2/", "/norm2/"),
        (r"/MultiHeadDotProductAttention_1/out/", "/attention/proj/"),
        (r"/MultiHeadDotProductAttention_1/", "/attention/"),
        (r"/MlpBlock_3/Dense_0/", "/mlp/fc1/"),
        (r"/MlpBlock_3/Dense_1/", "/mlp/fc2/"),
        (r"/(kernel|scale)$", "/weight"),
        (r"/", "."),
    ),
    adapt=_from_jax,
    options=lambda published: _classes_of("" if "pre_logits/kernel" in published else "head/bias")(published),
    head=(r"head\..*",),
)
"""Google's arrays (google-research/vision_transformer), for 224 pixels."""

VIT = Layout(
    variants=(VIT_TORCHVISION, VIT_JAX),
    rename=(
        (r"^patch_embed\.proj\.", "patches."),
        (r"^cls_token$", "transformer.cls_token"),
        (r"^pos_embed$", "transformer.positions"),
        (r"^(blocks|norm)\.", r"transformer.\1."),
        (r"\.attn\.", ".attention."),
    ),
    options=_classes_of("head.weight"),
    head=(r"head\..*",),
)
"""The names of timm's `vit_base_patch16_224`. Dynamic attention has the same tensors as full."""

LAYOUTS = {
    **dict.fromkeys(("dynamic_vit_base", "dynamic_vit_small", "dynamic_vit_tiny"), BIFORMER),
    "ir18": IR18_LAYOUT,
    "ir50": IR50_LAYOUT,
    "mobilefacenet": MOBILEFACENET,
    "mobilefacenet_landmarks": MOBILEFACENET,
    "resnet50": RESNET50,
    "vit_b16": VIT,
}
