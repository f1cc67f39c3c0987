"""Experiment tracking: an MLflow experiment a data set, a run a training. The only file that imports mlflow.

The driver owns the run: workers never touch the store. A run is found again by the fingerprint of its training, so that
a training that was killed and goes on keeps its run and its curves; every run ends as FINISHED, FAILED or KILLED.

Where tracking is not required and the store is down, entries go to a journal (`fer.journal`), and from there to the
store when it answers again: a minute later, at the end of the run, or when the next run is opened.
"""

import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from pydantic import Field

from fer.config import Config
from fer.journal import Entry, Journal, left_journals, open_journal
from fer.lineage import flatten, lineage, redact
from fer.processes import lock

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

__all__ = ["Run", "TrackingConfig", "TrackingError", "open_run", "serve", "store_uri"]

log = logging.getLogger("fer.tracking")

FINGERPRINT_TAG = "fer.fingerprint"
MODEL_TAG = "fer.model_logged"
UNFINISHED = ("RUNNING", "FAILED", "KILLED")
Status = Literal["FINISHED", "FAILED", "KILLED"]

# Limits of the MLflow stores.
MAX_PARAM_CHARACTERS = 6000
MAX_TAG_CHARACTERS = 5000
MAX_BATCH = 100
MAX_DIGEST_CHARACTERS = 36
PROBE_SECONDS = 5.0
RETRY_SECONDS = 60.0


class TrackingError(ValueError):
    """The tracking store cannot be reached or refuses an entry, and `tracking.required` is true."""


class TrackingConfig(Config):
    """Where runs are recorded."""

    enabled: bool = Field(default=True, description="false: nothing is recorded, and MLflow is not even loaded")
    uri: str | None = Field(
        default=None,
        description="MLflow store, e.g. http://server:5000; null: the environment's MLFLOW_TRACKING_URI, "
        "else sqlite:///<project>/mlflow.db",
    )
    required: bool = Field(
        default=False,
        description="true: an unreachable store is an error; false: a warning, and entries wait in .work/unsent",
    )
    log_model: bool = Field(default=True, description="record the best model of a training (torch.export, about 10 s)")


def store_uri(config: TrackingConfig, root: Path) -> str:
    """The store in use: MLFLOW_TRACKING_URI, else `config.uri`, else a SQLite file in the project's root (absolute)."""
    from fer.params import environment  # fer.params holds a TrackingConfig, so it cannot be imported above

    return environment().mlflow_tracking_uri or config.uri or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def _mlflow() -> Any:
    """The mlflow module, imported on first use (it takes seconds) with its migration chatter turned off."""
    import mlflow

    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"mlflow\.")
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.models.model", "mlflow.utils.requirements_utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow


def _failures() -> tuple[type[Exception], ...]:
    """What is raised by a store that is down, locked or full."""
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    # The second and third are of a local database that MLflow cannot make or bring up to date.
    return (MlflowException, CommandError, SQLAlchemyError, OSError, TrackingError)


def _probe(uri: str) -> None:
    """Raise TrackingError at once if an http store does not answer; MLflow itself would retry for minutes."""
    if not uri.startswith(("http://", "https://")):
        return
    scheme, rest = uri.split("://", 1)
    address = f"{scheme}://{rest.rpartition('@')[2].rstrip('/')}/health"
    try:
        with urlopen(address, timeout=PROBE_SECONDS):
            pass
    except HTTPError:
        pass  # it answers; whether it lets us in, the first real request tells
    except (URLError, OSError, ValueError) as error:
        raise TrackingError(
            f"the MLflow server {redact(uri)} does not answer ({getattr(error, 'reason', error)})"
        ) from error


@dataclass(frozen=True, kw_only=True)
class _Identity:
    """What a run is, wherever it is recorded; see `open_run`."""

    experiment: str
    run_name: str
    key: str
    parent: str | None
    run_id: str | None


