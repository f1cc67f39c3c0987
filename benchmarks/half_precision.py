"""What bf16 gives a training step on the CPU, and what it costs in accuracy: `fer bench train`."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.steps import FEWEST_STEPS, against, row
from fer.models import create_model
from fer.training.learner import autocast
from fer.training.recipe import Recipe

_SEEDS = range(3)
_STEPS = 30
"""Of each run whose accuracy is compared."""


def speed_row(name: str, *, batch: int, threads: int, budget: float, goal: float) -> dict[str, Any]:
    """Steps in bf16 against steps in fp32, in turn."""
    torch.set_num_threads(threads)
    slow, fast = (_Trial(name, batch, seed=0, precision=precision) for precision in ("fp32", "bf16"))
    for trial in (slow, fast):
        trial.step()
    pairs: list[tuple[float, float]] = []
    cpu: list[float] = []
    until = time.perf_counter() + budget
    while len(pairs) < FEWEST_STEPS or time.perf_counter() < until:
        seconds, processor = zip(*(_timed(trial) for trial in (slow, fast)), strict=True)
        pairs.append((seconds[0], seconds[1]))
        cpu.append(processor[0] / processor[1])
    return row(
        f"{name}: fp32 step / bf16 step",
        statistics.median(one / other for one, other in pairs),
        goal,
        cpu=statistics.median(cpu),
        at_most=False,
        rounds=len(pairs),
        detail=f"{against(*zip(*pairs, strict=True))}, {batch} images",
    )


def accuracy_row(name: str, *, batch: int, threads: int, steps: int = _STEPS) -> dict[str, Any]:
    """Accuracy after the same few steps in both precisions, from the same weights: points that bf16 is above fp32."""
    torch.set_num_threads(threads)
    reached: dict[str, list[float]] = {"bf16": [], "fp32": []}
    for seed in _SEEDS:
        for precision, found in reached.items():
            trial = _Trial(name, batch, seed, precision)
            for _ in range(steps):
                trial.step()
            found.append(100 * trial.accuracy())
    gaps = [half - full for half, full in zip(*reached.values(), strict=True)]
    means = [statistics.fmean(found) for found in reached.values()]
    return row(
        f"{name}: accuracy in bf16 - in fp32, points",
        statistics.fmean(gaps),
        rounds=len(gaps),
        detail=f"{means[0]:.1f} - {means[1]:.1f} %, sd of pairs {statistics.stdev(gaps):.1f}, {steps} steps",
    )


def _timed(trial: _Trial) -> tuple[float, float]:
    """Seconds of a step by the clock and by the processor."""
    begun, cpu_begun = time.perf_counter(), time.process_time()
    trial.step()
    return time.perf_counter() - begun, time.process_time() - cpu_begun


class _Trial:
    """A short run on images of seven patterns in noise, in memory."""

    def __init__(self, name: str, batch: int, seed: int, precision: str) -> None:
        self.recipe = Recipe.model_validate(
            {"model": name, "epochs": 1, "batch_size": batch, "learning_rate": 0.001, "precision": precision}
        )
        torch.manual_seed(seed)
        self.model = create_model(name, 7).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.001, fused=True)
        self.random = torch.Generator().manual_seed(seed)
        self.batch = batch

    def step(self) -> None:
        """One update."""
        self.model.train()
        images, labels = self._batch_of(self.batch)
        with autocast(self.recipe, "cpu"):
            loss = self.model.loss(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def accuracy(self) -> float:
        """On images that it was not trained on, the same ones for both precisions."""
        self.model.eval()
        with autocast(self.recipe, "cpu"):
            pairs = [self._batch_of(64) for _ in range(8)]
            return statistics.fmean(
                (self.model(images).argmax(1) == labels).double().mean().item() for images, labels in pairs
            )

    def _batch_of(self, count: int) -> tuple[Tensor, Tensor]:
        side = self.model.input_size
        labels = torch.randint(7, (count,), generator=self.random)
        places = torch.linspace(0, 6.28, side)
        waves = torch.sin(places[None] * (labels[:, None] + 1))
        noise = torch.randn((count, 3, side, side), generator=self.random)
        images = (waves[:, None, :, None] * waves[:, None, None, :]) + noise
        return images.contiguous(memory_format=torch.channels_last), labels
