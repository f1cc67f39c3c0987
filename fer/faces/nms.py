"""Non-maximum suppression over a batch of pictures, without a loop over faces."""

from __future__ import annotations

import torch
from torch import Tensor


def suppress(boxes_BK4: Tensor, valid_BK: Tensor, most_overlap: float) -> Tensor:
    """Which boxes stay: greedy suppression, in all pictures at once.

    A box goes if one that stands before it in its picture, and stays, overlaps it by more than `most_overlap` of their
    union. "Stays" is a fixed point of that sentence, and the only one: whether box i stays depends on boxes before i
    alone. So we say it again and again, starting from "all stay", until nothing changes; after n times the first n
    boxes are right, and in practice all are after two or three.

    Args:
        boxes_BK4: x1, y1, x2, y2; in each picture the best first.
        valid_BK: whether there is a box at this place at all.
        most_overlap: intersection over union, 0..1.

    Returns:
        (B, K) bool.
    """
    corner, opposite = boxes_BK4[..., :2], boxes_BK4[..., 2:]
    sides = (
        torch.minimum(opposite[:, :, None], opposite[:, None]) - torch.maximum(corner[:, :, None], corner[:, None])
    ).clamp_(min=0)
    shared_BKK = sides[..., 0] * sides[..., 1]
    area_BK = (opposite - corner).clamp(min=0).prod(dim=2)
    together_BKK = area_BK[:, :, None] + area_BK[:, None] - shared_BKK
    # [b, i, j]: box j stands before i and overlaps it.
    rivals_BKK = (shared_BKK > most_overlap * together_BKK).tril(diagonal=-1).float()
    keep = valid_BK
    while True:
        beaten = torch.bmm(rivals_BKK, keep[:, :, None].float())[..., 0] > 0
        again = valid_BK & ~beaten
        if torch.equal(again, keep):
            return keep
        keep = again
