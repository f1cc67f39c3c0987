"""How a process starts and ends: quiet libraries, signals, exit codes, locks, no orphans.

DVC ignores SIGINT while a stage runs and leaves the stage running when it is itself terminated; Ray replaces signals by
exit codes of its own. So each entry point runs through `run`: it ends together with its parent and DVC, SIGINT and
SIGTERM raise an exception that unwinds every `finally`, and the exit code is 130 or 143.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

from fer import console
from fer.environment import environment
from fer.io.files import is_storage_error, name_in_errors, process_is_alive, storage_error_message

_PR_SET_PDEATHSIG = 1
_RAISE_AGAIN_SECONDS = 1.0
_POLL_SECONDS = 0.2
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _LARGEST_INT = -1, -3, 2**31 - 1
"""Of glibc's malloc.h."""

# Set before the libraries are imported; a value that the user has set stays.
_DEFAULTS = {
    "NO_ALBUMENTATIONS_UPDATE": "1",  # else it asks the network for a newer version at import
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # a model is never unpickled
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # else a server that dies delays a run for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",
    "OPENCV_FFMPEG_LOGLEVEL": "-8",  # of a damaged video, our own message names the file
    # Threads of torch that wait for work sleep instead of spinning: beside the reader's threads, spinning costs more
    # than it saves (measured: 2 to 10 times the throughput on busy cores).
    "OMP_WAIT_POLICY": "passive",
    # For Ray's workers and other processes started later; see `keep_freed_memory`.
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "RAY_worker_niceness": "0",  # 15 by default, which starves training beside anything else
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # 2 s by default, which every report() waits for
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # 5 s by default, of the 25 s that a spot node may have left
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # 60 s by default, which a busy machine exceeds; demand is checked
    "RAY_SERVE_LOG_TO_STDERR": "0",  # its log is in the folder of the session
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's new output draws boxes even when told to be silent
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else a search that is being stopped starts a second cluster
    "TUNE_DISABLE_AUTO_INIT": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our own record is the only one
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # DDP warns on each rank about the search for unused parameters that it is set to
    "DVC_NO_ANALYTICS": "1",
    "TQDM_MININTERVAL": "0.5",
}


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived. Not an Exception, so that no error handler swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


_stopped_by: Interrupted | None = None
"""The first signal that asked this process to end."""
_resumes = True
"""Whether the command would continue what a signal ends."""


class HeldError(ValueError):
    """Another living process holds a lock."""


class LostError(RuntimeError):
    """The cluster or another part of the machine was lost: no mistake and no defect, so there is no traceback."""


def run(main: Callable[[], int | None]) -> NoReturn:
    """Runs an entry point and ends the process with the right exit code.

    0 (or what `main` returns); 1 for a user's mistake or a lost cluster, in one message, and for a defect, with its
    traceback; 130 and 143 for SIGINT and SIGTERM, 141 where nobody reads the output any more.
    """
    try:
        prepare()
        code = main() or 0
        sys.stdout.flush()
        if _stopped_by is not None:  # swallowed, and the work ended before it was raised again
            raise _stopped_by
    except (Interrupted, Exception) as error:  # noqa: BLE001 - a defect is raised again
        code = _code_after(error)
    sys.exit(code)


def nothing_to_resume() -> None:
    """Says of this process, such as a server, that a signal ends it without anything to continue from."""
    global _resumes
    _resumes = False


def _code_after(error: Interrupted | Exception) -> int:
    """Logs what ended the process, and returns its exit code; raises a defect again."""
    if _stopped_by is not None:  # an import or a call that a signal interrupted may end with any error
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        console.log.debug("interrupted here", exc_info=True)
        hint = "; the same command resumes from the last checkpoint" if _resumes else ""
        console.log.warning("stopped by %s%s", _stopped_by, hint)
        return 128 + _stopped_by.signum
    if isinstance(error, BrokenPipeError):  # the reader of our output, such as `head`, has ended
        # As Python's documentation of SIGPIPE advises: what stdout still buffers is flushed at exit, and must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    debug, unchanged = console.log.isEnabledFor(logging.DEBUG), "existing outputs are unchanged"
    if is_storage_error(error):
        console.log.error("%s; %s", storage_error_message(error), unchanged, exc_info=debug)
    elif isinstance(error, ValueError | FileNotFoundError | PermissionError | LostError):
        console.log.error("%s", error, exc_info=debug)
    elif isinstance(error, OSError):
        console.log.error("%s; %s", error, unchanged, exc_info=True)
    else:
        raise error
    return 1


