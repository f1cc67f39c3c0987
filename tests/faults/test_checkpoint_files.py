"""Checkpoint files: killed after any byte, or damaged later, there is always a whole one to resume from."""

import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from builders.limits import patience
from builders.mlflow_runs import give_store, recorded
from builders.projects import TOY, make_project, published
from builders.runs import child, no_leftovers, run_child, run_stage
from builders.stopping import die_before_update, run_facts

from fer.training.state import StateError, TrainState, saved_states

EVERY = 197
"""Bytes between two of the places where a writer is killed."""


def a_state(step: int) -> TrainState:
    state = TrainState(fingerprint="f" * 64, seed=1, world_size=1, threads=1, global_step=step)
    state.model = {"weight": torch.full((300,), float(step))}
    return state


def killed_after(folder: Path, size: int) -> int:
    """Saves state 2 in a process that the kernel kills when a file grows beyond `size` bytes; the signal."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        a_state(2).save(folder)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at_rename(folder: Path, after: bool) -> int:
    """Saves state 2 in a process that is killed at its rename; the signal."""
    pid = os.fork()
    if pid == 0:
        rename = os.replace

        def deadly(source: Path, target: Path) -> None:
            if after:
                rename(source, target)
            os.kill(os.getpid(), signal.SIGKILL)

        os.replace = deadly  # type: ignore[assignment]
        a_state(2).save(folder)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_all_the_way(folder: str, whole: int) -> None:
    """Kills a writer after every so many bytes, and checks what is left each time."""
    work = Path(folder)
    for size in (*range(0, whole - 40, EVERY), *range(whole - 40, whole, 3), whole - 1):
        assert killed_after(work, size) == -signal.SIGXFSZ, size
        _expect(work, 1)
    assert killed_at_rename(work, after=False) == -signal.SIGKILL
    _expect(work, 1)
    assert killed_at_rename(work, after=True) == -signal.SIGKILL
    _expect(work, 2)


def _expect(work: Path, step: int) -> None:
    left = list(work.glob(".state-*.tmp-*"))
    state = TrainState.load(work)
    assert state.global_step == step
    assert state.fallbacks == 0, "nothing half-written ever had a checkpoint's name"
    assert bool(left) == (step == 1)
    assert no_leftovers(work)


def test_writer_killed_after_any_byte_leaves_the_last_whole_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    whole = (tmp_path / "sizes" / a_state(2).save(tmp_path / "sizes")).stat().st_size
    assert whole > 10 * EVERY
    work = tmp_path / "work"
    work.mkdir()
    a_state(1).save(work)
    assert run_child(kill_all_the_way, str(work), whole) == 0


def test_damaged_checkpoint_is_counted_once_even_if_the_next_process_is_killed(tmp_path: Path) -> None:
    for step in (1, 2):
        path = tmp_path / a_state(step).save(tmp_path)
    path.write_bytes(path.read_bytes()[:-7])
    for _ in range(3):
        state = TrainState.load(tmp_path)
        assert (state.global_step, state.fallbacks) == (1, 1)
    last = saved_states(tmp_path)[0]
    last.write_bytes(b"")
    with pytest.raises(StateError, match=last.name):
        TrainState.load(tmp_path)


def test_damaged_checkpoint_is_a_warning_and_a_metric_of_the_one_run(tmp_path: Path) -> None:
    whole = make_project(tmp_path / "whole", recipe=TOY, epochs=2, tracking={"enabled": False})
    assert run_child(run_stage, str(whole), str(tmp_path / "whole.txt")) == 0
    root = make_project(give_store(tmp_path / "damaged"), recipe=TOY, epochs=2)
    killed = child(run_stage, str(root), str(tmp_path / "killed.txt"), die_before_update(8))
    killed.join(patience(100))
    assert killed.exitcode == -signal.SIGKILL, (tmp_path / "killed.txt").read_text()
    newest = saved_states(next(root.glob(".work/[0-9a-f]*")))[0]
    data = bytearray(newest.read_bytes())
    data[len(data) // 3] ^= 1
    newest.write_bytes(data)
    assert run_child(run_stage, str(root), str(tmp_path / "again.txt")) == 0
    assert newest.name in (tmp_path / "again.txt").read_text()
    assert published(root) == published(whole)
    facts = run_facts(root)
    assert (facts["checkpoint_fallbacks"], facts["resumes"]) == (1, 1)
    ((status, curves),) = recorded(root)
    assert status == "FINISHED"
    assert (2, 1.0) in curves["checkpoint_fallbacks"]
    for name, points in curves.items():
        assert len({step for step, _ in points}) == len(points), name
