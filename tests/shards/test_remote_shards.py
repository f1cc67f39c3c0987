"""Shards in a store are read as those on the disk are: the same bits, checked, each part fetched once."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from builders.shards import change_manifest, picture, png, write_part, write_set

from fer.io.cache import cache_bytes, make_room
from fer.io.files import FileError
from fer.io.transfer import Patience
from fer.models.base import Resize
from fer.shards import remote
from fer.shards.read import ShardSet, TrainBatches
from fer.shards.remote import RemoteParts, upload
from fer.shards.schema import ShardError

URL = "memory://bucket/sets/tiny"
QUICK = Patience(attempts=2, wait=0.01, stall=1.0)
MANIFEST = "manifest.json"
TRAIN = ["train-f1-0.parquet", "train-f2-0.parquet"]


class Store:
    """An object store in memory that says what it was asked for.

    Attributes:
        asked: name of each file of which bytes were fetched whole, in order.
        hold: names of files whose transfer waits for the event `go`.
        most: transfers under way at the same time, at most.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.system = fsspec.filesystem("memory")
        self.asked: list[str] = []
        self.hold: set[str] = set()
        self.go = threading.Event()
        self.most = self._now = 0
        self._lock = threading.Lock()
        read = type(self.system).cat_file

        def cat_file(system: Any, path: str, **bounds: Any) -> bytes:
            name = path.rpartition("/")[2]
            with self._lock:
                self.asked.append(name)
                self._now += 1
                self.most = max(self.most, self._now)
            if name in self.hold:
                assert self.go.wait(10)
            try:
                return bytes(read(system, path, **bounds))
            finally:
                with self._lock:
                    self._now -= 1

        monkeypatch.setattr(type(self.system), "cat_file", cat_file)

    def upload(self, folder: Path) -> None:
        for path in folder.iterdir():
            self.put(path.name, path.read_bytes())

    def put(self, name: str, data: bytes) -> None:
        self.system.pipe_file(f"/bucket/sets/tiny/{name}", data)

    def get(self, name: str) -> bytes:
        return bytes(self.system.store[f"/bucket/sets/tiny/{name}"].getvalue())

    def remove(self, name: str) -> None:
        self.system.rm_file(f"/bucket/sets/tiny/{name}")

    def parts(self) -> list[str]:
        return [name for name in self.asked if name.endswith(".parquet")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_set(tmp_path / "tiny")


@pytest.fixture
def store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    found = Store(monkeypatch)
    found.upload(folder)
    yield found
    found.go.set()
    found.system.store.clear()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def opened(cache: Path, **options: Any) -> ShardSet:
    return ShardSet.open(URL, cache=cache, **options)


def batches(shards: ShardSet) -> list[tuple[Any, ...]]:
    """Every batch of an epoch, as arrays."""
    reader = TrainBatches(shards.split("train"), model_input=(12, Resize()), batch_size=8, seed=3, window_groups=2)
    return [(batch.images.numpy(), batch.targets.numpy(), batch.rows.numpy()) for batch in reader.epoch(1)]


# ------------------------------------------------------------------------------------------------ reading


def test_set_in_a_store_gives_the_same_batches_as_the_folder(folder: Path, store: Store, cache: Path) -> None:
    here, there = ShardSet.open(folder), opened(cache)
    assert (there.digest, there.labels, there.manifest) == (here.digest, here.labels, here.manifest)
    for one, other in zip(batches(here), batches(there), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    for name in ("train", "validation", "test"):
        assert here.split(name).sample_ids() == there.split(name).sample_ids()
        assert np.array_equal(here.split(name).labels(), there.split(name).labels())
    assert [there.split(name, folds=3, fold=1).rows for name in ("train", "validation")] == [40, 40]


def test_parts_are_fetched_when_needed_and_once(store: Store, cache: Path) -> None:
    shards = opened(cache)
    assert shards.split("train").class_histogram == (30, 20, 10, 0, 0, 0, 0)
    assert store.parts() == [], "labels are read without the images"
    for _ in range(2):
        batches(shards)
    assert sorted(store.parts()) == TRAIN, "and nothing of the other splits"
    assert sorted(path.name for path in (cache / shards.digest).iterdir()) == ["manifest.json", *TRAIN]


def test_later_run_reads_from_the_disk(store: Store, cache: Path) -> None:
    batches(opened(cache))
    store.asked.clear()
    batches(opened(cache))
    batches(opened(cache, verify=False))
    assert store.parts() == []


def test_cache_folder_is_that_of_the_environment(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_CACHE", str(tmp_path / "mine"))
    shards = ShardSet.open(URL)
    assert shards.folder == tmp_path / "mine" / "shards" / shards.digest


def test_path_and_file_url_are_local(folder: Path) -> None:
    assert ShardSet.open(str(folder)).store is None
    assert not remote.is_remote(folder)
    assert remote.is_remote("s3://bucket/a")


def test_reading_starts_when_the_first_part_is_there_not_when_all_are(store: Store, cache: Path) -> None:
    store.hold = {TRAIN[1]}
    split = opened(cache).split("train")
    split.expect(range(5))
    assert len(split.images(0).offsets) == 17
    assert not store.go.is_set()
    store.go.set()
    assert len(split.images(4).offsets) == 5


def test_expected_parts_are_fetched_in_order_a_bounded_number_at_a_time(store: Store, cache: Path) -> None:
    store.hold = {"test-0.parquet", *TRAIN, "train-f0-0.parquet"}
    parts = RemoteParts(URL, cache=cache, fetches=2, patience=QUICK)
    store.asked.clear()
    order = ["test-0.parquet", TRAIN[1], "train-f0-0.parquet", TRAIN[0]]
    parts.expect([*order, *order])
    while len(store.asked) < 2:
        time.sleep(0.001)
    store.go.set()
    for name in order:
        assert parts.need(name).is_file()
    assert sorted(store.asked[:2]) == sorted(order[:2])
    assert sorted(store.asked) == sorted(order)
    assert store.most == 2


def test_row_groups_are_announced_in_the_order_of_their_rows(store: Store, cache: Path) -> None:
    split = opened(cache).split("train")
    assert split.row_group_sizes == (16, 16, 8, 16, 4)
    assert split.groups_of(np.array([59, 0, 41, 56, 15, 16, 2])) == [4, 0, 3, 1]


def test_two_ranks_of_a_machine_fetch_once(store: Store, cache: Path) -> None:
    ranks = [opened(cache) for _ in range(3)]
    found: list[Any] = [None] * len(ranks)

    def read(rank: int) -> None:
        found[rank] = batches(ranks[rank])

    threads = [threading.Thread(target=read, args=(rank,)) for rank in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(one) == len(found[0]) == 7 for one in found)
    assert sorted(store.parts()) == TRAIN


# ------------------------------------------------------------------------------------------------ sent and kept


def test_set_is_sent_once_under_its_digest_and_an_interrupted_upload_resumes(
    folder: Path, store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, sent = type(store.system).put_file, []

    def put_file(system: Any, path: str, target: str, **options: Any) -> None:
        if len(sent) == 2 and "broken" not in sent:
            sent.append("broken")
            raise PermissionError("no")
        sent.append(Path(path).name)
        put(system, path, target, **options)

    monkeypatch.setattr(type(store.system), "put_file", put_file)
    with pytest.raises(FileError, match="the store refuses"):
        upload(folder, "memory://bucket/sent")
    url = upload(folder, "memory://bucket/sent")
    assert upload(folder, "memory://bucket/sent") == url
    parts = sorted(path.name for path in folder.glob("*.parquet"))
    assert sorted(name for name in sent if name != "broken") == parts, "each was sent once"
    there, here = ShardSet.open(url, cache=cache), ShardSet.open(folder)
    assert there.digest == here.digest == url.rpartition("/")[2]
    assert np.array_equal(batches(there)[0][0], batches(here)[0][0])


def test_cache_that_holds_less_than_the_set_gives_the_same_batches(
    folder: Path, store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [(folder / name).stat().st_size for name in TRAIN]
    monkeypatch.setenv("FER_CACHE_GB", str((max(sizes) + min(sizes) / 2) / 1e9))
    shards = opened(cache)
    first = batches(shards)
    make_room(cache, 0, cache_bytes())  # both parts may have come at once, before there was anything to make room
    for one, other in zip(2 * batches(ShardSet.open(folder)), first + batches(shards), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert len(store.parts()) > len(TRAIN), "parts had to make room"


def test_files_that_were_not_used_for_the_longest_time_make_room(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "older", "oldest")):
        path = tmp_path / "digest" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    make_room(tmp_path, 100, 310)
    assert {path.name for path in tmp_path.glob("*/*")} == {"new", "older"}
    for age, name in ((8, ".abandoned.part"), (6, ".late.part")):
        (tmp_path / "digest" / name).write_bytes(bytes(100))
        os.utime(tmp_path / "digest" / name, (time.time() - age * 86400,) * 2)
    make_room(tmp_path, 1000, 310)
    assert [path.name for path in tmp_path.glob("*/*")] == [".late.part"]


@pytest.mark.parametrize("given", ["much", "0", "nan", "-1"])
def test_wrong_size_of_the_cache_is_refused(
    given: str, store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FER_CACHE_GB", given)
    with pytest.raises(ValueError, match=f"FER_CACHE_GB = '{given}'"):
        opened(cache).split("train").images(0)


# ------------------------------------------------------------------------------------------------ damage


def flipped(data: bytes) -> bytes:
    """The same length, one bit changed in an image."""
    changed = bytearray(data)
    changed[len(data) // 2] ^= 16
    return bytes(changed)


def test_changed_part_is_rejected_before_an_image_of_it_is_used(store: Store, cache: Path) -> None:
    store.put(TRAIN[1], flipped(store.get(TRAIN[1])))
    shards = opened(cache)
    split = shards.split("train")
    assert len(split.images(0).offsets) == 17, "the other part is good"
    for _ in range(2):
        with pytest.raises(ShardError, match=rf"part {TRAIN[1]}: {URL}/{TRAIN[1]}: sha256 is .* another or a damaged"):
            split.images(3)
    assert not (shards.folder / TRAIN[1]).exists()


def test_part_changed_after_its_labels_were_read_is_rejected(
    folder: Path, store: Store, cache: Path, tmp_path: Path
) -> None:
    split = opened(cache).split("train")
    labels = split.labels().copy()
    write_part(tmp_path, "other", "train", {row + 1: png(picture(row, 12)) for row in range(40, 60)}, 2)
    store.put(TRAIN[1], (tmp_path / "other").read_bytes())
    with pytest.raises(ShardError, match="sha256 is"):
        split.images(3)
    assert np.array_equal(labels, ShardSet.open(folder).split("train").labels())


def test_label_column_of_another_part_is_noticed_when_the_part_arrives(
    store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RemoteParts._remote_column
    monkeypatch.setattr(RemoteParts, "_remote_column", lambda self, file, name: real(self, TRAIN[0], name))
    split = opened(cache).split("train")
    split.labels()
    assert len(split.images(0).offsets) == 17
    with pytest.raises(ShardError, match=f"{TRAIN[1]}: it changed since its column 'label' was read"):
        split.images(3)


def test_damaged_kept_part_is_fetched_again(folder: Path, store: Store, cache: Path) -> None:
    shards = opened(cache)
    batches(shards)
    kept = shards.folder / TRAIN[0]
    kept.write_bytes(flipped(kept.read_bytes()))
    store.asked.clear()
    assert np.array_equal(batches(opened(cache))[0][0], batches(ShardSet.open(folder))[0][0])
    assert store.parts() == [TRAIN[0]]
    kept.write_bytes(flipped(kept.read_bytes()))
    with pytest.raises(ShardError, match=rf"{kept}.*remove {kept}: it is fetched again from {URL}"):
        batches(opened(cache, verify=False))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda store: store.remove(TRAIN[0]), rf"{URL}/{TRAIN[0]}: missing; upload the folder of shards again"),
        (
            lambda store: store.put(TRAIN[0], store.get(TRAIN[0])[:-10]),
            rf"{URL}/{TRAIN[0]}: \d+ bytes, .* \d+: truncated",
        ),
        (lambda store: store.put("train-f9-0.parquet", b"x"), rf"{URL}/train-f9-0.parquet: not in manifest.json"),
        (
            lambda store: store.put(MANIFEST, store.get(MANIFEST).replace(b'"seed": 0', b'"seed": 1')),
            rf"{URL}: .*altered since it was written",
        ),
        (lambda store: store.remove(MANIFEST), rf"{URL}/manifest.json: no such object"),
    ],
    ids=["missing part", "truncated part", "extra part", "altered manifest", "no manifest"],
)
def test_incomplete_set_is_rejected_when_it_is_opened(store: Store, cache: Path, damage: Any, reason: str) -> None:
    damage(store)
    with pytest.raises(ShardError, match=reason):
        opened(cache)
    assert store.parts() == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": ["a"] * 7}, "labels a, a, .* are not those of label space 'basic7'"),
        ({"splits": {"train": TRAIN}}, "splits do not hold each part once"),
        ({"parts": [{"file": "../../../evil.parquet"}]}, "names a part that is not a plain file name"),
    ],
)
def test_untrusted_manifest_is_checked(
    folder: Path, store: Store, cache: Path, change: dict[str, Any], reason: str
) -> None:
    if "parts" in change:
        first = ShardSet.open(folder).manifest.parts[0].__dict__
        change = {"parts": [first | change["parts"][0]], "splits": {"train": [change["parts"][0]["file"]]}}
    change_manifest(folder, **change)
    store.upload(folder)
    with pytest.raises(ShardError, match=reason):
        opened(cache)


def test_transient_store_failure_is_retried(store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = RemoteParts(URL, cache=cache, patience=QUICK)
    split = ShardSet(parts.folder, parts.manifest, parts.digest, parts).split("train")
    read, failures = type(store.system).cat_file, [2]

    def flaky(system: Any, path: str, **bounds: Any) -> bytes:
        if failures[0]:
            failures[0] -= 1
            raise OSError("slow down")
        return bytes(read(system, path, **bounds))

    monkeypatch.setattr(type(store.system), "cat_file", flaky)
    with pytest.raises(ShardError, match=rf"part {TRAIN[0]}: {URL}/{TRAIN[0]}: slow down \(2 attempts\)"):
        split.images(0)
    assert len(split.images(0).offsets) == 17


def test_set_on_s3_gives_the_same_batches_as_the_folder(folder: Path, cache: Path) -> None:
    pytest.importorskip("moto", reason="needs the extra `bench`")
    pytest.importorskip("s3fs", reason="needs the extra `s3`")
    from benchmarks.remote import s3_server, upload

    with s3_server():
        url = upload(folder)
        assert url == "s3://fer-bench/tiny"
        shards = ShardSet.open(url, cache=cache)
        for one, other in zip(batches(ShardSet.open(folder)), batches(shards), strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
        assert sorted(path.name for path in shards.folder.iterdir()) == ["manifest.json", *TRAIN]
        system = fsspec.filesystem("s3")
        system.pipe_file(f"fer-bench/tiny/{TRAIN[0]}", b"x" * shards.manifest.part(TRAIN[0]).bytes)
        with pytest.raises(ShardError, match=rf"part {TRAIN[0]}: {url}/{TRAIN[0]}: sha256 is"):
            ShardSet.open(url, cache=cache / "other").split("train").images(0)
        system.rm_file(f"fer-bench/tiny/{TRAIN[1]}")
        with pytest.raises(ShardError, match=f"{TRAIN[1]}: missing"):
            ShardSet.open(url, cache=cache)


def test_no_secret_is_in_an_error(store: Store, cache: Path) -> None:
    with pytest.raises(ShardError) as failure:
        ShardSet.open("memory://me:hunter2@bucket/nothing", cache=cache)
    assert "hunter2" not in str(failure.value)
