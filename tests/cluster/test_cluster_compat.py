"""A canary for each thing that we use of Ray without its promise: which one has changed, where a new version breaks it.

The start of a local cluster is in `test_session.py`, and what its head says of tokens in `test_jobs.py`.
"""

import inspect
import pickle
import signal
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
from builders.stopping import wait_until

from fer.cluster import compat, session
from fer.cluster.config import ClusterConfig
from fer.console import log

CHANGED = "this version of Ray differs from 2.60: see fer/cluster/compat.py"


def test_ray_prints_the_logs_of_its_processes_for_debugging_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = import_module("ray._private.worker")
    dump = {"lines": ["Raylet is terminated. [state-dump] NodeManager:"], "pid": "raylet", "is_err": False}
    with monkeypatch.context() as debug:
        debug.setattr(log, "isEnabledFor", lambda level: True)
        session._quiet()
        worker.print_to_stdstream(dump, ignore_prefix=False)
    assert "[state-dump]" in capsys.readouterr().out, CHANGED
    session._quiet()
    worker.print_to_stdstream(dump, ignore_prefix=False)
    assert capsys.readouterr() == ("", ""), CHANGED


def test_ray_says_by_text_alone_that_a_local_cluster_started_too_slowly() -> None:
    source = inspect.getsource(import_module("ray._private.node"))
    assert '"The current node timed out during startup.' in source.replace("\n", " "), CHANGED
    assert compat.is_startup_timeout(Exception("The current node timed out during startup. This could happen because"))
    assert not compat.is_startup_timeout(Exception("no memory"))


TOKENS = """
import os
from fer.cluster import compat
states = [compat.token_state()]
os.environ["RAY_AUTH_TOKEN"] = "0" * 64
compat.forget_token()
states.append(compat.token_state())
del os.environ["RAY_AUTH_TOKEN"]
os.environ["RAY_AUTH_TOKEN_PATH"] = os.devnull + "/nowhere"
compat.forget_token()
states.append(compat.token_state())
print(states)
"""


@pytest.mark.parametrize(("mode", "asked"), [("token", True), ("disabled", False)])
def test_ray_tells_whether_a_token_is_required_and_found(mode: str, asked: bool, tmp_path: object) -> None:
    variables = {"RAY_AUTH_MODE": mode, "HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path), "PATH": "/bin"}
    done = subprocess.run([sys.executable, "-c", TOKENS], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{CHANGED}\n{done.stderr}"
    assert done.stdout == f"{[(asked, False), (asked, True), (asked, False)]}\n", CHANGED


@pytest.mark.ray
def test_ray_lists_the_processes_of_its_own_cluster_that_have_ended() -> None:
    import psutil

    assert compat.dead_processes() == {}
    with session.connect(ClusterConfig(cpus=1, object_store_mb=100)) as cluster:
        assert compat.dead_processes() == {}
        (monitor,) = [
            one for one in psutil.Process().children(recursive=True) if "log_monitor.py" in str(one.cmdline())
        ]
        monitor.kill()
        dead = wait_until(compat.dead_processes, seconds=30)
        assert dead == {"log_monitor": (monitor.pid, "ended by SIGKILL")}, CHANGED
        assert cluster.watch.loss() is None, "a part that the work can be without"


def test_ray_train_names_the_failure_to_place_workers() -> None:
    from ray.train import ControllerError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    reason = compat.placement_failure(ControllerError(WorkerGroupStartupTimeoutError(2)))
    assert reason is not None, CHANGED
    assert "waiting for 2 workers" in reason, CHANGED
    assert "\n" not in reason
    assert compat.placement_failure(ControllerError(RuntimeError("another"))) is None


def test_ray_train_tells_its_workers_of_a_node_that_will_end(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.train import PreemptionInfo
    from ray.train.v2._internal.execution import context
    from ray.train.v2._internal.execution.preemption import PreemptionContext
    from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

    assert "preemption_context" in context.TrainContext.__dataclass_fields__, CHANGED
    notice, worker = PreemptionContext(), RayTrainWorker()

    class Execute:
        """The actor's main thread, which is this one."""

        remote = staticmethod(worker.execute)

    monkeypatch.setattr(context, "get_train_context", lambda: SimpleNamespace(preemption_context=notice))
    actor = SimpleNamespace(current_actor=SimpleNamespace(execute=Execute))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: actor)
    before = signal.getsignal(signal.SIGTERM)
    try:
        why = compat.await_end()
        assert why() == ""
        notice.preemption_info = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"b": [1], "a": [0]})
        assert why() == "node a, b will end", CHANGED
        signal.raise_signal(signal.SIGTERM)
        assert "SIGTERM" in why()
    finally:
        signal.signal(signal.SIGTERM, before)
        compat._terminated.clear()


@pytest.mark.ray
def test_ray_lists_the_nodes_that_drain() -> None:
    with session.connect(ClusterConfig(cpus=1, object_store_mb=100)):
        assert compat.draining_nodes() == set(), CHANGED  # one that drains: tests/faults/test_two_nodes.py


def test_ray_train_holds_the_exception_of_a_worker_and_its_traceback() -> None:
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    one, other = ValueError("a mistake"), RuntimeError("gone")
    failure = UserExceptionWithTraceback(one, "a traceback\nits last line")
    error = pickle.loads(pickle.dumps(WorkerGroupError("two failed", {1: failure, 0: other})))
    found = compat.worker_errors(error)
    assert [rank for rank, _ in found.items()] == [0, 1], CHANGED
    assert (repr(found[0][0]), repr(found[1][0]), found[1][1]) == (repr(other), repr(one), "its last line"), CHANGED


def test_ray_tune_leaves_the_traceback_of_a_trial_in_a_file(tmp_path: object) -> None:
    from ray.tune.experiment import Trial

    assert isinstance(Trial.error_file, property), CHANGED
    path = f"{tmp_path}/error.txt"
    with open(path, "w") as file:
        file.write("Traceback\n  ValueError: no\n")
    assert compat.trial_error(SimpleNamespace(error_file=path)) == "ValueError: no"
    for missing in (None, path + ".not"):
        assert compat.trial_error(SimpleNamespace(error_file=missing)) == "its process was lost"


def test_ray_serve_sends_what_a_handle_is_given_straight_to_the_replica() -> None:
    from ray.serve._private.request_router import replica_wrapper
    from ray.serve.handle import DeploymentHandle

    class Handle:
        """A real one looks for a running Serve, and starts a cluster where it finds none."""

        options = staticmethod(inspect.signature(DeploymentHandle.options).bind_partial)

    assert compat.by_value(Handle()).arguments == {"_by_reference": False}, CHANGED
    chosen = object.__new__(replica_wrapper.RunningReplica)
    chosen._grpc_replica_wrapper, chosen._actor_replica_wrapper = "straight", "through the object store"
    for by_reference, wrapper in ((False, "straight"), (True, "through the object store")):
        request = SimpleNamespace(metadata=SimpleNamespace(_by_reference=by_reference))
        assert chosen._get_replica_wrapper(request) == wrapper, CHANGED
