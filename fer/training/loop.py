"""The training loop: what every model is trained by, in one process or in many.

A run is a function of (data, recipe, seed): order, augmentation, dropout and learning rate are computed from the seed
and the step, and all else is in `TrainState`. So resuming is the normal path: `train` always looks for a state in the
work folder first, and a run that was killed at any moment ends with the same bits as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from fer.console import log
from fer.hashing import stable_hash
from fer.io.storage import Folder
from fer.models import FerModel, create_model
from fer.shards.read import Batch, EvalBatches, normalize
from fer.training.data import Data, Waiting, open_data
from fer.training.distributed import Distributed
from fer.training.job import TrainJob
from fer.training.learner import Learner, autocast
from fer.training.metrics import classification_metrics
from fer.training.optimizer import set_learning_rate
from fer.training.phases import PhaseStage, phase_stages
from fer.training.progress import Progress, ProgressFile
from fer.training.recipe import Recipe
from fer.training.schedule import learning_rate
from fer.training.state import Record, StateError, TrainState
from fer.training.targets import Targets
from fer.weights.parts import load_sources


class DivergedError(ValueError):
    """A loss or a gradient is NaN or infinite; nothing was updated by it. The message names the samples."""


class StopRequested(Exception):  # noqa: N818 - nothing failed
    """A rank asked all to stop, and says why; every update so far is saved."""


_VOTES = 4096
"""More than there are ranks."""


def train(
    job: TrainJob,
    *,
    rank: int = 0,
    world_size: int = 1,
    device: str = "cpu",
    on_epoch: Callable[[Record], object] = lambda record: None,
    on_step: Callable[[Progress], object] = lambda progress: None,
    stop: Callable[[], str] = lambda: "",
) -> TrainState:
    """Trains to the end of the recipe, phase by phase and stage by stage, from the newest state in the work folder.

    The batch of an update is the recipe's `batch_size` over all ranks, whatever their number; loss and gradient are its
    mean. After each epoch is saved, `on_epoch` gets its row of history with its timings (`TrainState.timings`); after
    each update `on_step` gets the progress. Both are called on every rank, and `stop` within each update: where it says
    why, on any rank, all ranks stop after that update, which is saved.

    Raises:
        StopRequested: on all ranks.
        DivergedError: on all ranks, before the update, where one rank's loss or the gradient is NaN or infinite.
        LostRankError: a rank ended or is silent; the message has its number.
        StateError: checkpoints are there, and none is whole, or other versions of the libraries wrote them.
        ValueError: the batch cannot be split evenly between the ranks, or the data cannot be read.
    """
    distributed, stages = Distributed(rank, world_size), phase_stages(job.recipe)
    _make_reproducible(job.threads, device)
    with distributed.report_lost_ranks(Folder(job.work_dir)):
        state = _resume(job, distributed)
        while True:
            stage = stages[state.stage]
            if not stage.is_over(state):
                model = build_model(job, state.stage % len(job.recipe.in_stages))
                learner = Learner.create(stage.recipe, model, device=device, world_size=world_size)
                learner.restore(state)
                data = open_data(
                    job.shards, stage.recipe, model, seed=job.seed, distributed=distributed, threads=job.threads,
                    rows=stage.rows, test=(stage.chosen_by or "").startswith("test_"),
                )  # fmt: skip
                with closing(data):
                    _Stage(job, stage, state, learner, data, distributed, stop).train(on_epoch, on_step)
            if state.stage + 1 == len(stages):
                return state
            state.begin_next_stage(from_first_weights=stages[state.stage + 1].is_first)


@dataclass(frozen=True)
class _Stage:
    """One stage of a run, from where its state is to its end."""

    job: TrainJob
    stage: PhaseStage
    state: TrainState
    learner: Learner
    data: Data
    distributed: Distributed
    stop: Callable[[], str]

    def train(self, on_epoch: Callable[[Record], object], on_step: Callable[[Progress], object]) -> None:
        """The loop."""
        job, state, learner, data, distributed = self.job, self.state, self.learner, self.data, self.distributed
        recipe, model, device = learner.recipe, learner.model, learner.device
        steps = data.train.steps_per_epoch
        make_targets = Targets(recipe, data.split.class_histogram, device)
        epochs = state.first_epoch + self.stage.epochs(state.chosen)
        progress = ProgressFile(job.work_dir, distributed, epochs=epochs, steps=steps)

        def asked() -> str:
            return progress.asked() or self.stop()

        while not self.stage.is_over(state):
            started, first_step = time.monotonic(), state.step
            learner.train()
            batches = Waiting(data.train.epoch(state.epoch, start_step=first_step))
            before = (state.epoch - state.first_epoch) * steps  # updates of the stage
            for batch in batches:
                set_learning_rate(learner.optimizer, learning_rate(recipe, before + state.step, steps))
                key = (job.seed, "step", state.global_step, distributed.rank)
                labels = batch.targets.to(device)
                class_probs = None if batch.distributions is None else batch.distributions.to(device)
                images, targets = make_targets(prepare(batch.images, model, recipe, device), labels, key, class_probs)
                totals, stops = self._gradient(images, targets, labels, key, batch, asked)
                learner.update()
                state.end_step(totals)
                if stops or (state.global_step % job.checkpoint_every_steps == 0 and state.step < steps):
                    _save(state, job.work_dir, distributed, learner)
                on_step(progress.update(state, images=recipe.batch_size))
                if stops:
                    raise StopRequested("; ".join(filter(None, distributed.gather(asked()))))

            trained = time.monotonic() - started
            rate = learning_rate(recipe, before + steps - 1, steps)  # of the last update
            row = {"epoch": state.epoch + 1, "stage": state.stage + 1, "learning_rate": rate, **state.train_metrics()}
            distributed.broadcast_buffers(learner.chosen)  # the next stage may read them, if nothing is validated too
            for prefix, split in (("val", data.validation), ("test", data.test)):
                if split is not None:  # it may have no batch for this rank
                    row |= validate(learner.chosen, self._saved_if(asked, split), recipe, distributed, device, prefix)
            state.end_epoch(row, self.stage.chosen_by, learner.chosen)
            images_per_second = (steps - first_step) * recipe.batch_size / trained
            seconds, waiting = time.monotonic() - started, batches.seconds / trained
            state.timings.append(
                {
                    "seconds": seconds,
                    "images_per_second": images_per_second,
                    "waiting_for_data": waiting,
                    "workers": distributed.world_size,
                }
            )
            _save(state, job.work_dir, distributed, learner)
            progress.update(state, write=True)
            on_epoch(state.records()[-1])

    def _saved_if(self, asked: Callable[[], str], batches: EvalBatches) -> Iterator[Batch]:
        """The batches of a validation. Once rank 0 is `asked` to stop, it saves the updates so far.

        All ranks stop together at the next update alone, and this process may have ended by then.
        """
        saved = not self.distributed.is_main
        for batch in batches:
            if not saved and asked():
                _save(self.state, self.job.work_dir, self.distributed, self.learner)
                saved = True
            yield batch

    def _gradient(
        self,
        images: Tensor,
        targets: Tensor,
        labels: Tensor,
        key: tuple[object, ...],
        batch: Batch,
        asked: Callable[[], str],
    ) -> tuple[list[float], int]:
        """Leaves the gradient of the global batch in the parameters, by one pass or under SAM by two.

        Returns:
            totals of the batch, and the number of ranks that were `asked` to stop.
        """
        learner, sam = self.learner, self.learner.sam
        loss, logits = learner.backward(images, targets, key, exchange=sam is None or sam.config.gradient == "global")
        totals, stops = self._global_totals(loss, logits, labels, batch, stop=bool(asked()))
        if sam:
            # A local gradient may be finite on one rank alone: all stop together.
            lost = (~sam.perturb().isfinite()).double()
            if self.distributed.sum(lost) if sam.config.gradient == "local" else lost:
                raise self._diverged("gradient", batch.rows)
            with learner.second_pass():
                again = key if sam.config.dropout == "same" else (*key, "second")
                second_loss, second_logits = learner.backward(images, targets, again)
            sam.restore()
            # What is finite at w need not be at w + e.
            self._global_totals(second_loss, second_logits, labels, batch)
        self._clip_gradient(batch)
        return totals, stops

    def _global_totals(
        self, loss: Tensor, logits: Tensor, labels: Tensor, batch: Batch, stop: bool = False
    ) -> tuple[list[float], int]:
        """Sum of losses, correct predictions and images of the global batch; all ranks stop if one loss is not finite.

        One small message an update serves both, and every rank knows the sums exactly, so that any may be saved. With
        them, in the digits below `_VOTES`, come the ranks that ask for a stop: a longer message might be summed in
        another order.
        """
        loss, correct = loss.double(), (logits.argmax(1) == labels).sum()
        size = len(labels)
        values = torch.stack([loss * size, correct, loss.new_tensor(size), (~loss.isfinite()) * _VOTES + float(stop)])
        *totals, votes = self.distributed.sum(values).tolist()
        not_finite, stops = divmod(int(votes), _VOTES)
        if not_finite:
            culprits = batch.rows[~logits.isfinite().all(1).cpu()]
            if not len(culprits) and not loss.isfinite():
                culprits = batch.rows
            raise self._diverged("loss", culprits)
        return totals, stops

    def _clip_gradient(self, batch: Batch) -> None:
        """Limits the gradient's norm. It is that of the global batch, so all ranks see the same and stop together."""
        parameters = [parameter for parameter in self.learner.model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if not norm.isfinite():
            raise self._diverged("gradient", batch.rows)
        if self.learner.recipe.gradient_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.learner.recipe.gradient_clip, norm)

    def _diverged(self, what: str, rows: Tensor) -> DivergedError:
        names = self.data.split.sample_ids()
        found = [names[row] for part in self.distributed.gather(rows.tolist()) for row in part]
        listing = ", ".join(found[:16]) + (f" and {len(found) - 16} more" if len(found) > 16 else "")
        return DivergedError(
            f"the {what} is NaN or infinite, nothing was updated; samples: {listing}. "
            "Lower the recipe's learning_rate, or set gradient_clip or a longer schedule.warmup_epochs"
        )


