"""The batches of one rank: what stands between the loop and the Parquet reader."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fer.models import FerModel
from fer.shards.read import Batch, EvalBatches, ModelInput, ShardSet, ShardSplit, TrainBatches
from fer.shards.schema import Split
from fer.training.distributed import Distributed
from fer.training.phases import Rows
from fer.training.recipe import Recipe
from fer.transforms.reference import Augmenter


class Waiting:
    """Batches one after the other; `seconds` grows by how long whoever takes them waits for each."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = batches
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._batches)
        while True:
            begun = time.monotonic()
            batch = next(batches, None)
            self.seconds += time.monotonic() - begun
            if batch is None:
                return
            yield batch
            del batch  # its memory serves a later one


@dataclass(frozen=True)
class Data:
    """What one rank trains on and validates.

    Attributes:
        validation: None where its rows are trained on.
        split: the rows that are trained on, to name its samples.
        test: None where it was not asked for.
    """

    train: TrainBatches
    validation: EvalBatches | None
    split: ShardSplit
    test: EvalBatches | None

    def close(self) -> None:
        """Ends the reader's threads."""
        for batches in (self.train, self.validation, self.test):
            if batches:
                batches.close()


def open_data(
    folder: str,
    recipe: Recipe,
    model: FerModel,
    *,
    seed: int,
    distributed: Distributed,
    threads: int,
    rows: Rows = "train",
    test: bool = False,
) -> Data:
    """The rank's part of the train and validation splits.

    Args:
        rows: "development" trains on both, so that there is nothing to validate on.
        test: whether to open the test split too.

    Raises:
        ValueError: the batch cannot be split evenly between the ranks, or the shards cannot be used.
    """
    if recipe.batch_size % distributed.world_size:
        raise ValueError(
            f"batch_size = {recipe.batch_size} cannot be split evenly between {distributed.world_size} workers: "
            "change the recipe's batch_size or train.workers"
        )
    # The digests were verified before the workers started; reading each part once more on each rank would cost seconds.
    shards = ShardSet.open(folder, verify=False)
    held = recipe.cross_validation
    chosen = {} if held is None else {"folds": held.folds, "fold": held.fold, "repeat": held.repeat}
    split = shards.split(rows, **chosen)
    model_input = ModelInput.of(model)
    train = TrainBatches(
        split,
        model_input=model_input,
        augment=Augmenter(recipe.augment, model.input_size) if recipe.augment else None,
        batch_size=recipe.batch_size,
        seed=seed,
        rank=distributed.rank,
        world_size=distributed.world_size,
        threads=threads,
        sampler=recipe.sampler,
        soft_labels=recipe.labels == "soft",
    )

    def evaluation(name: Split) -> EvalBatches:
        return EvalBatches(
            shards.split(name, **chosen),
            model_input=model_input,
            batch_size=recipe.eval_batch_size,
            rank=distributed.rank,
            world_size=distributed.world_size,
            threads=threads,
        )

    validation = evaluation("validation") if rows == "train" else None
    return Data(train, validation, split, evaluation("test") if test else None)
