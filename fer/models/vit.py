"""ViT-B/16, the vision transformer, as published or with dynamic attention inside its encoder.

Paper: "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale"
Authors: Alexey Dosovitskiy, Lucas Beyer, Alexander Kolesnikov, Dirk Weissenborn, Xiaohua Zhai, and others
Venue: ICLR 2021, arXiv:2010.11929
Original repository: https://github.com/google-research/vision_transformer

The baseline of the slides "Efficient Facial Expression Recognition with Dynamic Attention", whose 35.1 GFLOPs are its
17.56 GMACs. `attention="dynamic"` follows the slides literally: the same encoder, in which every region of its 14 x 14
tokens attends to the `topk` regions most like it. That saves 4 % and not the slides' 72 %: at 197 tokens 95 % of the
arithmetic is in the linear layers. `fer.models.dynamic_vit` is the network with their 9.8.

Departures from the published code, and why:

* No dropout, which the published code uses when it trains on ImageNet and not when it fine-tunes.
* With dynamic attention the class token, which is in no region, attends to all tokens, and every token to the class
  token; BiFormer's local convolution is left out. So the parameters are those of ViT-B/16, and its weights load.

Shapes: B batch, T patches (196), D token width, R regions per side, N classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer.models.base import FerModel, Resize, TrainOutput
from fer.models.layers.attention import attention as attend
from fer.models.layers.attention import is_countable
from fer.models.layers.routing import gathered_attention, route, routing_bias
from fer.models.layers.tokens import ClassTokenTransformer, SelfAttention, to_tokens
from fer.models.registry import register

ATTENTIONS = ("full", "dynamic")

INPUT_SIZE, PATCH, WIDTH, DEPTH, NUM_HEADS = 224, 16, 768, 12, 12
SIDE = INPUT_SIZE // PATCH

INIT_STD = 0.02


class RoutedSelfAttention(SelfAttention):
    """Attention among a class token and the patches of a square map, by regions: (B,1+T,D) -> (B,1+T,D).

    Every patch attends to the class token and to the `topk` regions chosen for its own (`fer.models.layers.routing`),
    the class token to all. The scores are scaled as in ViT.
    """

    def __init__(self, dim: int, num_heads: int, *, side: int, num_regions: int, topk: int) -> None:
        super().__init__(dim, num_heads)
        self.side = side
        self.num_regions = num_regions
        self.topk = topk

    def forward(self, x: Tensor) -> Tensor:
        dim = x.shape[2]
        qkv = self.qkv(x)  # (B,1+T,3D)
        patches = qkv[:, 1:].unflatten(1, (self.side, self.side))  # (B,S,S,3D)
        chosen = route(patches[..., : 2 * dim], self.num_regions, self.topk)
        scale = (dim // self.num_heads) ** -0.5
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B,heads,1+T,D/heads)
        if is_countable():
            first = attend(q[:, :, :1], k, v, scale=scale).transpose(1, 2).flatten(2)  # (B,1,D)
            others = gathered_attention(
                patches, chosen, num_heads=self.num_heads, scale=scale, shared=qkv[:, :1, dim:]
            ).flatten(1, 2)  # (B,T,D)
            attended = torch.cat([first, others], dim=1)
        else:
            bias = F.pad(routing_bias(chosen, self.side, self.side, qkv.dtype), (1, 0, 1, 0))  # (B,1,1+T,1+T)
            attended = attend(q, k, v, bias, scale=scale).transpose(1, 2).flatten(2)  # (B,1+T,D)
        out: Tensor = self.proj(attended)
        return out


@register("vit_b16")
class ViT(FerModel):
    """ViT-B/16 at 224 pixels, on pixels scaled to [-1, 1] as its published weights expect.

    attention: "full", or "dynamic".
    topk: with dynamic attention, the regions that each region attends to; 2 in the slides' drawing.
    num_regions: with dynamic attention, regions per side; a divisor of 14.

    Parameters: 85,804,039 with 7 classes, 86,567,656 with 1000. GMACs: 17.56; with dynamic attention 16.90, where
    BiFormer's own attention module in the same encoder, without class token and with its local convolution, has 16.86:
    the class token adds 0.09 and the convolutions' absence takes 0.05.
    """

    def __init__(self, num_classes: int = 7, *, attention: str = "full", topk: int = 2, num_regions: int = 7) -> None:
        if attention not in ATTENTIONS:
            raise ValueError(f"vit_b16: attention = {attention!r}: one of {ATTENTIONS} is allowed")
        valid = [regions for regions in range(1, SIDE + 1) if SIDE % regions == 0]
        if num_regions not in valid:
            raise ValueError(
                f"vit_b16: num_regions = {num_regions!r} does not divide the {SIDE} tokens per side; allowed: {valid}"
            )
        if topk not in range(1, num_regions**2 + 1):
            raise ValueError(f"vit_b16: topk = {topk!r}: 1 to {num_regions**2} (num_regions^2) is allowed")
        half = (0.5, 0.5, 0.5)
        super().__init__(num_classes, input_size=INPUT_SIZE, mean=half, std=half, resize=Resize(kernel="bicubic"))
        self.patches = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)
        self.transformer = ClassTokenTransformer(SIDE**2, WIDTH, depth=DEPTH, num_heads=NUM_HEADS)
        if attention == "dynamic":
            for block in self.transformer.blocks:
                block.attention = RoutedSelfAttention(WIDTH, NUM_HEADS, side=SIDE, num_regions=num_regions, topk=topk)
        self.head = nn.Linear(WIDTH, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor | TrainOutput:
        tokens = to_tokens(self.patches(x))  # (B,T,D)
        logits = self.head(self.transformer(tokens))  # (B,N)
        return TrainOutput(logits, {}) if self.training else logits
