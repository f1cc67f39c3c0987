"""POSTER V1 and POSTER V2 as their published code names them.

V1 has two published models: for RAF-DB (emotion_hyp.py) and for AffectNet (emotion_hyp_affect.py).
Of BTN no published layout is known: its repository holds no weights whose names could be read. A BTN starts from
POSTER V2's weights by `btn.poster.load_state_dict(convert("poster_v2", published))`, strictly.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from fer.weights.layouts.backbones import ir_rename, mobilefacenet_rename
from fer.weights.layouts.base import STATISTICS, Layout

_BRANCHES = (*mobilefacenet_rename("face_landback.", "landmarks."), *ir_rename("ir_back.", "image."))

_DEAD_HEADS = (
    rf"face_landback\.output_layer\.(conv_6_dw\.conv\.weight|linear\.weight|(conv_6_dw\.)?bn\.{STATISTICS})",
    rf"ir_back\.output_layer\.(3\.(weight|bias)|[04]\.{STATISTICS})",
)
"""Of both branches. The landmark network's runs, and its result is not used."""

_LANDMARK_HALF = ("attn_lm", "mlp2", "norm3", "norm4")


def _mixes_tokens(published: Mapping[str, Tensor]) -> bool:
    return any(re.fullmatch(r"pyramid_fuse\.blocks\.\d+\.block_[lms]\.conv\.weight", key) for key in published)


def _without_unread_half(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """AffectNet's model: without token mixing the landmark half of the last block's widest level is dead as well."""
    blocks = [int(key.split(".")[2]) for key in published if key.startswith("pyramid_fuse.blocks.")]
    if _mixes_tokens(published) or not blocks:
        return published
    unread = tuple(f"pyramid_fuse.blocks.{max(blocks)}.block_l.{part}." for part in _LANDMARK_HALF)
    return {key: tensor for key, tensor in published.items() if not key.startswith(unread)}


POSTER_V1 = Layout(
    rename=(
        *_BRANCHES,
        (r"^ir_layer\.", "image_proj."),
        (r"^pyramid_fuse\.pos_embed$", "positions"),
        (r"^pyramid_fuse\.", ""),
        (r"^downsample_m\.", "narrow.0."),
        (r"^downsample_s\.", "narrow.1."),
        (r"^(blocks\.\d+)\.upsample_m\.", r"\1.widen.0."),
        (r"^(blocks\.\d+)\.upsample_s\.", r"\1.widen.1."),
        (r"^(blocks\.\d+)\.block_l\.", r"\1.levels.0."),
        (r"^(blocks\.\d+)\.block_m\.", r"\1.levels.1."),
        (r"^(blocks\.\d+)\.block_s\.", r"\1.levels.2."),
        *(
            (rf"^(blocks\.\d+\.levels\.\d)\.{theirs}\.", rf"\1.{ours}.")
            for theirs, ours in (
                ("attn_img", "image.attention"),
                ("norm1", "image.norm1"),
                ("norm2", "image.norm2"),
                ("mlp1", "image.mlp"),
                ("attn_lm", "landmarks.attention"),
                ("norm3", "landmarks.norm1"),
                ("norm4", "landmarks.norm2"),
                ("mlp2", "landmarks.mlp"),
                ("conv", "mix"),
            )
        ),
        (r"^(blocks\..*\.attention)\.kv\.", r"\1.key_value."),
        (r"^se_block\.linear(\d)\.", r"gate.fc\1."),
        (r"^head\.linear\.", "head."),
    ),
    dead=(
        *_DEAD_HEADS,
        r"pyramid_fuse\.cls_token",
    ),
    options=lambda published: {
        "num_classes": published["head.linear.weight"].shape[0],
        "token_mixing": _mixes_tokens(published),
    },
    adapt=_without_unread_half,
)

POSTER_V2 = Layout(
    rename=(
        *_BRANCHES,
        *(
            (rf"^{theirs.format(number)}", f"fusions.{number - 1}.{ours}")
            for number in (1, 2, 3)
            for theirs, ours in (
                (r"conv{}\.", "down."),
                (r"window{}\.norm\.", "norm1."),
                (r"attn{}\.qkv\.", "attention.key_value."),
                (r"attn{}\.relative_position_bias_table$", "attention.position_bias.table"),
                (r"attn{}\.proj\.", "attention.proj."),
                (r"ffn{}\.gamma1$", "attention.proj.scale"),
                (r"ffn{}\.gamma2$", "mlp.fc2.scale"),
                (r"ffn{}\.norm\.", "norm2."),
                (r"ffn{}\.mlp\.", "mlp."),
            )
        ),
        (r"^last_face_conv\.", "fusions.2.landmark_conv."),
        (r"^embed_q\.", "embeddings.0."),
        (r"^embed_k\.", "embeddings.1."),
        (r"^embed_v\.proj\.", "embeddings.2.0."),
        (r"^VIT\.se_block\.linear(\d)\.", r"gate.fc\1."),
        (r"^VIT\.head\.linear\.", "head."),
        (r"^VIT\.pos_embed$", "vit.positions"),
        (r"^VIT\.", "vit."),
        (r"^(vit\.blocks\.\d+)\.attn\.", r"\1.attention."),
    ),
    dead=(
        *_DEAD_HEADS,
        r"VIT\.(IRLinear[12]|patch_embed\.proj|blocks\.\d+\.conv)\.(weight|bias)",
        r"VIT\.(CON1|eca_block\.conv)\.weight",
    ),
    derivable=(r"attn\d\.relative_position_index",),
    options=lambda published: {
        "num_classes": published["VIT.head.linear.weight"].shape[0],
        "vit_depth": len({key.split(".")[2] for key in published if key.startswith("VIT.blocks.")}),
    },
)

LAYOUTS = {
    **dict.fromkeys(("poster_v1_tiny", "poster_v1_small", "poster_v1_large"), POSTER_V1),
    "poster_v2": POSTER_V2,
}