def prepare() -> None:
    """Quiet libraries, readable logs, signals as exceptions, and an end together with the parent process."""
    for number in _SIGNALS:  # first, for the imports below take seconds
        signal.signal(number, _interrupt)
    sys.unraisablehook = _report_unraisable
    console.set_up()
    keep_freed_memory()
    quiet_libraries()
    end_with_parent()
    if sys.platform == "linux" and (stage := environment().dvc_stage) is not None:
        _end_with_dvc(stage)
    if environment().debug:
        console.set_up(logging.DEBUG)


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Raises `Interrupted`, and again each second until it unwinds the stack.

    Raised once, it may be lost: NumPy's extension modules clear any exception while they are imported, and so does
    Python in a destructor or a weak reference's callback, of which every import has some. One stop in 375 was lost so.
    A second signal while it unwinds does not break the clean-up.
    """
    global _stopped_by
    if _stopped_by is None:
        _stopped_by = Interrupted(signum)
        signal.setitimer(signal.ITIMER_REAL, _RAISE_AGAIN_SECONDS, _RAISE_AGAIN_SECONDS)
    if not on_its_way(Interrupted):
        raise Interrupted(_stopped_by.signum)


@contextmanager
def sigterm_awaited(grace: float) -> Iterator[Callable[[], str]]:
    """Within the block the first SIGTERM is a notice: `Interrupted` is raised at the end of the block.

    It is raised before where the block takes longer than `grace` seconds after the signal, or another one comes more
    than a second later: sooner it is the same request, which a group of processes gets and, as its parent ends, each
    of them again. What is yielded returns the signal's name once it has come, and an empty text before. Without our
    handlers, or outside of the main thread, nothing changes.
    """
    if signal.getsignal(signal.SIGTERM) is not _interrupt or threading.current_thread() is not threading.main_thread():
        yield lambda: ""
        return

    noted = 0.0

    def note(signum: int, frame: FrameType | None) -> None:
        global _stopped_by
        nonlocal noted
        if _stopped_by is None:
            _stopped_by, noted = Interrupted(signum), time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, grace, _RAISE_AGAIN_SECONDS)
        elif time.monotonic() - noted > _RAISE_AGAIN_SECONDS:
            _interrupt(signum, frame)

    signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: "" if _stopped_by is None else str(_stopped_by)
    finally:
        signal.signal(signal.SIGTERM, _interrupt)
    if _stopped_by is not None:
        raise _stopped_by


def on_its_way(kind: type[BaseException]) -> bool:
    """Whether an exception of that kind is being handled now, alone or under another."""
    error = sys.exception()
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__context__
    return False


def _report_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Python's own report of an error that cannot be raised, except for `Interrupted`, which is raised again."""
    if unraisable.exc_type is not Interrupted:
        sys.__unraisablehook__(unraisable)


def quiet_libraries() -> None:
    """Environment defaults that keep third-party libraries off the network, off the screen and quick."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def set_environment(name: str, value: str) -> None:
    """Sets a variable for libraries and child processes; the only way the project writes the environment."""
    os.environ[name] = value


_blocks: dict[str, list[str | None]] = {}
_blocks_lock = threading.Lock()


@contextmanager
def with_environment(name: str, value: str) -> Iterator[None]:
    """`set_environment` for a block; afterwards the variable is restored: of several threads' blocks by the last."""
    with _blocks_lock:
        before = _blocks.setdefault(name, [])
        before.append(os.environ.get(name))
        os.environ[name] = value
    try:
        yield
    finally:
        with _blocks_lock:
            last = before.pop()
            if not before and last is None:
                del os.environ[name]
            elif not before:
                os.environ[name] = str(last)


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def become(command: Sequence[str]) -> NoReturn:
    """Replaces this process by another program, which does not end with its parent as this one did."""
    sys.stdout.flush()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)
    os.execv(command[0], list(command))


