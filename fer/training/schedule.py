"""Learning rates as a pure function of the global step, so that nothing about them needs saving.

Warm-up is linear and per step. After it, `cosine` falls per step; `step` and `exponential` change at the first step of
an epoch, counted from the start of the run, as PyTorch's StepLR and ExponentialLR stepped once an epoch do.
"""

from __future__ import annotations

import math

from fer.training.recipe import Recipe


def learning_rate(recipe: Recipe, global_step: int, steps_per_epoch: int) -> float:
    """Rate of the update number `global_step`, counted from 0."""
    schedule = recipe.schedule
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    if global_step < warmup:
        return recipe.learning_rate * (global_step + 1) / warmup
    epoch = global_step // steps_per_epoch
    if schedule.kind == "cosine":
        done = (global_step - warmup) / (recipe.epochs * steps_per_epoch - warmup)
        factor = schedule.final_fraction + (1 - schedule.final_fraction) * 0.5 * (1 + math.cos(math.pi * done))
    elif schedule.kind == "step":
        factor = schedule.gamma ** (epoch // schedule.step_epochs)
    elif schedule.kind == "exponential":
        factor = schedule.gamma**epoch
    else:
        factor = 1.0
    return recipe.learning_rate * factor
