"""The training loop: what every model is trained by, in one process or in many.

A training is a function of (data, recipe, seed): order, augmentation, dropout and learning rate are computed from the
seed and the step, and all else is in `TrainState`. So resuming is the normal path: `train` always starts by asking the
work folder for a state, and a training that was killed at any moment ends with the same bits as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn

from fer.console import log
from fer.hashing import stable_hash
from fer.models import FerModel, create_model
from fer.shards.read import Batch, EvalBatches, normalise
from fer.training.data import Data, open_data
from fer.training.job import TrainJob
from fer.training.learner import Learner
from fer.training.metrics import classification_metrics
from fer.training.optimizer import set_learning_rate
from fer.training.passes import autocast
from fer.training.peers import Peers
from fer.training.progress import Progress, ProgressFile
from fer.training.recipe import Recipe
from fer.training.sam import Sam
from fer.training.schedule import learning_rate
from fer.training.state import Record, StateError, TrainState
from fer.training.targets import Targets
from fer.weights.parts import load_part


class DivergedError(ValueError):
    """A loss or a gradient is no number; nothing was updated by it. The message names the samples."""


def train(
    job: TrainJob,
    *,
    rank: int = 0,
    world_size: int = 1,
    device: str = "cpu",
    on_epoch: Callable[[Record], object] = lambda record: None,
    on_step: Callable[[Progress], object] = lambda progress: None,
) -> TrainState:
    """Trains to the end of the recipe, stage by stage, going on from the newest state in the work folder.

    The batch of an update is the recipe's `batch_size` over all ranks, whatever their number; loss and gradient are its
    mean. After each epoch is saved, `on_epoch` gets its row of history with `seconds` and `images_per_second`; after
    each update `on_step` hears how far it is. Both are called on every rank.

    Raises:
        DivergedError: on all ranks, before the update, where one rank's loss or the gradient is NaN or infinite.
        PeerLostError: a rank ended or is silent; told with its number.
        StateError: checkpoints are there, and none is whole, or other versions of the libraries wrote them.
        ValueError: the batch cannot be dealt to the ranks evenly, or the data cannot be read.
    """
    peers, stages = Peers(rank, world_size), job.recipe.in_stages
    _make_reproducible(job.threads, device)
    with peers.silence_told(Path(job.work_dir)):
        state = _resume(job, peers)
        while True:
            recipe = stages[state.stage]
            if not state.stage_is_over(recipe.epochs, recipe.patience):
                learner = Learner.create(recipe, build_model(job, state.stage), device=device, world_size=world_size)
                learner.restore(state)
                _train_stage(job, state, learner, peers, device, on_epoch, on_step)
            if state.stage + 1 == len(stages):
                return state
            state.begin_next_stage()


def _train_stage(
    job: TrainJob,
    state: TrainState,
    learner: Learner,
    peers: Peers,
    device: str,
    on_epoch: Callable[[Record], object],
    on_step: Callable[[Progress], object],
) -> None:
    recipe, model, folder = learner.recipe, learner.model, Path(job.work_dir)
    with closing(open_data(job.shards, recipe, model, seed=job.seed, peers=peers, threads=job.threads)) as data:
        steps = data.train.steps_per_epoch
        targets = Targets(recipe, data.split.class_histogram, device)
        progress = ProgressFile(folder, peers, epochs=state.first_epoch + recipe.epochs, steps=steps)
        while not state.stage_is_over(recipe.epochs, recipe.patience):
            started, first_step = time.monotonic(), state.step
            learner.train()
            for batch in data.train.epoch(state.epoch, start_step=first_step):
                rate = learning_rate(recipe, (state.epoch - state.first_epoch) * steps + state.step, steps)
                set_learning_rate(learner.optimizer, rate)
                key = (job.seed, "step", state.global_step, peers.rank)
                labels = batch.targets.to(device)
                shares = None if batch.distributions is None else batch.distributions.to(device)
                images, wanted = targets(prepare(batch.images, model, recipe, device), labels, key, shares)
                totals = _take_gradient(learner, images, wanted, labels, key, batch, data, peers)
                learner.update()
                state.end_step(totals)
                if state.global_step % job.checkpoint_every_steps == 0 and state.step < steps:
                    _save(state, folder, peers, learner)
                on_step(progress.tell(state, images=recipe.batch_size))

            trained = time.monotonic() - started
            row = {"epoch": state.epoch + 1, "stage": state.stage + 1, "learning_rate": rate, **state.train_metrics()}
            row |= validate(learner.chosen, data.validation, recipe, peers, device, "val")
            if data.test:
                row |= validate(learner.chosen, data.test, recipe, peers, device, "test")
            state.end_epoch(row, recipe.chosen_by, learner.chosen)
            images_per_second = (steps - first_step) * recipe.batch_size / trained
            state.timings.append({"seconds": time.monotonic() - started, "images_per_second": images_per_second})
            _save(state, folder, peers, learner)
            progress.tell(state, write=True)
            on_epoch(state.records()[-1])


def _take_gradient(
    learner: Learner,
    images: Tensor,
    wanted: Tensor,
    labels: Tensor,
    key: tuple[object, ...],
    batch: Batch,
    data: Data,
    peers: Peers,
) -> list[float]:
    """Leaves the gradient of the global batch in the parameters, by one pass, or by two under SAM; its totals."""
    sam = learner.sam
    loss, logits = learner.passes.run(images, wanted, key, exchange=sam is None or sam.config.gradient == "global")
    totals = _agree_on_totals(loss, logits, labels, batch, data, peers)
    if sam:
        _climb(sam, batch, data, peers)
        with learner.second_pass():
            worst = learner.passes.run(images, wanted, key if sam.config.dropout == "same" else (*key, "second"))
        sam.descend()
        _agree_on_totals(*worst, labels, batch, data, peers)  # what is finite at w need not be at w + e
    _clip_gradient(learner.model, learner.recipe, batch, data, peers)
    return totals


def build_model(job: TrainJob, stage: int = -1) -> FerModel:
    """The model of a stage, by default of the last, with its first weights, the same on every rank.

    They are a function of the seed and of given files, which a later stage finds in what it goes on from.
    """
    recipe = job.recipe.in_stages[stage]
    torch.manual_seed(stable_hash(job.seed, "weights"))
    model = create_model(recipe.model, len(job.labels), **recipe.options)
    for source in job.pretrained if stage == 0 else ():
        load_part(model, source)
    return model


def prepare(images: Tensor, model: FerModel, recipe: Recipe, device: str) -> Tensor:
    """uint8 (B, H, W, 3) -> what the model takes, float32 (B, 3, H, W), on the device."""
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    return normalise(images.to(device), model.mean, model.std, memory_format=layout)


@torch.no_grad()
def answers(model: FerModel, batches: EvalBatches, recipe: Recipe, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """What a model in memory says of one rank's batches of a split; it is left in evaluation mode.

    Returns:
        on the CPU: logits float32 (N, classes), labels int64 (N,), and the rows' numbers int64 (N,).
    """
    model.eval()
    logits, targets, rows = [torch.empty(0, model.num_classes)], [torch.empty(0).long()], [torch.empty(0).long()]
    for batch in batches:
        with autocast(recipe, device):
            logits.append(model(prepare(batch.images, model, recipe, device)).float().cpu())
        targets.append(batch.targets)
        rows.append(batch.rows)
    return torch.cat(logits), torch.cat(targets), torch.cat(rows)


def validate(
    model: FerModel, batches: EvalBatches, recipe: Recipe, peers: Peers, device: str, prefix: str = "val"
) -> Record:
    """Metrics of a whole split, named `prefix`_..., the same for any number of ranks.

    Each rank computes its share of fixed batches; the logits are put in order of rows before anything is summed.
    """
    peers.broadcast_buffers(model)
    shares = peers.gather(answers(model, batches, recipe, device))
    all_logits, all_targets, all_rows = (torch.cat(parts) for parts in zip(*shares, strict=True))
    order = all_rows.argsort()
    metrics = classification_metrics(all_logits[order], all_targets[order])
    return peers.broadcast({f"{prefix}_{name}": value for name, value in metrics.items()})


def _agree_on_totals(
    loss: Tensor, logits: Tensor, labels: Tensor, batch: Batch, data: Data, peers: Peers
) -> list[float]:
    """Sum of losses, correct answers and images of the global batch; all ranks stop here if one has no finite loss.

    One small message an update serves both, and every rank knows the sums exactly, so that any may be saved.
    """
    loss, correct = loss.double(), (logits.argmax(1) == labels).sum()
    size = len(labels)
    values = torch.stack([loss * size, correct, loss.new_tensor(size), (~loss.isfinite()).double()])
    *totals, not_finite = peers.sum(values).tolist()
    if not_finite:
        culprits = batch.rows[~logits.isfinite().all(1).cpu()]
        if not len(culprits) and not loss.isfinite():
            culprits = batch.rows
        raise _diverged("loss", culprits, data, peers)
    return totals


def _climb(sam: Sam, batch: Batch, data: Data, peers: Peers) -> None:
    """To where the loss is worst nearby. A local gradient may be finite on one rank alone: they stop together."""
    norm = sam.climb()
    lost = (~norm.isfinite()).double()
    if peers.sum(lost) if sam.config.gradient == "local" else lost:
        raise _diverged("gradient", batch.rows, data, peers)


def _clip_gradient(model: nn.Module, recipe: Recipe, batch: Batch, data: Data, peers: Peers) -> None:
    """Limits the gradient's norm. It is that of the global batch, so all ranks see the same and stop together."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if not norm.isfinite():
        raise _diverged("gradient", batch.rows, data, peers)
    if recipe.gradient_clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, recipe.gradient_clip, norm)


