"""What the ranks of one run exchange; with a single rank nothing is sent and values stay as they are.

torch.distributed must be initialized (Ray Train does it) when `world_size` is above 1.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fer.io.storage import Folder

T = TypeVar("T")

_GRACE_SECONDS = 2.0
"""Between the first rank that notices a broken exchange, and the last."""

_WORDS_OF_GLOO = ("gloo/transport", "pair closure", "by peer")
"""In the messages of its errors, which are plain RuntimeErrors."""


class LostRankError(RuntimeError):
    """An exchange between the ranks broke off or timed out; the message names the silent ranks."""


@dataclass(frozen=True)
class Distributed:
    """This rank among `world_size`; rank 0 is the main one: it saves, measures and reports."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
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

    @contextmanager
    def report_lost_ranks(self, folder: Folder) -> Iterator[None]:
        """Names the ranks that were lost, or hang, where an exchange inside the block fails.

        The library's error names none. So each rank that notices the failure leaves a mark in the folder, which all
        share; the ranks without one are lost.

        Raises:
            LostRankError: in place of the library's error, where a rank is silent.
        """
        marks = [f"stuck-{rank}" for rank in range(self.world_size)]
        if self.world_size > 1:
            folder.remove(marks[self.rank])
        try:
            yield
        except RuntimeError as error:
            of_an_exchange = isinstance(error, dist.DistError) or any(words in str(error) for words in _WORDS_OF_GLOO)
            if self.world_size == 1 or not of_an_exchange:  # what a rank did wrong by itself is raised as it is
                raise
            folder.write(marks[self.rank], b"")
            time.sleep(_GRACE_SECONDS)
            noticed = folder.names()
            silent = [str(rank) for rank, mark in enumerate(marks) if mark not in noticed]
            if not silent:  # each has noticed: it is the network between them
                raise
            raise LostRankError(
                f"rank {', '.join(silent)} of {self.world_size}, counted from 0, has ended or does not answer "
                f"({str(error).strip().splitlines()[0]})"
            ) from error
