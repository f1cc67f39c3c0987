"""How a process of ours begins and ends: quiet libraries, signals, exit codes, locks, no orphans.

DVC ignores SIGINT while a stage runs and leaves the stage alone when it is itself terminated; Ray turns signals into
exit codes of its own. So each entry point runs through `run`, which asks the kernel to be ended with its parent, turns
SIGINT and SIGTERM into an exception that unwinds every `finally`, and leaves with 130 or 143.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from types import FrameType
from typing import NoReturn

from fer import console
from fer.environment import environment
from fer.io.disk import explained, is_of_the_disk
from fer.io.files import naming

_PR_SET_PDEATHSIG = 1
_INSIST_SECONDS = 1.0

# Set before the libraries are imported; a value of the user's own stays.
_DEFAULTS = {
    "NO_ALBUMENTATIONS_UPDATE": "1",  # else it asks the network for a newer version at import
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # a model is never unpickled
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # else a server that dies holds a training up for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",
    # Threads of torch that wait for work sleep instead of spinning: beside the reader's threads, spinning costs more
    # than it saves (measured: 2 to 10 times the throughput on busy cores).
    "OMP_WAIT_POLICY": "passive",
    # glibc gives large blocks back to the kernel after each use, and a training asks for the same ones at every step;
    # kept, they are worth 10 to 30 % of a step of the small models on a CPU. Reaches Ray's workers, which start later.
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "RAY_worker_niceness": "0",  # 15 by default, which starves a training beside anything else
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # 2 s by default, which every report() waits for
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # 60 s by default, which a busy machine exceeds; demand is checked
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's new output draws boxes even when told to be silent
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else a search that is being stopped starts a second cluster
    "TUNE_DISABLE_AUTO_INIT": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our own record is the only one
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # DDP warns on each rank that it looks for unused parameters, as it is told to
    "DVC_NO_ANALYTICS": "1",
    "TQDM_MININTERVAL": "0.5",
}


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived. Not an Exception, so that no handler of errors swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


_arrived: Interrupted | None = None
"""The first signal that asked this process to end."""


class HeldError(ValueError):
    """Another living process holds a lock."""


class LostError(RuntimeError):
    """What the work ran on was lost: no mistake of the user's and no defect, so it is told without a traceback."""


def run(main: Callable[[], int | None]) -> NoReturn:
    """Runs an entry point and ends the process with the right exit code.

    0 (or what `main` returns); 1 for a user's mistake or a lost cluster, told in one message, and for a defect, told
    with its traceback; 130 and 143 for SIGINT and SIGTERM, 141 where nobody reads the output any more.
    """
    try:
        prepare()
        code = main() or 0
        sys.stdout.flush()
        if _arrived is not None:  # swallowed on the way, and the work ended before it came again
            raise _arrived
    except (Interrupted, Exception) as error:  # noqa: BLE001 - a defect is raised again
        code = _code_after(error)
    sys.exit(code)


def _code_after(error: Interrupted | Exception) -> int:
    """Tells what ended the process, and returns its exit code; raises again what is a defect."""
    stop = error if isinstance(error, Interrupted) else _arrived
    if stop is not None:  # what a signal has broken, such as an import, may end as any error
        signal.setitimer(signal.ITIMER_REAL, 0)
        console.log.debug("where the signal was met", exc_info=True)
        console.log.warning("stopped by %s; the same command goes on from the last checkpoint", stop)
        return 128 + stop.signum
    if isinstance(error, BrokenPipeError):  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    debug, unchanged = console.log.isEnabledFor(logging.DEBUG), "the outputs that stood before are unchanged"
    if is_of_the_disk(error):
        console.log.error("%s; %s", explained(error), unchanged, exc_info=debug)
    elif isinstance(error, ValueError | FileNotFoundError | PermissionError | LostError):
        console.log.error("%s", error, exc_info=debug)
    elif isinstance(error, OSError):
        console.log.error("%s; %s", error, unchanged, exc_info=True)
    else:
        raise error
    return 1


def prepare() -> None:
    """Quiet libraries, readable logs, signals as exceptions, and an end together with the parent process."""
    signal.signal(signal.SIGINT, _interrupt)  # first, for what is imported below takes seconds
    signal.signal(signal.SIGTERM, _interrupt)
    sys.unraisablehook = _tell_unraisable
    console.set_up()
    quiet_libraries()
    end_with_parent()
    if environment().debug:
        console.set_up(logging.DEBUG)


