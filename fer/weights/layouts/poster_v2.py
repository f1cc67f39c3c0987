"""POSTER V2 as its published code names it.

Of BTN no published layout is known: its repository holds no weights whose names could be read. A BTN starts from
POSTER V2's weights by `btn.poster.load_state_dict(convert("poster_v2", published))`, strictly.
"""

from fer.weights.layouts.backbones import LANDMARK_HEAD_DEAD, ir_rename, mobilefacenet_rename
from fer.weights.layouts.base import STATISTICS, Layout

POSTER_V2 = Layout(
    rename=(
        *mobilefacenet_rename("face_landback.", "landmarks."),
        *ir_rename("ir_back.", "image."),
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
        LANDMARK_HEAD_DEAD,
        rf"ir_back\.output_layer\.(3\.(weight|bias)|[04]\.{STATISTICS})",
        r"VIT\.(IRLinear[12]|patch_embed\.proj|blocks\.\d+\.conv)\.(weight|bias)",
        r"VIT\.(CON1|eca_block\.conv)\.weight",
    ),
    derivable=(r"attn\d\.relative_position_index",),
    options=lambda published: {
        "num_classes": published["VIT.head.linear.weight"].shape[0],
        "vit_depth": len({key.split(".")[2] for key in published if key.startswith("VIT.blocks.")}),
    },
)

LAYOUTS = {"poster_v2": POSTER_V2}