def build_model(job: TrainJob, stage: int = -1) -> FerModel:
    """The model of a stage, by default of the last, with its first weights, the same on every rank.

    They are a function of the seed and of given files; a later stage gets them from the one before.
    """
    model = _random_model(job, stage)
    if stage == 0:
        load_sources(model, job.pretrained, job.labels)
    return model


def not_loaded(job: TrainJob) -> list[str]:
    """The tensors of the first stage's model that its given weights leave random; it also shows that they fit."""
    return load_sources(_random_model(job, 0), job.pretrained, job.labels)


def _random_model(job: TrainJob, stage: int) -> FerModel:
    recipe = job.recipe.in_stages[stage]
    torch.manual_seed(stable_hash(job.seed, "weights"))
    return create_model(recipe.model, len(job.labels), **recipe.options)


def prepare(images: Tensor, model: FerModel, recipe: Recipe, device: str) -> Tensor:
    """uint8 (B, H, W, 3) -> what the model takes, float32 (B, 3, H, W), on the device."""
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    return normalize(images.to(device), model.mean, model.std, memory_format=layout)


@torch.no_grad()
def compute_logits(
    model: FerModel, batches: Iterable[Batch], recipe: Recipe, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The logits of one rank's batches of a split; the model is left in evaluation mode.

    Returns:
        on the CPU: logits float32 (N, classes), labels int64 (N,), and the rows' numbers int64 (N,).
    """
    model.eval()
    logits, labels, rows = [torch.empty(0, model.num_classes)], [torch.empty(0).long()], [torch.empty(0).long()]
    for batch in batches:
        with autocast(recipe, device):
            logits.append(model(prepare(batch.images, model, recipe, device)).float().cpu())
        labels.append(batch.targets)
        rows.append(batch.rows)
    return torch.cat(logits), torch.cat(labels), torch.cat(rows)


def validate(
    model: FerModel,
    batches: Iterable[Batch],
    recipe: Recipe,
    distributed: Distributed,
    device: str,
    prefix: str = "val",
) -> Record:
    """Metrics of a whole split, named `prefix`_..., the same for any number of ranks.

    Each rank computes its part of fixed batches; the logits are put in order of rows before anything is summed.
    """
    distributed.broadcast_buffers(model)
    parts = distributed.gather(compute_logits(model, batches, recipe, device))
    logits, labels, rows = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    order = rows.argsort()
    metrics = classification_metrics(logits[order], labels[order])
    return distributed.broadcast({f"{prefix}_{name}": value for name, value in metrics.items()})


def _make_reproducible(threads: int, device: str) -> None:
    torch.set_num_threads(threads)
    if torch.device(device).type == "cpu":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # none is read
    else:
        torch.cuda.set_device(torch.device(device))


def _resume(job: TrainJob, distributed: Distributed) -> TrainState:
    """The newest state, the same on every rank; a fresh one where none was saved."""
    found: TrainState | StateError | None = None
    if distributed.is_main:
        try:
            found = TrainState.load(job.work_dir)
        except StateError as error:  # the other ranks wait for it
            found = error
    found = distributed.broadcast(found)
    if isinstance(found, StateError):
        raise found
    if found is None:
        return TrainState(
            fingerprint=job.fingerprint, seed=job.seed, world_size=distributed.world_size, threads=job.threads
        )
    warn = log.warning if distributed.is_main else None
    found.check(job, distributed.world_size, warn=warn)
    found.check_versions(job, warn=warn)
    found.resumes += 1
    return found


def _save(state: TrainState, location: str, distributed: Distributed, learner: Learner) -> None:
    if distributed.is_main:
        learner.keep(state)
        state.save(location)