def quiet_libraries() -> None:
    """Environment defaults that keep third-party libraries off the network, off the screen and quick."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def set_environment(name: str, value: str) -> None:
    """Sets a variable for libraries and child processes; the only way the project writes the environment."""
    os.environ[name] = value


@contextmanager
def with_environment(name: str, value: str) -> Iterator[None]:
    """The same for a block, after which the variable is what it was."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def end_with_parent() -> None:
    """Asks Linux to send SIGTERM to this process when its parent dies, so that no stage outlives `dvc repro`."""
    if sys.platform == "linux":
        parent = os.getppid()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
            console.log.warning("cannot ask the kernel to end with the parent (errno %d)", ctypes.get_errno())
        elif os.getppid() != parent or _is_orphan(parent):  # it died between the two calls, or before them
            raise Interrupted(signal.SIGTERM)


def _is_orphan(parent: int) -> bool:
    """Whether DVC started this process, and what adopts orphans has it now."""
    try:
        command = Path(f"/proc/{parent}/cmdline").read_bytes()
    except OSError:  # not for us to see
        return False
    adopts = parent == 1 or command.split(b"\0")[0].endswith(b"systemd")
    return environment().dvc_stage is not None and adopts and b"dvc" not in command


def _interrupt(signum: int, frame: FrameType | None) -> None:
    global _arrived
    # A second signal while unwinding must not break the clean-up it asks for.
    signal.signal(signum, signal.SIG_IGN)
    _arrived = _arrived or Interrupted(signum)
    # What runs just now may swallow the exception, as NumPy's extension modules do while they are imported: then it
    # comes again.
    signal.signal(signal.SIGALRM, lambda *_: _insist(signum))
    signal.setitimer(signal.ITIMER_REAL, _INSIST_SECONDS, _INSIST_SECONDS)
    raise Interrupted(signum)


def _tell_unraisable(what: sys.UnraisableHookArgs) -> None:
    """Where nothing can be raised, as in a destructor, Python tells the error with its traceback and goes on."""
    if what.exc_type is not Interrupted:  # which comes again
        sys.__unraisablehook__(what)


def _insist(signum: int) -> None:
    if not on_its_way(Interrupted):
        raise Interrupted(signum)


def on_its_way(kind: type[BaseException]) -> bool:
    """Whether an exception of that kind is being handled just now, on its own or under another."""
    error = sys.exception()
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__context__
    return False


@contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds a file lock for the block; the kernel frees it when the process dies, however it dies.

    Args:
        wait: for its turn, where another process holds it; that is told in one line.

    Raises:
        HeldError: without `wait`, another living process holds it; the message names that process.
    """
    with _locked(path, wait) as handle:
        handle.truncate(0)
        with naming(path):
            handle.write(str(os.getpid()).encode())
        try:
            yield
        finally:
            handle.truncate(0)


def _locked(path: Path, wait: bool) -> FileIO:
    """The open file of a lock that this process has got."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Unbuffered: what a full disk refuses must not wait to be written at the end.
            handle = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed by the caller
        except FileNotFoundError:  # its last holder has just removed the folder
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().decode().strip() or "another process"
            if not wait:
                handle.close()
                raise HeldError(f"{path}: held by process {holder}; wait for it to end or stop it") from None
            console.log.info("%s: held by process %s; waiting for it to end", path, holder)
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle.fileno()).st_nlink:
            return handle
        handle.close()  # its last holder has removed it, so that the next one holds another


def remove_held(folder: Path) -> None:
    """Removes a folder of unfinished work whose `lock` this process holds; who waits for it makes it anew."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()
    (folder / "lock").unlink()
    with suppress(OSError):  # not empty: another process has come for it, or for its neighbour
        folder.rmdir()
        folder.parent.rmdir()


@contextmanager
def stage(name: str, root: Path) -> Iterator[None]:
    """One run of a pipeline stage: alone on its outputs, and told with the time it took.

    Args:
        name: as DVC names it, e.g. "crop@synthetic".
        root: the project's folder.

    Raises:
        ValueError: the stage runs already.
    """
    started = time.monotonic()
    with lock(root / ".work" / "locks" / name):
        yield
    console.log.info("%s: done in %.1f s", name, time.monotonic() - started)
