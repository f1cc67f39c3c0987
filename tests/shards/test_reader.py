"""Promises of the Parquet reader: the same samples whatever reads them, bounded memory, no hang."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.shards import LABELS, label_of, picture, png, write_split

from fer.models.base import Resize
from fer.shards.dataset import RowGroups, ShardSplit
from fer.shards.order import epoch_order
from fer.shards.pixels import ModelInput, resize
from fer.shards.read import EvalBatches, SampleError, TrainBatches
from fer.shards.schema import ShardError, shard_schema
from fer.shards.table import write_table
from fer.transforms.reference import Apply, Augmenter, AugmentSpec

INPUT = (12, Resize())
AUGMENT = [
    AugmentSpec(name="HorizontalFlip"),
    AugmentSpec(name="Affine", options={"rotate": [-15, 15], "border_mode": "reflect"}),
    AugmentSpec(name="Erasing"),
]
WITHOUT_FAST_FORM = [*AUGMENT, AugmentSpec(name="GaussNoise")]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> ShardSplit:
    return write_split(tmp_path_factory.mktemp("shards"))


class Planned:
    """Stands for an `Augmenter`: does the same to every image."""

    def __init__(self, apply: Apply) -> None:
        self._apply = apply

    def plan(self, keys: np.ndarray) -> Apply:
        return self._apply


def train_batches(split: ShardSplit, **options: object) -> TrainBatches:
    defaults: dict[str, object] = {"model_input": INPUT, "batch_size": 8, "seed": 5, "window_groups": 2}
    return TrainBatches(split, **{**defaults, **options})  # type: ignore[arg-type]


def bits(batches: object) -> list[tuple[int, bytes, list[int], list[int]]]:
    return [
        (b.index, b.images.numpy().tobytes(), b.targets.tolist(), b.rows.tolist())
        for b in batches  # type: ignore[attr-defined]
    ]


def test_batches_hold_the_rows_of_the_epochs_order_with_their_images_and_labels(split: ShardSplit) -> None:
    batches = list(train_batches(split).epoch(3))
    order = epoch_order(split.row_group_sizes, seed=5, epoch=3, window_groups=2)
    assert [b.index for b in batches] == list(range(12))
    assert torch.cat([b.rows for b in batches]).tolist() == order[:96].tolist()
    for batch in batches:
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (8, 12, 12, 3)
        for image, target, row in zip(batch.images, batch.targets.tolist(), batch.rows.tolist(), strict=True):
            assert (image.numpy() == picture(row, 12)).all()
            assert target == label_of(row)


@pytest.mark.parametrize("sampler", ["shuffle", "balanced"])
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("recipe", [AUGMENT, WITHOUT_FAST_FORM], ids=["fast", "albumentations"])
def test_all_ranks_together_read_what_one_reads_alone(
    split: ShardSplit, world_size: int, sampler: str, recipe: list[AugmentSpec]
) -> None:
    augment = Augmenter(recipe, 12)
    assert augment.fast == (recipe is AUGMENT)
    alone = list(train_batches(split, augment=augment, sampler=sampler).epoch(1))
    ranks = [
        list(train_batches(split, augment=augment, sampler=sampler, rank=r, world_size=world_size).epoch(1))
        for r in range(world_size)
    ]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
        assert torch.equal(whole.rows, torch.cat([part.rows for part in parts]))


@pytest.mark.parametrize("recipe", [AUGMENT, WITHOUT_FAST_FORM], ids=["fast", "albumentations"])
def test_results_do_not_depend_on_threads_prefetch_or_cache(split: ShardSplit, recipe: list[AugmentSpec]) -> None:
    augment = Augmenter(recipe, 12)
    plain = train_batches(split, augment=augment, threads=1, prefetch=1, cache_bytes=0)
    expected = [bits(plain.epoch(epoch)) for epoch in range(3)]
    assert expected[0] != expected[1]
    for threads, prefetch, cache in ((3, 5, 0), (2, 2, 1 << 20), (1, 8, 20_000)):
        other = train_batches(split, augment=augment, threads=threads, prefetch=prefetch, cache_bytes=cache)
        assert [bits(other.epoch(epoch)) for epoch in range(3)] == expected


@pytest.mark.parametrize("sampler", ["shuffle", "balanced"])
def test_resuming_at_any_step_gives_exactly_the_tail_of_the_epoch(split: ShardSplit, sampler: str) -> None:
    augment = Augmenter(AUGMENT, 12)
    whole = bits(train_batches(split, augment=augment, sampler=sampler).epoch(2))
    for start in (0, 1, 5, 11, 12):
        assert bits(train_batches(split, augment=augment, sampler=sampler).epoch(2, start_step=start)) == whole[start:]


def test_row_drawn_twice_is_augmented_differently(split: ShardSplit) -> None:
    noise = Augmenter([AugmentSpec(name="GaussNoise", p=1.0)], 12)
    seen: dict[int, set[bytes]] = {}
    for batch in train_batches(split, augment=noise, sampler="balanced").epoch(0):
        for image, row in zip(batch.images, batch.rows.tolist(), strict=True):
            seen.setdefault(row, set()).add(image.numpy().tobytes())
    rows = [row for b in train_batches(split, sampler="balanced").epoch(0) for row in b.rows.tolist()]
    repeated = {row for row in rows if rows.count(row) > 1}
    assert repeated
    assert all(len(seen[row]) == rows.count(row) for row in repeated)


def test_soft_labels_are_the_stored_distribution_or_one_hot(tmp_path: Path) -> None:
    distributions = {3: [0.5, 0.5, 0, 0, 0, 0, 0], 17: [0.1, 0.2, 0.7, 0, 0, 0, 0]}
    split = split_with_distributions(tmp_path, distributions)
    seen = {}
    for batch in train_batches(split, soft_labels=True).epoch(0):
        assert batch.distributions.dtype == torch.float32
        seen |= dict(zip(batch.rows.tolist(), batch.distributions, strict=True))
    assert len(seen) == 24
    for row, given in seen.items():
        expected = torch.tensor(distributions[row]) if row in distributions else torch.eye(7)[label_of(row)]
        assert torch.equal(given, expected)
    assert next(train_batches(split).epoch(0)).distributions is None


def test_distribution_of_another_number_of_labels_is_rejected(tmp_path: Path) -> None:
    split = split_with_distributions(tmp_path, {17: [0.5, 0.5]})
    with pytest.raises(ShardError, match=r"soft\.parquet: sample 'small/17' has 2 .* 7 labels: "):
        train_batches(split, soft_labels=True)


def split_with_distributions(folder: Path, distributions: dict[int, list[float]]) -> ShardSplit:
    rows = [
        {"sample_id": f"small/{row}", "image": png(picture(row, 12)), "label": label_of(row), "clean_label": 0}
        | {"distribution": distributions.get(row)}
        for row in range(24)
    ]
    write_table(folder / "soft.parquet", rows, shard_schema(), rows_per_group=16)
    return ShardSplit("train", [(folder / "soft.parquet", (16, 8))], LABELS)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 101])
def test_evaluation_reads_every_row_once_on_any_world_size(split: ShardSplit, batch_size: int, world_size: int) -> None:
    passes = [
        EvalBatches(split, model_input=INPUT, batch_size=batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    batches = sorted((b for one in passes for b in one), key=lambda b: b.index)
    assert sum(len(one) for one in passes) == len(batches)
    assert torch.cat([b.rows for b in batches]).tolist() == list(range(100))
    assert all(b.rows[0] == b.index * batch_size for b in batches)
    assert (batches[-1].images[-1].numpy() == picture(99, 12)).all()


def test_gray_images_are_replicated_and_resized_as_color_is(tmp_path: Path) -> None:
    split = write_split(tmp_path, rows=20, gray=True)
    for antialias in (True, False):
        batches = EvalBatches(split, model_input=(20, Resize(antialias=antialias)), batch_size=20)
        for _ in range(2):  # decoded, then from the cache
            images = next(iter(batches)).images
            assert images.shape == (20, 20, 20, 3)
            assert torch.equal(images[..., 0], images[..., 1])
            assert torch.equal(images[..., 0], images[..., 2])


def test_a_truncated_input_reaches_training_as_stored_and_evaluation_unrounded(split: ShardSplit) -> None:
    target = ModelInput(20, Resize(antialias=False), truncate=True)
    images = {row: picture(row, 12) for row in range(split.rows)}
    for cache_bytes in (0, 1 << 20):
        batches = train_batches(split, model_input=target, cache_bytes=cache_bytes)
        for epoch in (0, 1):  # the second is read from the cache
            for batch in batches.epoch(epoch):
                assert batch.images.dtype == torch.uint8
                for row, image in zip(batch.rows.tolist(), batch.images.numpy(), strict=True):
                    assert (image == resize(images[row], target, training=True)).all()
        for batch in EvalBatches(split, model_input=target, batch_size=20, cache_bytes=cache_bytes):
            assert batch.images.dtype == torch.float32
            for row, image in zip(batch.rows.tolist(), batch.images.numpy(), strict=True):
                assert (image == resize(images[row], target)).all()


def test_row_groups_are_read_once_for_all_threads_and_the_oldest_are_dropped(split: ShardSplit) -> None:
    reads: list[int] = []

    class Counting(ShardSplit):
        def images(self, group: int):  # type: ignore[no-untyped-def]
            reads.append(group)
            time.sleep(0.01)
            return split.images(group)

    groups = RowGroups(Counting("train", [], LABELS), capacity=2)
    threads = [threading.Thread(target=lambda: groups[0]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reads == [0]
    for group in (1, 0, 2, 0, 1):
        groups[group]
        assert len(groups) <= 2
    assert reads == [0, 1, 2, 1]


def test_broken_image_is_named_within_seconds_and_no_thread_stays(tmp_path: Path) -> None:
    split = write_split(tmp_path, broken={41: b"GIF89a nothing", 77: b""})
    started = time.monotonic()
    with pytest.raises(SampleError, match=r"small/00(41|77).*parquet.*not a readable image") as caught:
        list(train_batches(split, threads=2).epoch(0))
    assert caught.value.sample_id in ("small/0041", "small/0077")
    assert Path(caught.value.file).is_file()
    assert time.monotonic() - started < 5
    assert not reader_threads()


def test_error_in_augmentation_names_the_sample(split: ShardSplit) -> None:
    def fails(position: int, image: np.ndarray, out: np.ndarray) -> None:
        raise KeyError("no such thing")

    with pytest.raises(SampleError, match=r"small/\d+.*no such thing"):
        next(train_batches(split, augment=Planned(fails)).epoch(0))


def test_file_changed_during_reading_is_an_error_that_names_it(tmp_path: Path) -> None:
    split = write_split(tmp_path)
    batches = train_batches(split, cache_bytes=0)
    path = tmp_path / "train-f0-0.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"train-f0-0\.parquet.*dvc repro -f shard@"):
        list(batches.epoch(0))
    path.unlink()
    with pytest.raises(ShardError, match=r"train-f0-0\.parquet.*dvc repro -f shard@"):
        list(batches.epoch(0))


def test_threads_end_when_an_epoch_is_left_exhausted_or_closed(split: ShardSplit) -> None:
    batches = train_batches(split, threads=3)
    left = batches.epoch(0)
    next(left)
    assert reader_threads()
    left.close()  # type: ignore[attr-defined]
    assert not reader_threads()
    list(batches.epoch(1))
    assert not reader_threads()
    running = batches.epoch(2)
    next(running)
    batches.close()
    assert not reader_threads()
    with pytest.raises(RuntimeError, match="closed"):
        list(running)


def test_error_before_a_batch_starts_ends_the_epoch(split: ShardSplit) -> None:
    class Unplanned:
        def plan(self, keys: np.ndarray) -> Apply:
            raise KeyError("no plan")

    with pytest.raises(KeyError, match="no plan"):
        list(train_batches(split, augment=Unplanned(), threads=3).epoch(0))
    assert not reader_threads()


def test_batch_keeps_its_memory_while_any_view_of_it_is_in_use(split: ShardSplit) -> None:
    batches = train_batches(split, threads=2)
    expected = [batch.images.clone() for batch in batches.epoch(0)]
    kept = [batch.images[3:5].numpy()[:, 2:] for batch in batches.epoch(0)]
    for images, part in zip(expected, kept, strict=True):
        assert (images[3:5, 2:].numpy() == part).all()
    addresses = set()
    for batch in batches.epoch(1):
        addresses.add(batch.images.data_ptr())
        del batch
    assert len(addresses) < len(expected)


def test_no_more_batches_are_prefetched_than_configured(split: ShardSplit) -> None:
    made: list[int] = []

    def count(position: int, image: np.ndarray, out: np.ndarray) -> None:
        made.append(position)

    epoch = train_batches(split, augment=Planned(count), threads=2, prefetch=3).epoch(0)
    next(epoch)
    time.sleep(0.3)
    assert len(made) <= 8 * (1 + 3)
    epoch.close()  # type: ignore[attr-defined]


def test_too_few_rows_for_a_batch_or_samples_for_the_ranks_are_rejected(split: ShardSplit) -> None:
    with pytest.raises(ValueError, match=r"100 rows.*batch_size"):
        train_batches(split, batch_size=101)
    with pytest.raises(ValueError, match="3 workers"):
        train_batches(split, batch_size=2, world_size=3)
    with pytest.raises(ValueError, match="lanczos"):
        train_batches(split, model_input=(12, Resize(kernel="lanczos")))


def test_split_describes_its_rows(split: ShardSplit) -> None:
    assert split.rows == 100
    assert sum(split.row_group_sizes) == 100
    assert split.labels().tolist() == [label_of(row) for row in range(100)]
    assert split.class_histogram == (51, 33, 16, 0, 0, 0, 0)
    assert split.sample_ids() == [f"small/{row:04d}" for row in range(100)]
    assert [split.sample_id(row) for row in (0, 66, 99)] == ["small/0000", "small/0066", "small/0099"]


def test_labels_outside_the_names_are_rejected(split: ShardSplit) -> None:
    fewer = ShardSplit("train", [(split.file_of(0), split.row_group_sizes[:5])], LABELS[:2])
    with pytest.raises(ShardError, match="labels 0 to 2"):
        fewer.labels()


def reader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fer-reader")]
