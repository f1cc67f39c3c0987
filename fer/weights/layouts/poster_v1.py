"""POSTER V1 as its published code names it, for RAF-DB (emotion_hyp.py) and AffectNet (emotion_hyp_affect.py)."""

import re
from collections.abc import Mapping

from torch import Tensor

from fer.weights.layouts.backbones import LANDMARK_HEAD_DEAD, ir_rename, mobilefacenet_rename
from fer.weights.layouts.base import STATISTICS, Layout

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
        *mobilefacenet_rename("face_landback.", "landmarks."),
        *ir_rename("ir_back.", "image."),
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
        LANDMARK_HEAD_DEAD,
        rf"ir_back\.output_layer\.(3\.(weight|bias)|[04]\.{STATISTICS})",
        r"pyramid_fuse\.cls_token",
    ),
    options=lambda published: {
        "num_classes": published["head.linear.weight"].shape[0],
        "token_mixing": _mixes_tokens(published),
    },
    adapt=_without_unread_half,
)

LAYOUTS = dict.fromkeys(("poster_v1_tiny", "poster_v1_small", "poster_v1_large"), POSTER_V1)
