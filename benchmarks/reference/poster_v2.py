"""POSTER V2 as published: github.com/Talented-Q/POSTER_V2, `models/PosterV2_7cls.py` and `models/vit_model.py`.

The landmark network runs to its landmarks, which nothing uses.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reference.ir50 import ir50
from benchmarks.reference.mobilefacenet import mobilefacenet
from benchmarks.reference.published import Published

LEVELS = ((1, 64, 2, 28, 0.0), (2, 128, 4, 14, 0.125), (3, 256, 8, 7, 0.25))
"""Number, width, heads, window and drop-path rate."""


def poster_v2(p: Published, x: Tensor, *, num_classes: int = 7) -> Tensor:
    """(B,3,S,S) -> logits (B,N)."""
    face = F.interpolate(x, size=112)
    face1, face2, face3, _ = mobilefacenet(p.within("face_landback.", frozen=True), face)
    face3 = p.conv(face3, "last_face_conv", 256, 3, padding=1, bias=True)
    image = ir50(p.within("ir_back."), x)
    fused = [
        _fuse(p, level, query.permute(0, 2, 3, 1), key)
        for level, query, key in zip(LEVELS, (face1, face2, face3), image, strict=True)
    ]
    o1, o2, o3 = (level.permute(0, 3, 1, 2) for level in fused)
    o1 = p.conv(o1, "embed_q.0", 768, 3, stride=2, padding=1, bias=True)
    o1 = p.conv(o1, "embed_q.1", 768, 3, stride=2, padding=1, bias=True)
    o2 = p.conv(o2, "embed_k.0", 768, 3, stride=2, padding=1, bias=True)
    o3 = p.conv(o3, "embed_v.proj", 768, bias=True)
    tokens = torch.cat([o.flatten(2).transpose(1, 2) for o in (o1, o2, o3)], dim=1)  # (B,147,768)
    return _vit(p.within("VIT."), tokens, num_classes)


def _fuse(p: Published, level: tuple[int, int, int, int, float], face: Tensor, image: Tensor) -> Tensor:
    """Landmark features (B,W,W,C) as queries of the image's -> (B,W,W,C)."""
    number, width, heads, window, rate = level
    image = p.conv(image, f"conv{number}", width, 3, stride=2, padding=1, bias=True).permute(0, 2, 3, 1)
    batch, height, _, _ = image.shape
    tokens, head_width, windows = window * window, width // heads, height // window
    shortcut = p.layer_norm(image, f"window{number}.norm", eps=1e-5)
    x = shortcut.view(batch, windows, window, windows, window, width).permute(0, 1, 3, 2, 4, 5).contiguous()
    x = x.view(-1, tokens, width)

    attn = p.within(f"attn{number}.")
    query = (
        face.reshape(batch, 1, tokens, heads, head_width).permute(0, 1, 3, 2, 4).repeat(1, windows * windows, 1, 1, 1)
    )
    query = query.reshape(-1, heads, tokens, head_width) * head_width**-0.5
    key, value = attn.linear(x, "qkv", 2 * width).reshape(-1, tokens, 2, heads, head_width).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-2, -1)
    table = attn.tensor("relative_position_bias_table", (2 * window - 1) ** 2, heads, fill=0.0)
    bias = table[_relative_position(window, table.device).view(-1)].view(tokens, tokens, heads)
    scores = torch.softmax(scores + bias.permute(2, 0, 1).contiguous().unsqueeze(0), dim=-1)
    x = attn.linear((scores @ value).transpose(1, 2).reshape(-1, tokens, width), "proj", width)

    ffn = p.within(f"ffn{number}.")
    x = x.view(batch, windows, windows, window, window, width).permute(0, 1, 3, 2, 4, 5).contiguous()
    x = x.view(batch, height, height, width)
    x = shortcut + _drop_path(p, ffn.tensor("gamma1", width, fill=1e-5) * x, rate)
    y = _mlp(ffn.within("mlp."), ffn.layer_norm(x, "norm", eps=1e-5))
    return x + _drop_path(p, ffn.tensor("gamma2", width, fill=1e-5) * y, rate)


def _vit(p: Published, x: Tensor, num_classes: int) -> Tensor:
    batch, count, width = x.shape
    heads, tokens = 8, count + 1
    x = torch.cat((p.tensor("cls_token", 1, 1, width, fill=0.0).expand(batch, -1, -1), x), dim=1)
    x = x + p.tensor("pos_embed", 1, tokens, width, fill=0.0)
    for block in range(2):
        b = p.within(f"blocks.{block}.")
        qkv = b.linear(b.layer_norm(x, "norm1", eps=1e-6), "attn.qkv", 3 * width)
        query, key, value = qkv.reshape(batch, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        scores = ((query @ key.transpose(-2, -1)) * (width // heads) ** -0.5).softmax(dim=-1)
        x = x + b.linear((scores @ value).transpose(1, 2).reshape(batch, tokens, width), "attn.proj", width)
        x = x + _mlp(b.within("mlp."), b.layer_norm(x, "norm2", eps=1e-6))
    x = p.layer_norm(x, "norm", eps=1e-6)[:, 0]
    gate = p.linear(F.relu(p.linear(x, "se_block.linear1", width)), "se_block.linear2", width).sigmoid()
    return p.linear(x * gate, "head.linear", num_classes)


def _mlp(p: Published, x: Tensor) -> Tensor:
    width = x.shape[-1]
    return p.linear(F.gelu(p.linear(x, "fc1", 4 * width)), "fc2", width)


def _drop_path(p: Published, x: Tensor, rate: float) -> Tensor:
    if rate == 0 or not p.training:
        return x
    kept = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device).add(1 - rate).floor()
    return x.div(1 - rate) * kept


def _relative_position(window: int, device: torch.device) -> Tensor:
    """(W*W, W*W): the row of the bias table for each query and key; a buffer in the published code."""
    key = (window, device)
    if key not in _RELATIVE_POSITIONS:
        with torch.inference_mode(False):  # else evaluation would leave a tensor that training cannot use
            row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
            row, column = row.flatten(), column.flatten()
            down = row[:, None] - row[None, :] + window - 1
            right = column[:, None] - column[None, :] + window - 1
            _RELATIVE_POSITIONS[key] = (down * (2 * window - 1) + right).to(device)
    return _RELATIVE_POSITIONS[key]


_RELATIVE_POSITIONS: dict[tuple[int, torch.device], Tensor] = {}