def keep_freed_memory() -> None:
    """Lets glibc keep the large blocks that this process frees, unless the user has set its variables.

    It returns them to the kernel after each use, and a step of training allocates the same ones again: without this,
    a tenth to a third of the time goes into page faults.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # musl has none
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_INT)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)


def end_with_parent() -> None:
    """Asks Linux to send SIGTERM to this process when its parent dies."""
    if sys.platform == "linux":
        parent = os.getppid()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
            console.log.warning("cannot ask the kernel to end with the parent (errno %d)", ctypes.get_errno())
        elif os.getppid() != parent:  # it died between the two calls
            raise Interrupted(signal.SIGTERM)


def _end_with_dvc(stage: str) -> None:
    """Sends SIGTERM to this process when DVC dies, which is not its parent where a shell is between the two.

    DVC gives the command of a stage to SHELL or /bin/sh. Bash becomes the command; dash waits for it, and lives on.
    """
    started = psutil.Process()
    try:
        while (parent := started.parent()) is not None and _has_stage(parent, stage):
            started = parent
        dvc = started.ppid()
        ended = os.pidfd_open(dvc)
        orphan = started.ppid() != dvc or _adopts(psutil.Process(dvc))
    except (psutil.NoSuchProcess, ProcessLookupError):  # it died meanwhile
        orphan = True
    except (psutil.Error, OSError):  # it is not ours to look at; or the kernel is older than 5.3
        return
    if orphan:
        raise Interrupted(signal.SIGTERM)
    threading.Thread(target=_stop_after, args=[ended], daemon=True, name="end with DVC").start()


def _has_stage(process: psutil.Process, stage: str) -> bool:
    """Whether DVC started a process for that stage."""
    try:
        found: str | None = process.environ().get("DVC_STAGE")
    except psutil.Error:  # another user's
        return False
    return found == stage


def _adopts(process: psutil.Process) -> bool:
    """Whether it is init or systemd, which adopt orphans, and not DVC."""
    command = process.cmdline()
    program = command[0] if command else ""
    return (process.pid == 1 or program.endswith("systemd")) and not any("dvc" in word for word in command)


def _stop_after(ended: int) -> None:
    """Waits for the process of a pidfd to end, and sends SIGTERM to this one."""
    select.select([ended], [], [])
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def lock(path: Path, *, wait: bool | Callable[[], object] = False) -> Iterator[None]:
    """Holds a file lock for the block; the kernel releases it when the process ends, however it ends.

    Args:
        wait: for another process that holds it, which is logged; or what is called again and again meanwhile.

    Raises:
        HeldError: without `wait`, another living process holds it; the message names that process.
    """
    with _locked(path, wait) as handle:
        handle.truncate(0)
        with name_in_errors(path):
            handle.write(str(os.getpid()).encode())
        try:
            yield
        finally:
            handle.truncate(0)


def holder(path: Path) -> int | None:
    """The living process that holds a lock; None where there is none."""
    with suppress(FileNotFoundError):
        text = path.read_text(encoding="ascii")
        if text.isdecimal() and process_is_alive(int(text)):
            return int(text)
    return None


def _locked(path: Path, wait: bool | Callable[[], object]) -> FileIO:
    """The open file of a lock that this process holds."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Unbuffered: a write that a full disk refuses must not wait in a buffer until the end.
            handle = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed by the caller
        except FileNotFoundError:  # its last holder has just removed the folder
            continue
        if not take_lock(handle):
            other = str(holder(path) or "another process")
            if not wait:
                handle.close()
                raise HeldError(f"{path}: held by process {other}; wait for it to end or stop it")
            console.log.info("%s: held by process %s; waiting for it to end", path, other)
            while not take_lock(handle):
                if callable(wait):
                    wait()
                time.sleep(_POLL_SECONDS)
        if os.fstat(handle.fileno()).st_nlink:
            return handle
        handle.close()  # its last holder has removed it, and the next one would lock a new file


def take_lock(file: FileIO | int) -> bool:
    """Locks an open file, or a descriptor, until it is closed; False where another process holds it."""
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def empty_held(folder: Path) -> None:
    """Removes what is in a folder of unfinished work, except for its `lock`, which this process holds."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


def remove_held(folder: Path) -> None:
    """Removes a folder of unfinished work whose `lock` this process holds; a waiting process creates a new one."""
    empty_held(folder)
    (folder / "lock").unlink()
    with suppress(OSError):  # not empty: another process uses it or a sibling
        folder.rmdir()
        folder.parent.rmdir()


def stage_lock(name: str, root: Path) -> Path:
    """What a run of a pipeline stage holds."""
    return root / ".work" / "locks" / name


@contextmanager
def stage(name: str, root: Path) -> Iterator[None]:
    """One run of a pipeline stage: locks its outputs, and logs the time it took.

    Args:
        name: as DVC names it, e.g. "crop@synthetic".
        root: the project's folder.

    Raises:
        ValueError: the stage runs already.
    """
    started = time.monotonic()
    with lock(stage_lock(name, root)):
        yield
    console.log.info("%s: done in %.1f s", name, time.monotonic() - started)
