"""Ten times the data takes no more memory: a process's own size, as the kernel counts it."""

from pathlib import Path

import psutil
from builders.runs import run_child
from builders.shards import make_shards

from fer.models.base import Resize
from fer.shards.pixels import ModelInput
from fer.shards.read import ShardSet, TrainBatches

SIZE, BATCH, PREFETCH, WINDOW = 96, 64, 4, 4


def read_an_epoch(folder: str, result: str) -> None:
    """How much larger this process is at its largest, while it reads, than after its first batch."""
    split = ShardSet.open(Path(folder), verify=False).split("train")
    batches = TrainBatches(
        split,
        model_input=ModelInput(SIZE, Resize()),
        batch_size=BATCH,
        seed=0,
        prefetch=PREFETCH,
        window_groups=WINDOW,
        cache_bytes=0,
    )
    process, sizes = psutil.Process(), []
    for _ in batches.epoch(0):
        sizes.append(process.memory_info().rss)
    Path(result).write_text(str(max(sizes) - sizes[0]))


def test_ten_times_the_data_keeps_the_reader_within_twice_its_budget(tmp_path: Path) -> None:
    grown = {}
    for rows in (320, 3200):
        folder, result = make_shards(tmp_path / str(rows), train=rows, size=SIZE), tmp_path / f"{rows}.txt"
        assert run_child(read_an_epoch, str(folder), str(result)) == 0
        grown[rows] = int(result.read_text())
    stored = (folder / "train-0.parquet").stat().st_size
    budget = 2 * WINDOW * 32 * stored // 3200 + (PREFETCH + 1) * BATCH * SIZE * SIZE * 3
    assert max(grown.values()) < 2 * budget, grown
    assert grown[3200] - grown[320] < budget, grown
    assert 4 * budget < 3200 * SIZE * SIZE * 3, "the whole of it would not fit into the budget"