class Run:
    """One MLflow run, as a context manager; where tracking is off no method does anything.

    Leaving the block sets the status: FINISHED, FAILED after an exception, KILLED after an interruption. A run that was
    attached by its id, to add an evaluation, keeps the status it had. Logging is idempotent: a point that is already
    there, with the same key, step and value, is not logged twice, so a resumed training leaves no duplicates.
    """

    def __init__(self, config: TrackingConfig, root: Path, identity: _Identity) -> None:
        self._config, self._root, self._identity = config, root, identity
        self._uri = store_uri(config, root)
        self._client: Any = None
        self._journal: Journal | None = None
        self._failed_at = 0.0
        self._run_id: str | None = None
        self._fresh = True
        self._keep_status: str | None = None
        self._points: dict[str, set[tuple[int, float | None]]] = {}
        self._finished = not config.enabled

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, None when nothing is recorded."""
        return self._run_id

    @property
    def active(self) -> bool:
        """Whether the store takes entries."""
        return self._client is not None and self._journal is None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish("FINISHED")
        else:
            self.finish("FAILED" if issubclass(kind, Exception) else "KILLED")

    def finish(self, status: Status = "FINISHED") -> None:
        """Set the final status; the first call wins."""
        if self._finished:
            return
        self._finished = True
        self._do(
            ("finish", {"status": status}),
            lambda client: client.set_terminated(self._run_id, self._keep_status or status),
        )
        if self._journal is not None:
            log.info("what MLflow could not be told is kept in %s", self._journal.path)
            self._journal.close()

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0, at: int | None = None) -> None:
        """Record scalars at an epoch (or 0 for final figures). at: milliseconds of the clock; None: now."""
        values = {key: float(value) for key, value in metrics.items()}
        now = at or int(time.time() * 1000)

        def send(client: Any) -> None:
            from mlflow.entities import Metric

            new: list[Any] = []
            for key, value in values.items():
                point = (step, None if math.isnan(value) else value)
                if point not in self._known(client, key):
                    new.append(Metric(key, value, now, step))
                    self._points[key].add(point)
            if new:
                client.log_batch(self._run_id, metrics=new)

        self._do(("log_metrics", {"metrics": values, "step": step, "at": now}), send)

    def _known(self, client: Any, key: str) -> set[tuple[int, float | None]]:
        """The points of a curve that the store has; None stands for NaN."""
        if key not in self._points:
            history = [] if self._fresh else client.get_metric_history(self._run_id, key)
            self._points[key] = {(point.step, None if math.isnan(point.value) else point.value) for point in history}
        return self._points[key]

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters, nested ones flat (`recipe.epochs`). What is recorded stays: MLflow's params are final."""
        values = {key: redact(value)[:MAX_PARAM_CHARACTERS] for key, value in flatten(params).items()}

        def send(client: Any) -> None:
            from mlflow.entities import Param

            known = {} if self._fresh else client.get_run(self._run_id).data.params
            new = [Param(key, value) for key, value in values.items() if key not in known]
            for start in range(0, len(new), MAX_BATCH):
                client.log_batch(self._run_id, params=new[start : start + MAX_BATCH])

        self._do(("log_params", {"params": values}), send)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set or overwrite tags."""
        values = {key: redact(str(value))[:MAX_TAG_CHARACTERS] for key, value in tags.items()}

        def send(client: Any) -> None:
            from mlflow.entities import RunTag

            client.log_batch(self._run_id, tags=[RunTag(key, value) for key, value in values.items()])

        self._do(("set_tags", {"tags": values}), send)

    def log_dataset(
        self, name: str, digest: str, *, source: str, context: str, profile: Mapping[str, Any] | None = None
    ) -> None:
        """Record the data used, so that runs can be told apart by it; `context`: "training" or "testing"."""

        def send(client: Any) -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            data = Dataset(
                name=name,
                digest=digest[:MAX_DIGEST_CHARACTERS],
                source_type="local",
                source=json.dumps({"uri": redact(source)}),
                profile=json.dumps(dict(profile or {}), sort_keys=True),
            )
            tags = [InputTag("mlflow.data.context", context)]
            client.log_inputs(self._run_id, datasets=[DatasetInput(dataset=data, tags=tags)])

        given = {
            "name": name,
            "digest": digest,
            "source": redact(source),
            "context": context,
            "profile": dict(profile or {}),
        }
        self._do(("log_dataset", given), send)

    def log_table(self, columns: Mapping[str, Sequence[Any]], name: str) -> None:
        """Record a table as `name` (.json), which the UI compares across runs. Logged again, it is replaced."""
        keys = list(columns)
        table = {"columns": keys, "data": [list(row) for row in zip(*columns.values(), strict=True)]}
        entry = {"path": name, "type": "table"}

        def send(client: Any) -> None:
            client.log_dict(self._run_id, table, name)
            tag = "mlflow.loggedArtifacts"  # what the UI's table view goes by
            listed = json.loads(client.get_run(self._run_id).data.tags.get(tag, "[]"))
            if entry not in listed:
                client.set_tag(self._run_id, tag, json.dumps([*listed, entry]))

        self._do(("log_table", {"columns": {key: list(columns[key]) for key in keys}, "name": name}), send)

    def log_json(self, content: Mapping[str, Any], name: str) -> None:
        """Record a JSON artifact."""
        entry = ("log_json", {"content": dict(content), "name": name})
        self._do(entry, lambda client: client.log_dict(self._run_id, dict(content), name))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a file, or a folder with what is in it; where the store is down that is left out."""
        self._do(None, lambda client: client.log_artifact(self._run_id, str(path), folder))

    def log_model(
        self, model: "nn.Module", example: "np.ndarray[Any, Any]", *, labels: Sequence[str], name: str = "model"
    ) -> None:
        """Record the model once, in torch's export format (no pickle), with `example`: float32 (B >= 2, 3, size, size).

        The batch stays free only if the example has two images or more. A second call for the same run does nothing.
        """
        assert example.ndim == 4, f"expected (B, 3, size, size), got {example.shape}"
        assert len(example) >= 2, "with a single image the batch would be fixed to one"
        if not self._config.log_model:
            return
        self._do(None, lambda client: self._log_model(client, model, example, labels, name))

    def _log_model(
        self, client: Any, model: "nn.Module", example: "np.ndarray[Any, Any]", labels: Sequence[str], name: str
    ) -> None:
        import numpy as np
        from mlflow.models import Model, ModelSignature
        from mlflow.types.schema import Schema, TensorSpec

        from fer.params import environment

        run = client.get_run(self._run_id)
        if MODEL_TAG in run.data.tags:
            return
        mlflow = _mlflow()
        kind = np.dtype(np.float32)
        named_by_environment = environment().mlflow_tracking_uri
        training = model.training
        model.eval()  # exported in training mode, dropout would be baked in
        # Models go by MLflow's global address, which it also writes into the environment: put both back afterwards.
        mlflow.set_tracking_uri(self._uri)
        try:
            # Made here: left to itself, `Model.log` puts the model of another than the active run into experiment 0.
            entry = client.create_logged_model(
                run.info.experiment_id, name=name, source_run_id=self._run_id, params=run.data.params
            )
            info = Model.log(
                artifact_path=None,
                model_id=entry.model_id,
                flavor=mlflow.pytorch,
                run_id=self._run_id,
                pytorch_model=model,
                input_example=example.astype(np.float32),
                signature=ModelSignature(
                    inputs=Schema([TensorSpec(kind, (-1, *example.shape[1:]))]),
                    outputs=Schema([TensorSpec(kind, (-1, len(labels)))]),
                ),
                serialization_format="pt2",
                pip_requirements=[
                    f"{package}=={metadata.version(package)}" for package in ("torch", "numpy", "mlflow")
                ],
                metadata={"labels": list(labels)},
            )
        finally:
            mlflow.set_tracking_uri(named_by_environment)  # None: as if never set
            model.train(training)
        client.set_tag(self._run_id, MODEL_TAG, info.model_uri)

    def connect(self) -> None:
        """Finds the run in the store, or makes it; where the store is down a journal takes its place."""
        try:
            _probe(self._uri)
            _send_journals(self._config, self._root)
            self._find()
        except _failures() as error:
            self._break_down(error)

    def _do(self, entry: Entry | None, action: Callable[[Any], object]) -> None:
        """Runs one call to the store. Where tracking is optional and the store fails, the journal takes its entry.

        Args:
            entry: method of this class, and arguments, that do the same again; None: nothing for a journal.
        """
        if not self._config.enabled:
            return
        if self._journal is not None and (self._finished or time.monotonic() - self._failed_at > RETRY_SECONDS):
            self._catch_up(self._journal)
        if self._journal is None:
            try:
                action(self._client)
                return
            except _failures() as error:
                self._break_down(error)
        if entry is not None and self._journal is not None:
            self._journal.append(*entry)

    def _find(self) -> None:
        """The run in the store: the one of the given id, else an unfinished one of the same key, else a new one."""
        identity = self._identity
        # MLflow makes a new database with the client, and breaks it where two do so at once.
        with lock(self._root / ".work" / "locks" / "mlflow", wait=True):
            client = _mlflow().MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
            experiment_id = _experiment(client, self._uri, self._root, identity.experiment)
        if identity.run_id:
            found = _attach(client, identity.run_id)
            self._keep_status = found.info.status if found else None
        else:
            found = _unfinished(client, experiment_id, identity.key)
        self._fresh = found is None
        if found is None:
            tags = _first_tags(identity.run_name, identity.key, identity.parent)
            found = client.create_run(experiment_id, run_name=identity.run_name, tags=tags)
        elif self._keep_status is None:
            client.update_run(found.info.run_id, status="RUNNING")
        self._client, self._run_id = client, found.info.run_id

    def _break_down(self, error: Exception) -> None:
        """Goes over to a journal; a store that is required must not fail."""
        reason = redact(str(error).splitlines()[0] if str(error) else type(error).__name__)
        if self._config.required:
            raise TrackingError(
                f"MLflow ({redact(self._uri)}): {reason}; mend it, or set tracking.required: false in params.yaml"
            ) from error
        if not self._failed_at:
            log.warning("MLflow (%s): %s; entries are kept here until it works", redact(self._uri), reason)
        self._journal, self._failed_at = Journal(self._root, asdict(self._identity)), time.monotonic()

    def _catch_up(self, journal: Journal) -> None:
        """Tries the store again, with what the journal holds before anything else."""
        journal.close()
        self._journal, self._points = None, {}
        self.connect()


