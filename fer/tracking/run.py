"""A run as the stages see it: each entry goes to the store, or to a journal while the store is down."""

from __future__ import annotations

import getpass
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from fer.console import log
from fer.io.files import FileError
from fer.lineage import flatten, lineage, redact
from fer.processes import lock
from fer.tracking import compat, health, store
from fer.tracking.config import TrackingConfig, store_uri
from fer.tracking.health import TrackingError
from fer.tracking.journal import Journal, left_journals, open_journal
from fer.tracking.registry import Candidate
from fer.tracking.store import Identity, StoredRun

Status = Literal["FINISHED", "FAILED", "KILLED"]

# Limits of the MLflow stores.
MAX_PARAM_CHARACTERS = 6000
MAX_TAG_CHARACTERS = 5000
RETRY_SECONDS = 60.0


def open_run(
    config: TrackingConfig,
    root: Path,
    *,
    checkout: Path | None = None,
    experiment: str,
    run_name: str,
    key: str,
    params: Mapping[str, Any],
    tags: Mapping[str, Any],
    parent: Run | str | None = None,
    run_id: str | None = None,
    join: bool = False,
) -> Run:
    """Open the run of a training job, in its driver.

    Args:
        root: the project's folder, which holds a local store.
        checkout: the folder whose code runs, for the tags of `lineage`; None: the same.
        experiment: one a dataset, created on first use with an absolute artifact folder `<root>/mlartifacts` (a server
            decides for itself).
        run_name: the model and its recipe.
        key: fingerprint of the training job. An unfinished run that has it is opened again; otherwise there is a new
            run.
        params: nested, logged flat.
        tags: added to who made the run, on which machine, and `lineage`.
        parent: the run of which this one is a trial, or its id.
        run_id: add to this very run, as with `join`; if it no longer exists, `key` decides.
        join: add to the latest run of `key`, finished or not, and leave its status and its end alone; there is a new
            run where none has it.

    Raises:
        TrackingError: the store is out of reach and `config.required`; else there is a warning, and entries are kept
            until it responds.
    """
    identity = Identity(
        experiment=experiment,
        run_name=run_name,
        key=key,
        parent=parent.identity if isinstance(parent, Run) else parent,
        run_id=run_id,
        join=join or run_id is not None,
    )
    run = Run(config, root, identity)
    if config.enabled:
        run.connect()
        with ExitStack() as opened:
            opened.enter_context(run)  # an error from here on ends it
            run.set_origin(lineage(checkout or root) | {compat.USER_TAG: _user(), "host": platform.node()})
            run.set_tags(tags)
            run.log_params(params)
            opened.pop_all()
    return run


