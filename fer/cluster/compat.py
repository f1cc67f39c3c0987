"""Every touch of Ray that its documentation does not promise: one function each, with the versions it was seen with.

`tests/cluster/test_cluster_compat.py` has a canary for each: it says which of them a new version breaks.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from fer.plugins import worker_setup

TokenProblem = Literal["unreadable", "refused", "missing"]


def show_worker_logs(shown: bool) -> None:
    """Whether the driver prints what Ray's processes log; without a raylet, these are dumps of its state.

    Ray 2.60: `ray._private.worker._worker_logs_enabled`, read at every message.
    """
    worker: Any = import_module("ray._private.worker")
    worker._worker_logs_enabled = shown


def start_local_cluster(folder: Path, *, cpus: int | None, object_store_bytes: int, dashboard: bool) -> Any:
    """Starts a cluster for this machine alone, which needs no network and keeps all its files in a folder.

    Ray 2.60: the private options `_temp_dir` and `_node_ip_address` of `ray.init`.
    """
    import ray

    return ray.init(
        address="local",
        num_cpus=cpus,
        object_store_memory=object_store_bytes,
        include_dashboard=dashboard,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env=worker_environment(),
        _temp_dir=str(folder),
        _node_ip_address="127.0.0.1",
    )


def worker_environment() -> dict[str, Any] | None:
    """Ray's `runtime_env` for this process's workers: they import the plugins that it has; None where it has none.

    Ray 2.60: `worker_process_setup_hook`, called in each worker before its first task.
    """
    setup = worker_setup()
    return None if setup is None else {"worker_process_setup_hook": setup}


def is_startup_timeout(error: Exception) -> bool:
    """Whether a local cluster did not start within the 30 s that Ray grants, which no setting raises.

    Ray 2.60: a bare `Exception` of `ray._private.node`, known by its text.
    """
    return "timed out during startup" in str(error)


def forget_token() -> None:
    """Makes Ray read its token again: it keeps the first answer of this process, even that there is none.

    Ray 2.60: `ray._raylet.AuthenticationTokenLoader`.
    """
    import_module("ray._raylet").AuthenticationTokenLoader.instance().reset_cache()


def token_state() -> tuple[bool, bool]:
    """Whether RAY_AUTH_MODE asks for a token, and whether Ray finds one, in the environment or the home folder.

    Ray 2.60: `ray._raylet.AuthenticationTokenLoader` and `get_authentication_mode`.
    """
    from ray.exceptions import AuthenticationError

    native = import_module("ray._raylet")  # compiled
    found = False
    with suppress(AuthenticationError):  # RAY_AUTH_TOKEN_PATH names a file that cannot be read
        found = bool(native.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))
    return native.get_authentication_mode() == native.AuthenticationMode.TOKEN, found


def token_problem(error: Exception) -> TokenProblem:
    """What an `AuthenticationError` of Ray means.

    Ray 2.60: one exception type for all three, told apart by its text.
    """
    if "cannot be opened" in str(error):
        return "unreadable"
    return "refused" if "nvalid" in str(error) else "missing"


def dead_processes() -> dict[str, tuple[int, str]]:
    """Pid and end of those processes of this process's own local cluster that have ended, by name.

    Names: "gcs_server" is the head, "raylet" starts and holds the workers.
    Ray 2.60: `ray._private.worker._global_node.dead_processes()`.
    """
    node = import_module("ray._private.worker")._global_node
    return {
        name: (process.pid, _ended(process.returncode)) for name, process in (node.dead_processes() if node else ())
    }


def _ended(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def placement_failure(error: BaseException) -> str | None:
    """Why Ray Train could not place its workers, in one line; None where that was not what failed.

    Ray 2.60: `controller_failure` of `ray.train.ControllerError`, of a private type.
    """
    failure = getattr(error, "controller_failure", None)
    if type(failure).__name__ not in ("WorkerGroupStartupTimeoutError", "InsufficientClusterResourcesError"):
        return None
    return str(failure).partition(" Potential causes")[0].splitlines()[0]


def draining_nodes() -> set[str]:
    """Ids of the nodes that take no more work, for they will end soon: `ray drain-node`, or the autoscaler.

    Ray 2.60: `ray._private.state.state.get_draining_nodes`; through a `ray://` proxy there is no such state.
    """
    if import_module("ray.util.client").ray.is_connected():
        return set()
    return set(import_module("ray._private.state").state.get_draining_nodes())


_terminated = threading.Event()


def await_end() -> Callable[[], str]:
    """In the training thread of a worker of Ray Train: what returns why the worker will end soon, or an empty text.

    SIGTERM is from now on such a notice; Ray's handler would end the process. Only the main thread may set a handler;
    it runs the methods of the worker's actor.
    Ray 2.60: `RayTrainWorker.execute`, and the notice in the context of Ray Train, which all workers get where the node
    of one drains. The public `get_preemption_info` would make all wait for each other at every call.
    """
    import ray

    ray.get_runtime_context().current_actor.execute.remote(_note_sigterm)  # not awaited: training may begin before
    notice = import_module("ray.train.v2._internal.execution.context").get_train_context().preemption_context

    def why() -> str:
        if _terminated.is_set():
            return f"process {os.getpid()} got SIGTERM"
        info = notice.preemption_info
        return "" if info is None else f"node {', '.join(info.preempted_node_ids)} will end"

    return why


def _note_sigterm() -> None:
    signal.signal(signal.SIGTERM, lambda *_: _terminated.set())


def worker_errors(error: BaseException) -> dict[int, tuple[BaseException, str]]:
    """What each failed worker of Ray Train raised, by rank, and the last line of its traceback.

    Ray 2.60: `worker_failures` of `ray.train.WorkerGroupError` wraps an exception with its traceback as text, and
    holds the exception as `_base_exc`.
    """
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    return {
        rank: (getattr(one, "_base_exc", one), str(one).strip().splitlines()[-1])
        for rank, one in sorted(failures.items())
    }


def trial_error(trial: Any) -> str:
    """The last line of the traceback of a failed trial of Ray Tune, which is on disk before its callback is called.

    Ray 2.60: `ray.tune.experiment.Trial.error_file`.
    """
    text = ""
    with suppress(OSError, TypeError):
        text = Path(trial.error_file).read_text(encoding="utf-8").strip()
    return text.splitlines()[-1].strip() if text else "its process was lost"


def by_value(handle: Any) -> Any:
    """A handle of Serve that sends what it is given straight to the replica.

    Else Ray keeps arguments of more than 100 kB in its object store, which spills to disk when it is full: images would
    be written. It is quicker, too.
    Ray 2.60: the option `_by_reference` of `DeploymentHandle.options`.
    """
    return handle.options(_by_reference=False)
