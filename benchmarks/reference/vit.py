"""ViT-B/16 with the tensors of timm's `vit_base_patch16_224`, attention written out as its code did before fusion."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reference.published import Published


def vit_b16(p: Published, x: Tensor, *, num_classes: int = 7) -> Tensor:
    """(B,3,224,224) -> logits (B,N)."""
    batch, depth, heads, width = x.shape[0], 12, 12, 768
    x = p.conv(x, "patch_embed.proj", width, 16, stride=16, bias=True).flatten(2).transpose(1, 2)  # (B,196,768)
    tokens = x.shape[1] + 1
    x = torch.cat((p.tensor("cls_token", 1, 1, width, fill=0.0).expand(batch, -1, -1), x), dim=1)
    x = x + p.tensor("pos_embed", 1, tokens, width, fill=0.0)
    for number in range(depth):
        block = p.within(f"blocks.{number}.")
        qkv = block.linear(block.layer_norm(x, "norm1", eps=1e-6), "attn.qkv", 3 * width)
        query, key, value = qkv.reshape(batch, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        scores = ((query @ key.transpose(-2, -1)) * (width // heads) ** -0.5).softmax(dim=-1)
        x = x + block.linear((scores @ value).transpose(1, 2).reshape(batch, tokens, width), "attn.proj", width)
        y = block.linear(block.layer_norm(x, "norm2", eps=1e-6), "mlp.fc1", 4 * width)
        x = x + block.linear(F.gelu(y), "mlp.fc2", width)
    return p.linear(p.layer_norm(x, "norm", eps=1e-6)[:, 0], "head", num_classes)
