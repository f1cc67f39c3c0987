"""A model with its optimizer, moving average and SAM, for one stage of a run: how a gradient and an update are made."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fer.hashing import stable_hash
from fer.models import FerModel
from fer.models.compat import BatchNorm, has_fast_bf16
from fer.training.optimizer import Ema, build_optimizer, trainable
from fer.training.recipe import Recipe
from fer.training.recompute import recompute_activations
from fer.training.sam import Sam, frozen_statistics
from fer.training.state import TrainState


@dataclass(frozen=True)
class Learner:
    """All that an update changes.

    Attributes:
        parallel: the model itself, or inside DDP.
        ema, sam: None where the recipe has none.
    """

    recipe: Recipe
    model: FerModel
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema[FerModel] | None
    sam: Sam | None
    device: str

    @classmethod
    def create(cls, recipe: Recipe, model: FerModel, *, device: str, world_size: int) -> Learner:
        """Puts a model with its first weights on the device, and the rest around it.

        Raises:
            ValueError: `trainable` leaves nothing to train.
        """
        freeze_all_but(model, recipe.trainable)
        model = model.to(device)
        ema = Ema(model, recipe.ema_decay) if recipe.ema_decay else None
        optimizer = build_optimizer(recipe, model)
        if recipe.compile:
            model.compile()
        if recipe.gradient_checkpointing:
            recompute_activations(model)
        on_cpu = torch.device(device).type == "cpu"
        parallel = data_parallel(model, find_unused=on_cpu) if world_size > 1 else model
        sam = Sam(recipe.sam, trainable(model)) if recipe.sam else None
        return cls(recipe, model, parallel, optimizer, ema, sam, device)

    @property
    def chosen(self) -> FerModel:
        """The model that is validated and kept: the moving average where there is one."""
        return self.ema.model if self.ema else self.model

    def train(self) -> None:
        """Training mode; BatchNorms of frozen parts stay in evaluation mode, with the statistics that they have."""
        self.parallel.train()
        if self.recipe.trainable is not None:
            for module in self.model.modules():
                if isinstance(module, BatchNorm) and _is_frozen(module):
                    module.eval()

    def backward(
        self, images: Tensor, targets: Tensor, key: tuple[Any, ...], *, exchange: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Adds the gradient of the mean loss to the parameters: an update is made of one such pass, under SAM of two.

        With `accumulate` the images are taken in parts, each weighted by its size, and exchanged once, with the last.

        Args:
            images: float32 (B, 3, H, W).
            targets: class indices int64 (B,), or weighted class probabilities float (B, N).
            key: what dropout depends on.
            exchange: False keeps the rank's own gradient.

        Returns:
            mean loss, and logits (B, N), both without a graph.
        """
        torch.manual_seed(stable_hash(*key))  # for dropout
        parts = min(self.recipe.accumulate, len(images))
        pairs = zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True)
        losses, logits = [], []
        for number, (part, part_targets) in enumerate(pairs, start=1):
            local = not exchange or number < parts
            ddp = self.parallel if local and isinstance(self.parallel, DistributedDataParallel) else None
            with ddp.no_sync() if ddp else nullcontext():
                with autocast(self.recipe, self.device):
                    output = self.parallel(part)
                    loss = self.model.loss(output, part_targets) * (len(part) / len(images))
                loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            logits.append(output.logits.detach())
        return torch.stack(losses).sum(), torch.cat(logits)

    def second_pass(self) -> AbstractContextManager[None]:
        """Where SAM's second pass runs."""
        assert self.sam is not None
        return nullcontext() if self.sam.config.batch_norm == "both" else frozen_statistics(self.model)

    def update(self) -> None:
        """One update by the gradients at hand, which are then cleared."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.model)

    def restore(self, state: TrainState) -> None:
        """Resumes from a state: its weights, and within a stage all else."""
        if state.is_fresh:
            carry_over(self.model, state.model)
            if self.ema:
                self.ema.restart(self.model)
            return
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        if self.ema and state.ema:
            self.ema.load_state_dict(state.ema)

    def keep(self, state: TrainState) -> None:
        """Puts all that changes into a state, to be saved."""
        state.model, state.optimizer = self.model.state_dict(), self.optimizer.state_dict()
        state.ema = self.ema.state_dict() if self.ema else None


def autocast(recipe: Recipe, device: str) -> torch.autocast:
    """bfloat16 where the recipe asks for it."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=recipe.precision == "bf16")


def slow_precision(recipe: Recipe, gpu: bool) -> str | None:
    """A warning with its remedy where a recipe's precision is slow on this machine; None where it is not."""
    if gpu or has_fast_bf16() or all(part.precision == "fp32" for part in recipe.in_stages):
        return None
    return "precision = 'bf16': this CPU emulates bfloat16, 10 to 20 times slower than fp32; set precision: fp32"


def freeze_all_but(model: nn.Module, patterns: list[str] | None) -> None:
    """Freezes all parameters whose name matches no pattern (`*` stands for anything); None changes nothing.

    What the model itself keeps frozen stays so.

    Raises:
        ValueError: a pattern matches nothing.
    """
    if patterns is None:
        return
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if unused := [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in names)]:
        parts = sorted({name.partition(".")[0] for name in names})
        raise ValueError(
            f"trainable: {', '.join(unused)} matches no parameter; the model's parts are {', '.join(parts)}"
        )
    for name, parameter in model.named_parameters():
        if not any(fnmatch(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)


def carry_over(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Starts a stage from the weights of the one before; what only the new model has keeps its first values.

    Raises:
        ValueError: the new model lacks something, or has it in another shape.
    """
    own = model.state_dict()
    lost = [name for name, tensor in weights.items() if name not in own or own[name].shape != tensor.shape]
    if lost:
        raise ValueError(
            f"stages: {len(lost)} tensors of one stage have no place in the model of the next, e.g. {lost[0]}: a later "
            "stage's model must hold the earlier one's"
        )
    model.load_state_dict({**own, **weights})


def data_parallel(model: FerModel, *, find_unused: bool) -> DistributedDataParallel:
    """The model with its gradients averaged over the ranks.

    After its first backward pass DDP sorts its buckets again, and from three ranks on another layout rounds the sums
    differently: the first step after a resume would not be that of an uninterrupted run. Where it looks for unused
    parameters it keeps its first layout; so it does on the CPU, where the same bits are promised. On a GPU they are
    not, and the search would cost time: there every trainable parameter must take part in every step.

    Buffers are not exchanged at each step: a training pass reads none, and what is validated and saved is rank 0's.
    """
    # Of 1x1 and depthwise kernels, whose strides have two names; "not an error", it says of itself, at each first step.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return DistributedDataParallel(model, find_unused_parameters=find_unused, forward_sync_buffers=False)


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
