"""A stopped crop stage resumes after its last finished block, to the same bytes, on any number of workers."""

import random
import signal
from pathlib import Path

import pytest
from builders.crops import BLOCKS, CHANGES, CONFIG, TinySource, begun, crop, crop_until, make_raw, start
from builders.limits import patience
from builders.places import contents
from builders.projects import finish
from builders.runs import run_child, still_alive
from builders.stopping import family, wait_until

from fer.faces.blocks import MOST_ATTEMPTS, crop_block
from fer.io.files import FileError
from fer.processes import lock

KILLED = -signal.SIGKILL
MOMENTS = range(1, CHANGES + 1)
SOME = sorted(random.Random(0).sample(MOMENTS, 4))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("undisturbed")
    make_raw(root)
    whole = crop(root)
    assert not (root / ".work" / "crop").exists()
    assert set(begun(root).values()) == {1}
    return whole


@pytest.mark.parametrize(
    "moment", [*SOME, *(pytest.param(k, marks=pytest.mark.slow) for k in MOMENTS if k not in SOME)]
)
def test_killed_at_any_rename_it_resumes_to_the_same_bytes(
    undisturbed: dict[str, bytes], tmp_path: Path, moment: int
) -> None:
    make_raw(tmp_path)
    assert run_child(crop_until, tmp_path, moment) == KILLED
    assert not (tmp_path / "data" / "faces" / "tiny").exists()
    done = {path.stem for path in tmp_path.glob(".work/crop/*/faces-*.json")}
    assert len(done) == min((moment - 1) // 2, BLOCKS)
    assert crop(tmp_path) == undisturbed
    again = {f"faces-{block:05d}" for block, times in begun(tmp_path).items() if times > 1}
    assert not again & done
    assert not (tmp_path / ".work" / "crop").exists()
    assert [path.name for path in (tmp_path / "data" / "faces").iterdir()] == ["tiny"]


def test_error_in_a_block_keeps_existing_outputs_and_every_finished_block(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    raw = make_raw(tmp_path)
    final = tmp_path / "data" / "faces" / "tiny"
    crop(tmp_path, config=CONFIG.model_copy(update={"size": 40}))
    before = contents(final)
    (raw / "raise-4").touch()
    with pytest.raises(ValueError, match="block 4 cannot be read"):
        crop(tmp_path)
    assert contents(final) == before
    (raw / "raise-4").unlink()
    assert crop(tmp_path) == undisturbed
    assert begun(tmp_path) == {0: 2, 1: 2, 2: 2, 3: 2, 4: 3, 5: 2}


def test_damaged_finished_block_is_done_again(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    raw = make_raw(tmp_path)
    (raw / "raise-3").touch()
    with pytest.raises(ValueError, match="cannot be read"):
        crop(tmp_path)
    (raw / "raise-3").unlink()
    first, second, third = sorted(tmp_path.glob(".work/crop/*/faces-*.parquet"))
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    second.unlink()
    third.with_suffix(".json").write_text("{")
    assert crop(tmp_path) == undisturbed
    assert [begun(tmp_path)[block] for block in range(3)] == [2, 2, 2]


def test_work_of_another_configuration_is_not_used_and_is_removed(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    raw = make_raw(tmp_path)
    make_raw(tmp_path, "tiny-b")
    for name in ("tiny", "tiny-b"):
        (tmp_path / "data" / "raw" / name / "raise-2").touch()
        with pytest.raises(ValueError, match="cannot be read"):
            crop(tmp_path, name=name, config=CONFIG.model_copy(update={"jpeg_quality": 50}))
    assert len(list(tmp_path.glob(".work/crop/*"))) == 2
    (raw / "raise-2").unlink()
    assert crop(tmp_path) == undisturbed
    (other,) = tmp_path.glob(".work/crop/*")
    assert other.name.startswith("tiny-b-"), "another dataset's work stays"


def test_work_of_another_running_experiment_is_kept(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    make_raw(tmp_path)
    living = tmp_path / ".work" / "crop" / f"tiny-{'0' * 16}"
    with lock(living / "lock"):
        (living / "faces-00000.parquet").touch()
        assert crop(tmp_path) == undisturbed
        assert [path.name for path in tmp_path.glob(".work/crop/*/faces-*")] == ["faces-00000.parquet"]
    assert crop(tmp_path) == undisturbed
    assert not (tmp_path / ".work" / "crop").exists(), "nobody uses it any more"


def test_raising_max_bad_fraction_resumes_where_the_stage_stopped(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    make_raw(tmp_path)
    with pytest.raises(FileError, match=r"2 of the first 15 images cannot be decoded \(truncated 2\)") as failure:
        crop(tmp_path, config=CONFIG.model_copy(update={"max_bad_fraction": 0.05}))
    assert "tiny/0003 (tiny:3)" in str(failure.value)
    assert "crop.max_bad_fraction" in str(failure.value)
    assert crop(tmp_path) == undisturbed
    assert set(begun(tmp_path).values()) == {1}


def test_block_that_kills_every_worker_is_given_up(tmp_path: Path) -> None:
    raw = make_raw(tmp_path)
    (raw / "poison-1").touch()
    block = TinySource().blocks(raw)[1]
    task = (TinySource(), CONFIG, None, 1, str(raw), str(tmp_path), block)
    for _ in range(MOST_ATTEMPTS):
        assert run_child(crop_block, *task) == KILLED
    with pytest.raises(RuntimeError, match=r"tiny, rows 5 to 9: given up, 4 workers died of it"):
        crop_block(*task)


@pytest.mark.ray
@pytest.mark.slow  # quick: tests/cluster/test_session.py
def test_killed_actor_is_replaced_and_the_bytes_are_the_same(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    raw = make_raw(tmp_path)
    (raw / "kill-1").touch()
    (raw / "kill-4").touch()
    finish(start(tmp_path, workers=2), timeout=250)
    assert contents(tmp_path / "data" / "faces" / "tiny") == undisturbed
    assert {block for block, times in begun(tmp_path).items() if times > 1} >= {1, 4}
    assert not list(raw.glob("kill-*"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_bytes(
    undisturbed: dict[str, bytes], tmp_path: Path, workers: int
) -> None:
    make_raw(tmp_path)
    finish(start(tmp_path, workers=workers), timeout=250)
    assert contents(tmp_path / "data" / "faces" / "tiny") == undisturbed


@pytest.mark.ray
@pytest.mark.slow
def test_killed_driver_leaves_no_worker_and_the_stage_resumes(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    raw = make_raw(tmp_path)
    (raw / "wait-3").touch()
    stage = start(tmp_path, workers=2)
    wait_until(lambda: len(list(tmp_path.glob(".work/crop/*/faces-*.json"))) >= 3, stage)
    processes = family(stage)
    stage.kill()
    stage.communicate()
    # Ray's two agents stay for a minute or two, idle, asking for the head they have lost.
    assert not [name for name in still_alive(processes, 10) if not name.endswith("Agent")]
    assert not (tmp_path / "data" / "faces").exists()
    (raw / "wait-3").unlink()
    assert crop(tmp_path) == undisturbed
    assert all(begun(tmp_path)[block] == 1 for block in range(3))


@pytest.mark.ray
@pytest.mark.slow
def test_block_that_kills_every_actor_ends_the_stage_with_its_name(tmp_path: Path) -> None:
    raw = make_raw(tmp_path)
    (raw / "poison-2").touch()
    said, _ = start(tmp_path, workers=2).communicate(timeout=patience(250))
    assert "RuntimeError" in said
    assert "tiny, rows 10 to 14: given up" in said
    assert begun(tmp_path)[2] == MOST_ATTEMPTS
