"""Softmax attention in the form that the device has a fused kernel for, or written out so that it can be counted."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

_written_out = False


@contextmanager
def countable() -> Iterator[None]:
    """The reference path: inside, `attention` is two matrix products with a softmax between them.

    For `torch.utils.flop_counter`, which takes the fused kernel of the CPU for no operations at all. `layers.routing`
    then attends by copies, as the published code does, and not by masks, which take more arithmetic. The results agree
    to rounding. For the whole process, not per thread; a graph exported inside keeps the reference path.
    """
    global _written_out
    before, _written_out = _written_out, True
    try:
        yield
    finally:
        _written_out = before


def is_countable() -> bool:
    """Whether the reference path is asked for."""
    return _written_out


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, scale: float) -> Tensor:
    """softmax(scale * q k^T + bias) v over the last two axes: q (...,Q,D), k (...,K,D), v (...,K,E) -> (...,Q,E).

    bias: added to the scores, broadcast to (...,Q,K).
    """
    if not _written_out:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    scores = (q * scale) @ k.transpose(-2, -1)  # (...,Q,K)
    if bias is not None:
        scores = scores + bias
    return torch.softmax(scores, dim=-1) @ v