def _send_journals(config: TrackingConfig, root: Path) -> None:
    """Tells the store what earlier runs could not; what still fails is left for another time."""
    for path in left_journals(root):
        try:
            with open_journal(path) as content:
                if content is None:
                    continue
                identity, entries = content
                run = Run(config.model_copy(update={"required": True}), root, _Identity(**identity))
                run._find()
                for call, arguments in entries:
                    getattr(run, call)(**arguments)
                log.info("MLflow was told %d entries that waited in %s", len(entries), path.name)
        except _failures() as error:
            log.warning("%s cannot be sent: %s", path, redact(str(error).partition("\n")[0]))


def open_run(
    config: TrackingConfig,
    root: Path,
    *,
    experiment: str,
    run_name: str,
    key: str,
    params: Mapping[str, Any],
    tags: Mapping[str, Any],
    parent: str | None = None,
    run_id: str | None = None,
) -> Run:
    """Open the run of a training, in its driver.

    experiment: one a data set, made on first use with an absolute artifact folder `<root>/mlartifacts` (a server
        decides for itself). run_name: the model.
    key: fingerprint of the training. An unfinished run that has it is opened again; otherwise there is a new run.
    params: nested, logged flat. tags: added to `lineage(root)`.
    parent: run id of which this one is a trial.
    run_id: attach to this very run, whatever its status, and leave the status alone; if it is gone, a new run is made.
    Errors: TrackingError when the store is unreachable and `config.required`; else a warning, and entries are kept
        until it works.
    """
    identity = _Identity(experiment=experiment, run_name=run_name, key=key, parent=parent, run_id=run_id)
    run = Run(config, root, identity)
    if config.enabled:
        run.connect()
        run.set_tags(lineage(root) | dict(tags))
        run.log_params(params)
    return run


