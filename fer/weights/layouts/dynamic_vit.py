"""BiFormer and ViT-B/16 as their published code names them."""

from fer.weights.layouts.base import Layout

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
"""The names of timm's `vit_base_patch16_224`, which the weights are handed around in; the originals are JAX arrays.
Dynamic attention has the same tensors as full."""

LAYOUTS = {
    "dynamic_vit_base": BIFORMER,
    "dynamic_vit_small": BIFORMER,
    "dynamic_vit_tiny": BIFORMER,
    "vit_b16": VIT,
}