def _diverged(what: str, rows: Tensor, data: Data, peers: Peers) -> DivergedError:
    names = data.split.sample_ids()
    found = [names[row] for share in peers.gather(rows.tolist()) for row in share]
    listing = ", ".join(found[:16]) + (f" and {len(found) - 16} more" if len(found) > 16 else "")
    return DivergedError(
        f"the {what} is NaN or infinite, nothing was updated; samples: {listing}. "
        "Lower the recipe's learning_rate, or set gradient_clip or a longer schedule.warmup_epochs"
    )


def _make_reproducible(threads: int, device: str) -> None:
    torch.set_num_threads(threads)
    if torch.device(device).type == "cpu":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # none is read
    else:
        torch.cuda.set_device(torch.device(device))


def _resume(job: TrainJob, peers: Peers) -> TrainState:
    """The newest state, the same on every rank; a fresh one where none was saved."""
    found: TrainState | StateError | None = None
    if peers.leads:
        try:
            found = TrainState.load(Path(job.work_dir))
        except StateError as error:  # the others wait for an answer
            found = error
    found = peers.broadcast(found)
    if isinstance(found, StateError):
        raise found
    if found is None:
        return TrainState(fingerprint=job.fingerprint, seed=job.seed, world_size=peers.world_size, threads=job.threads)
    found.check(job, peers.world_size, warn=log.warning if peers.leads else None)
    found.resumes += 1
    return found


def _save(state: TrainState, folder: Path, peers: Peers, learner: Learner) -> None:
    if peers.leads:
        learner.keep(state)
        state.save(folder)