def _experiment(client: Any, uri: str, root: Path, name: str) -> str:
    """Id of the experiment, made if it is not there; in a local store with an absolute folder for its artifacts."""
    if (found := client.get_experiment_by_name(name)) is not None:
        return str(found.experiment_id)
    local = not uri.startswith(("http://", "https://"))
    folder = (root.resolve() / "mlartifacts").as_uri() if local else None
    # The kind makes the UI open on runs and metrics instead of its pages for language models.
    tags = {"mlflow.experimentKind": "custom_model_development"}
    return str(client.create_experiment(name, artifact_location=folder, tags=tags))


def _unfinished(client: Any, experiment_id: str, key: str) -> Any:
    """The latest run of this training that did not finish, or None."""
    runs = client.search_runs(
        [experiment_id], filter_string=f"tags.`{FINGERPRINT_TAG}` = '{key}'", order_by=["attributes.start_time DESC"]
    )
    return next((run for run in runs if run.info.status in UNFINISHED), None)


def _attach(client: Any, run_id: str) -> Any:
    """The run of this id, or None, said aloud, when the store does not have it."""
    try:
        run = client.get_run(run_id)
    except _failures():
        run = None
    if run is None or run.info.lifecycle_stage != "active":
        log.warning("MLflow has no run %s any more; a new run is made for the evaluation", run_id)
        return None
    return run


def _first_tags(run_name: str, key: str, parent: str | None) -> dict[str, str]:
    tags = {FINGERPRINT_TAG: key, "mlflow.source.name": "fer", "mlflow.source.type": "LOCAL", "model": run_name}
    return tags | ({"mlflow.parentRunId": parent} if parent else {})


def serve(config: TrackingConfig, root: Path, host: str = "127.0.0.1", port: int = 5000) -> None:
    """Open MLflow's pages on the store in use: print the address and become the server (the process is replaced).

    A store that is a server has its pages already: its address is printed, and the call returns.
    """
    uri = store_uri(config, root)
    if uri.startswith(("http://", "https://")):
        print(f"The runs are at {redact(uri)}")
        return
    print(f"The runs are at http://{host}:{port} (Ctrl-C ends it; store {redact(uri)})", flush=True)
    stores = ["--backend-store-uri", uri, "--artifacts-destination", (root.resolve() / "mlartifacts").as_uri()]
    address = ["--host", host, "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *stores, *address])
