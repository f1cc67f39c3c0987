"""BTN, the batch transformer network: POSTER V2 with attention among the images of a batch in training.

Paper: "Batch Transformer: Look for Attention in Batch"
Authors: Myung Beom Her, Jisu Jeong, Hojoon Song, Ji-Hyeong Han
Venue: arXiv:2407.04218, 2024; IEEE Access 13:190093-190107, 2025
Original repository: https://github.com/SeoulTech-HCIRLab/BTN

Multi-level attention (MLA) combines the three fused maps of POSTER V2 into one; a convolution turns it into a map per
class. In class batch attention (CBA) every image, class by class, attends to the images of its batch by these maps, and
averages their predictions. All of that is training only: at inference BTN is POSTER V2, so that a prediction never
depends on the other images of its batch.

Of the original repository only the batch transformer's forward pass could be read. What neither it nor the paper
specifies is an option here; see `BTN` for what was inferred. The journal's abstract counts 1.3 M additional parameters,
the defaults have 0.70 M; the abstract does not say what the others are.

Departures from the published code, and why:

* The batch that attends to itself is the global one, or fixed groups of it, whatever the number of ranks. The published
  training runs under DataParallel, where the number of GPUs would change the groups.
* The attention within the batch is computed in at least float32, also under autocast: its scores are sums of many
  squares, which bfloat16 would round to about 1 %.
* The departures of `fer.models.poster_v2`.

Shapes: B batch, A batch that is attended to, C channels, S side of a map, T positions of the last map, N classes.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fer.models.base import FerModel, TrainOutput, at_least_float32, cross_entropy
from fer.models.layers.attention import CrossAttention
from fer.models.layers.tokens import to_map, to_tokens
from fer.models.poster_v2 import NANO, PUBLISHED, PosterV2, PosterV2Config
from fer.models.registry import register

CHOICES: dict[str, tuple[str | int, ...]] = {
    "scale": ("classes", "none", "dim"),
    "class_prediction": ("logits", "probabilities"),
    "positional_encoding": ("learned", "learned_scalar", "sinusoid", "none"),
    "mla_attention": ("multihead", "window"),
    "downsample": ("conv", "pool"),
    "embedding_kernel": (1, 3),
}


class MultiLevelAttention(nn.Module):
    """MLA (equations 1 and 2): each level's map attends to the result of the one before; maps (B,C,S,S) -> the last.

    attention: "multihead": queries, keys, values and result projected; "window": as POSTER V2's fusion, without
        projection of the queries and with a bias by relative position.
    residual: add the level's own map to the result.
    downsample: from level to level by a "conv" of 3x3 and stride 2, or a mean over 2x2 ("pool") and a 1x1 convolution.
    """

    def __init__(self, config: PosterV2Config, *, attention: str, residual: bool, downsample: str) -> None:
        super().__init__()
        self.residual = residual
        self.downs = nn.ModuleList()
        self.attentions = nn.ModuleList()
        self.sides = config.sides[1:]
        widths = config.image.widths
        for width, next_width, heads, side in zip(widths, widths[1:], config.num_heads[1:], self.sides, strict=False):
            if downsample == "conv":
                self.downs.append(nn.Conv2d(width, next_width, 3, 2, 1))
            else:
                self.downs.append(nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(width, next_width, 1)))
            windows = attention == "window"
            self.attentions.append(
                CrossAttention(next_width, heads, project_query=not windows, side=side if windows else None)
            )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        x = maps[0]
        for own, side, down, attention in zip(maps[1:], self.sides, self.downs, self.attentions, strict=True):
            query = to_tokens(own)  # (B,S*S,C)
            attended = attention(query, to_tokens(down(x)))
            x = to_map(query + attended if self.residual else attended, side)
        return x


def rank_and_world_size() -> tuple[int, int]:
    """Of the default process group; (0, 1) where there is none."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(x: Tensor) -> Tensor:
    """(B,...) of every rank -> (world size * B,...) in the order of ranks, on every rank. B must be the same on all.

    Backward, a rank's slice receives the sum of the gradients that all ranks have for it. With each rank's loss a mean
    over its own samples and the parameters' gradients averaged over ranks, as DistributedDataParallel does, this gives
    the gradient of the mean over the whole batch. Forward and backward are collective: every rank must take part.
    """
    gathered: Tensor = _Gather.apply(x)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.size = inputs[0].shape[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.narrow(0, dist.get_rank() * ctx.size, ctx.size)


class BatchTransformer(nn.Module):
    """Equations 3 to 8: class maps (B,N,T) and class predictions (B,N) -> P_CBA (B,N), over groups of the batch.

    positional_encoding: added to the maps, different for every class, the same for every image: "learned" (N,T),
        "learned_scalar" (N,1), "sinusoid" over the class index, or "none".
    scale: of the scores before the softmax: 1/sqrt(N) for "classes", 1/sqrt(T) for "dim", 1 for "none".
    attention_batch: see `BTN`.
    """

    encoding: Tensor | None

    def __init__(
        self, num_classes: int, positions: int, *, positional_encoding: str, scale: str, attention_batch: int | None
    ) -> None:
        super().__init__()
        self.scale = {"classes": num_classes, "none": 1, "dim": positions}[scale] ** -0.5
        self.attention_batch = attention_batch
        if positional_encoding == "sinusoid":
            self.register_buffer("encoding", sinusoid(num_classes, positions), persistent=False)
        elif positional_encoding == "none":
            self.encoding = None
        else:
            width = positions if positional_encoding == "learned" else 1
            self.encoding = nn.Parameter(torch.empty(1, num_classes, width))
            nn.init.trunc_normal_(self.encoding, std=0.02)

    def forward(self, maps: Tensor, predictions: Tensor) -> Tensor:
        with torch.autocast(maps.device.type, enabled=False):
            maps, predictions = at_least_float32(maps), at_least_float32(predictions)
            if self.encoding is not None:
                maps = maps + self.encoding
            return self._attend(maps, predictions)

    def _attend(self, maps: Tensor, predictions: Tensor) -> Tensor:
        size, group = maps.shape[0], self.attention_batch
        rank, world_size = rank_and_world_size()
        if world_size == 1 or (group is not None and size % group == 0):
            context, first = (maps, predictions), 0
        else:
            both = gather(torch.cat([maps.flatten(1), predictions], dim=1))  # (A,N*T+N), one message
            keys, values = torch.split(both, [maps[0].numel(), predictions.shape[1]], dim=1)
            context, first = (keys.reshape(-1, *maps.shape[1:]), values), rank * size
        apart = None
        if group is not None:
            everyone = torch.arange(context[1].shape[0], device=maps.device) // group  # (A,), the group of each
            apart = everyone[first : first + size, None] != everyone  # (B,A)
        return class_batch_attention(maps, *context, scale=self.scale, apart=apart)


def class_batch_attention(
    queries: Tensor, keys: Tensor, values: Tensor, *, scale: float, apart: Tensor | None = None
) -> Tensor:
    """CBA, a softmax attention among images for every class: -> (B,N).

    queries (B,N,T), keys (A,N,T), values (A,N); `apart` (B,A): pairs that do not attend to each other.
    """
    scores = scale * (queries.transpose(0, 1) @ keys.permute(1, 2, 0))  # (N,B,A)
    if apart is not None:
        scores = scores.masked_fill(apart, -math.inf)
    attended = scores.softmax(-1) @ values.t().unsqueeze(2)  # (N,B,1)
    return attended.squeeze(2).t()


def sinusoid(length: int, width: int) -> Tensor:
    """The transformer's fixed positional encoding (arXiv:1706.03762, section 3.5), (1, length, width)."""
    frequency = 10000.0 ** (-2 * torch.arange((width + 1) // 2) / width)
    angle = torch.arange(length)[:, None] * frequency  # (length, ceil(width/2))
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[None, :, :width]


class BatchBranch(nn.Module):
    """The training-only part of BTN: fused maps and logits (B,N) -> `aux`."""

    def __init__(
        self,
        num_classes: int,
        config: PosterV2Config,
        *,
        mla: MultiLevelAttention | None,
        batch_transformer: BatchTransformer | None,
        embedding_kernel: int,
        class_prediction: str,
    ) -> None:
        super().__init__()
        self.mla = mla
        width = config.image.widths[-1]
        self.class_maps = nn.Conv2d(width, num_classes, embedding_kernel, padding=embedding_kernel // 2)
        self.batch_transformer = batch_transformer
        self.class_prediction = class_prediction

    def forward(self, maps: Sequence[Tensor], logits: Tensor) -> dict[str, Tensor]:
        x = self.mla(maps) if self.mla is not None else maps[-1]
        class_maps = self.class_maps(x).flatten(2)  # (B,N,T)
        if self.batch_transformer is None:
            return {"mla": class_maps.mean(2)}
        prediction = at_least_float32(logits)
        if self.class_prediction == "probabilities":
            prediction = F.softmax(prediction, dim=1)
        attended = self.batch_transformer(class_maps, prediction)
        return {"cba": attended, "bt": attended + prediction}

    def folded(self) -> nn.Module:
        """Nothing: evaluation does not use it."""
        return nn.Identity()


@register("btn_nano", config=NANO)
@register("btn", config=PUBLISHED)
class BTN(FerModel):
    """BTN. `poster` is a whole POSTER V2: `btn.poster.load_state_dict(state)` starts it from one, strictly.

    `aux` in training, each (B,N): "cba" and "bt", the predictions after class batch attention and after the batch
    transformer; "mla" alone where `use_bt` is false. Loss: lambda_ L_VIT + L_BT + L_CBA, cross-entropies.

    attention_batch: None: the images of the whole global batch attend to each other. A number: the global batch is cut
        into consecutive groups of it (the last may be smaller), each attending within itself. Either is the same on any
        number of ranks that hold equal, consecutive slices of the global batch (rank r the r-th): the others' maps
        are gathered where a group is not within one rank for certain, that is unless `attention_batch` divides the
        rank's batch. Training is then collective: all ranks must run it together. The batch size is a parameter of
        this model: the paper's best (Table 7) are 64 on RAF-DB and 144 on AffectNet, among 16 to 256.
    lambda_: weight of L_VIT; Table 6 goes from 1 to 3 by 0.25, with 2 the best.

    Ablations, and the rows that they make:

        Table 5  MLA alone                use_bt=False    the mean of every class's map is a prediction of its own,
                                                          with its own cross-entropy [inferred]
                 BT alone                 use_mla=False   class maps of POSTER V2's last fused map [inferred]
                 baseline                 both            POSTER V2, with the weight lambda_ on its loss
        Table 8  without L_CBA, L_BT      loss_cba=False, loss_bt=False; no effect without BT; with neither, MLA and BT
                                          would not be trained, and are left out

    `CHOICES` lists what the sources leave open, the default first: `scale` (the repository's excerpt: classes; the
    paper: none), `class_prediction` (what CBA averages; in both cases the result is taken for logits),
    `positional_encoding`, `mla_attention`, `mla_residual` (false: the equations show none), `downsample`,
    `embedding_kernel`.

    Batches of one image make CBA the identity: training should drop an incomplete last batch.
    Options of POSTER V2: `drop_path_rate`, `landmark_bn`, `landmark_frozen`; see there.

    Parameters, published configuration, 7 classes: POSTER V2's 43,753,941 and 700,382 for training only.
    """

    loss_is = "sum of three cross-entropies"

    def __init__(
        self,
        num_classes: int = 7,
        *,
        config: PosterV2Config,
        attention_batch: int | None = None,
        lambda_: float = 2.0,
        loss_cba: bool = True,
        loss_bt: bool = True,
        use_mla: bool = True,
        use_bt: bool = True,
        scale: str = "classes",
        class_prediction: str = "logits",
        positional_encoding: str = "learned",
        mla_attention: str = "multihead",
        mla_residual: bool = False,
        downsample: str = "conv",
        embedding_kernel: int = 1,
        drop_path_rate: float | None = None,
        landmark_bn: str = "frozen",
        landmark_frozen: bool | None = None,
    ) -> None:
        given = {
            "scale": scale,
            "class_prediction": class_prediction,
            "positional_encoding": positional_encoding,
            "mla_attention": mla_attention,
            "downsample": downsample,
            "embedding_kernel": embedding_kernel,
        }
        for option, value in given.items():
            if value not in CHOICES[option]:
                raise ValueError(f"btn: {option} = {value!r}: one of {CHOICES[option]} is allowed")
        if attention_batch is not None and (not isinstance(attention_batch, int) or attention_batch < 2):
            raise ValueError(f"btn: attention_batch = {attention_batch!r}: None or an integer of at least 2 is allowed")
        if lambda_ <= 0:
            raise ValueError(f"btn: lambda_ = {lambda_}: more than 0 is needed")
        super().__init__(num_classes, input_size=config.input_size)
        self.lambda_ = lambda_
        self.losses = [name for name, used in (("cba", loss_cba), ("bt", loss_bt)) if used] if use_bt else ["mla"]
        self.poster = PosterV2(
            num_classes,
            config=config,
            drop_path_rate=drop_path_rate,
            landmark_bn=landmark_bn,
            landmark_frozen=landmark_frozen,
        )
        self.branch: nn.Module | None = None
        if not self.losses or not (use_mla or use_bt):
            return
        mla = batch_transformer = None
        if use_mla:
            mla = MultiLevelAttention(config, attention=mla_attention, residual=mla_residual, downsample=downsample)
        if use_bt:
            batch_transformer = BatchTransformer(
                num_classes,
                config.sides[-1] ** 2,
                positional_encoding=positional_encoding,
                scale=scale,
                attention_batch=attention_batch,
            )
        self.branch = BatchBranch(
            num_classes,
            config,
            mla=mla,
            batch_transformer=batch_transformer,
            embedding_kernel=embedding_kernel,
            class_prediction=class_prediction,
        )

    def forward(self, x: Tensor) -> Tensor | TrainOutput:
        maps = self.poster.fuse(x)
        logits = self.poster.classify(maps)
        if not self.training:
            return logits
        return TrainOutput(logits, self.branch(maps, logits) if self.branch is not None else {})

    def loss(self, output: TrainOutput, targets: Tensor) -> Tensor:
        """lambda_ L_VIT + L_BT + L_CBA, or those of them that the options keep."""
        loss = self.lambda_ * cross_entropy(output.logits, targets)
        for name in self.losses:
            if name in output.aux:
                loss = loss + cross_entropy(output.aux[name], targets)
        return loss
