"""Variants measured in turn, so that noise of the machine reaches all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Variant = Callable[[int], float]
"""Given the number of the round, from 0; returns how many images it processed."""


@dataclass
class Samples:
    """One variant, round by round: seconds by the clock, processor seconds of this process, and images."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    images: list[float] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Images a second."""
        return [images / seconds for images, seconds in zip(self.images, self.seconds, strict=True)]

    @property
    def rate(self) -> float:
        """Median of `rates`."""
        return statistics.median(self.rates)

    @property
    def cpu_rate(self) -> float:
        """Median images a processor second."""
        return statistics.median(images / cpu for images, cpu in zip(self.images, self.cpu, strict=True))


def in_turn(variants: Mapping[str, Variant], *, rounds: int, seconds: float = 0.0) -> dict[str, Samples]:
    """Runs all variants once a round.

    Args:
        rounds: that are measured at least.
        seconds: further rounds begin until so much time has passed.
    """
    samples = {name: Samples() for name in variants}
    until, turn = time.perf_counter() + seconds, 0
    while turn < rounds or time.perf_counter() < until:
        for name, variant in variants.items():
            begun, cpu_begun = time.perf_counter(), time.process_time()
            samples[name].images.append(variant(turn))
            samples[name].seconds.append(time.perf_counter() - begun)
            samples[name].cpu.append(time.process_time() - cpu_begun)
        turn += 1
    return samples


def ratio(ones: list[float], others: list[float]) -> float:
    """Median of the rounds' ratios."""
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))