class Run:
    """One MLflow run, as a context manager; where tracking is off no method does anything.

    Leaving the block sets the status: FINISHED, FAILED after an exception, KILLED after an interruption; the tag
    `last_error` has the exception, and stays where a resumed run finishes. A run that was
    joined, to add an evaluation, keeps the status it had. Logging is idempotent: a point that is already there, with
    the same key, step and value, is not logged twice, so a resumed job leaves no duplicates.

    While the store is down every entry but a model is kept, and sent when the store responds again.

    Args:
        config: of the tracking.
        root: the project's folder.
        identity: what identifies the run.
    """

    def __init__(self, config: TrackingConfig, root: Path, identity: Identity) -> None:
        self._config, self._root = config, root
        self.identity = identity  # as far as it is known by now
        self._uri = store_uri(config, root)
        # Once connected, one of the two is set.
        self._stored: StoredRun | None = None
        self._journal: Journal | None = None
        self._monitors: list[Any] | None = None
        self._failed_at = 0.0
        self._warned = False
        self._finished = not config.enabled

    @property
    def active(self) -> bool:
        """Whether entries are recorded, now or later; false only where tracking is turned off."""
        return self._config.enabled

    @property
    def connected(self) -> bool:
        """Whether the store takes entries; else they wait in a journal."""
        return self._stored is not None

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None when nothing is recorded, or while no store has responded yet."""
        return self.identity.run_id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish("FINISHED")
            return
        try:
            if issubclass(kind, Exception):
                self.set_tags({"last_error": _reason(error)})
            self.finish("FAILED" if issubclass(kind, Exception) else "KILLED")
        except TrackingError as failure:  # the error that ended the block decides the exit code
            log.error("%s", failure)

    def finish(self, status: Status = "FINISHED") -> None:
        """Set the final status; the first call wins."""
        if self._finished:
            return
        self._finished = True
        self._record("finish", {"status": status})
        if self._journal is not None:
            log.info("entries that MLflow did not take are kept in %s", self._journal.path)
            self._journal.close()

    # -------------------------------------------------------------------------------------------- entries

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0, at: int | None = None) -> None:
        """Record scalars at an epoch (or 0 for final results). at: milliseconds of the clock; None: now."""
        values = {key: float(value) for key, value in metrics.items()}
        self._record("log_metrics", {"metrics": values, "step": step, "at": at or int(time.time() * 1000)})

    def log_epoch(self, record: Mapping[str, float]) -> None:
        """Record an epoch's row of numbers at its `epoch`; what the run has already is not recorded twice."""
        self.log_metrics({key: value for key, value in record.items() if key != "epoch"}, step=int(record["epoch"]))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters, nested ones flat (`recipe.epochs`). Recorded ones stay: MLflow's parameters are final."""
        values = {key: redact(value)[:MAX_PARAM_CHARACTERS] for key, value in flatten(params).items()}
        self._record("log_params", {"params": values})

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set or overwrite tags."""
        self._record("set_tags", {"tags": _tag_values(tags)})

    def set_origin(self, tags: Mapping[str, Any]) -> None:
        """Set the tags that say where the run comes from, unless it was joined: they are its training's."""
        self._record("set_origin", {"tags": _tag_values(tags)})

    def log_dataset(
        self, name: str, digest: str, *, source: str, context: str, profile: Mapping[str, Any] | None = None
    ) -> None:
        """Record the dataset used, so that runs can be told apart by it; `context`: "training" or "testing"."""
        facts = {"name": name, "digest": digest, "source": redact(source), "context": context}
        self._record("log_dataset", {**facts, "profile": dict(profile or {})})

    def log_table(self, columns: Mapping[str, Sequence[Any]], name: str) -> None:
        """Record a table as `name` (.json), which the UI compares across runs. Logged again, it is replaced."""
        self._record("log_table", {"columns": {key: list(values) for key, values in columns.items()}, "name": name})

    def log_json(self, content: Mapping[str, Any], name: str) -> None:
        """Record a JSON artifact."""
        self._record("log_json", {"content": dict(content), "name": name})

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a file, or a folder with its content, as it is now.

        While the store is down a copy is kept; of more than 16 MiB none is, with a warning.
        """
        self._record("log_artifact", {"path": str(path), "folder": folder}, keep=path)

    def log_model(self, weights: Path, *, name: str = "model") -> None:
        """Record a weights file once, as a model that `mlflow.pyfunc.load_model` and `fer.load` read.

        A second call for the same run does nothing. While the store is down the model is left out, with a warning.
        """
        if not (self._config.enabled and self._config.log_model):
            return
        if not self._send(lambda stored: stored.log_model(weights, name)):
            log.warning("the model cannot wait for MLflow, and the run lacks it; run the stage again to add it")

    def log_system(self, step: int) -> None:
        """Record processor, memory, disk, network and GPU of this machine at an epoch: as MLflow's own monitors do."""
        if not (self._config.enabled and self._config.system_metrics):
            return
        if self._monitors is None:
            self._monitors = compat.system_monitors()
        self.log_metrics(compat.system_metrics(self._monitors), step=step)

    def register(self, candidate: Candidate) -> None:
        """Register the recorded model under its dataset's name; it becomes the champion where validation says so.

        While the store is down nothing is registered; the next evaluation that finds the run does it.
        """
        if self._config.enabled and self._config.log_model:
            with lock(self._root / ".work" / "locks" / "mlflow-registry", wait=True):
                self._send(lambda stored: stored.register(candidate))

    # -------------------------------------------------------------------------------------------- store or journal

    def connect(self) -> None:
        """Finds the run in the store, or creates it; where the store is down a journal takes its place."""
        try:
            self._find()
        except store.failures() as error:
            self._use_journal(error)

    def _record(self, call: str, arguments: dict[str, Any], keep: Path | None = None) -> None:
        """Sends an entry to the store; where that fails, and tracking is optional, to the journal.

        Args:
            call: a method of `StoredRun`.
            arguments: of it, such that JSON can hold them.
            keep: file or folder that the call is about.
        """
        if not self._config.enabled or self._send(lambda stored: stored.apply(call, arguments)):
            return
        assert self._journal is not None, "a run that is not in the store has a journal"
        self._journal.append(call, arguments, keep)

    def _send(self, action: Callable[[StoredRun], object]) -> bool:
        """Whether the store took it; a store that failed is tried again after a minute, and when the run ends."""
        if self._finished or time.monotonic() - self._failed_at > RETRY_SECONDS:
            self._catch_up()
        if self._stored is None:
            return False
        try:
            action(self._stored)
        except store.failures() as error:
            self._use_journal(error)
            return False
        return True

    def _find(self) -> StoredRun:
        """The run in the store, which first gets the entries that wait for it.

        Raises:
            Exception: one of `store.failures()`.
        """
        health.check_server(self._uri)
        _send_journals(self._uri, self._root)  # of other runs: the journal of a living process is locked
        found = store.find_run(self._uri, self._root, self.identity)
        # A run that was created because there was none to join belongs to this one, and is ended by it.
        self._stored, self.identity = found, replace(self.identity, run_id=found.run_id, join=found.joined)
        return found

    def _use_journal(self, error: Exception) -> None:
        """Switches to a journal, or stays with the one that is open; raises where the store is required."""
        reason = _reason(error)
        if self._config.required:
            raise TrackingError(
                f"MLflow ({redact(self._uri)}): {reason}; repair it, or set tracking.required: false in params.yaml"
            ) from error
        if not self._warned:
            log.warning("MLflow (%s): %s; entries are kept here until it works", redact(self._uri), reason)
        self._warned, self._failed_at, self._stored = True, time.monotonic(), None
        self._journal = self._journal or Journal(self._root, asdict(self.identity))

    def _catch_up(self) -> None:
        """Tries the store again where a journal takes its place, and sends the journals before anything else."""
        if (journal := self._journal) is None:
            return
        try:
            found = self._find()
            for call, arguments in journal.entries():
                found.apply(call, arguments)
        except store.failures() as error:
            self._use_journal(error)
            return
        journal.discard()
        self._journal = None


def _send_journals(uri: str, root: Path) -> None:
    """Sends the entries that earlier runs could not; those that still fail are left for another time."""
    reasons: tuple[type[Exception], ...] = (*store.failures(), FileError)
    for path in left_journals(root):
        try:
            with open_journal(path) as content:
                if content is None:
                    continue
                facts, entries = content
                run = store.find_run(uri, root, Identity.of(facts))
                for call, arguments in entries:
                    run.apply(call, arguments)
                log.info("sent %d entries of %s to MLflow", len(entries), path.name)
        except reasons as error:
            log.warning("%s cannot be sent: %s; the next run retries, remove the file to drop it", path, _reason(error))


def _tag_values(tags: Mapping[str, Any]) -> dict[str, str]:
    return {key: redact(str(value))[:MAX_TAG_CHARACTERS] for key, value in tags.items()}


def _user() -> str:
    """Name of the user; their number where the machine has no name for it, as in containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _reason(error: BaseException | None) -> str:
    """The first line of an error's message, without credentials."""
    return redact(str(error).splitlines()[0] if str(error) else type(error).__name__)
