"""What the ranks of one training tell each other; with a single rank nothing is sent and the values stay as they are.

torch.distributed must be initialised (Ray Train does it) when `world_size` is above 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Peers:
    """This rank among `world_size` others; rank 0 leads: it saves, measures and reports."""

    rank: int = 0
    world_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the ranks, in place, the same on each of them."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """The value of each rank, in order of ranks."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def broadcast(self, value: T) -> T:
        """Rank 0's value."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Gives all ranks the buffers of rank 0: BatchNorm's statistics differ by the slices they have seen."""
        if self.world_size > 1:
            with torch.no_grad():
                for buffer in model.buffers():
                    dist.broadcast(buffer, src=0)
