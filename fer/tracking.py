"""Experiment tracking: an MLflow experiment a data set, a run a training. The only file that imports mlflow.

The driver owns the run: workers never touch the store. A run is found again by the fingerprint of its training, so that
a training that was killed and goes on keeps its run and its curves; every run ends as FINISHED, FAILED or KILLED.
"""

import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from pydantic import Field

from fer.config import Config
from fer.lineage import flatten, lineage, redact

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

__all__ = ["Run", "TrackingConfig", "TrackingError", "open_run", "serve", "store_uri"]

log = logging.getLogger("fer.tracking")

FINGERPRINT_TAG = "fer.fingerprint"
MODEL_TAG = "fer.model_logged"
UNFINISHED = ("RUNNING", "FAILED", "KILLED")
Status = Literal["FINISHED", "FAILED", "KILLED"]
T = TypeVar("T")

# Limits of the MLflow stores.
MAX_PARAM_CHARACTERS = 6000
MAX_TAG_CHARACTERS = 5000
MAX_BATCH = 100
MAX_DIGEST_CHARACTERS = 36
PROBE_SECONDS = 5.0


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
        default=False, description="true: an unreachable store is an error; false: a warning, and nothing is recorded"
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
    from mlflow.exceptions import MlflowException

    return (MlflowException, OSError, TrackingError)


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


class Run:
    """One MLflow run, as a context manager; without a client (an optional store that is down) no method does anything.

    Leaving the block sets the status: FINISHED, FAILED after an exception, KILLED after an interruption. A run that was
    attached by its id, to add an evaluation, keeps the status it had. Logging is idempotent: a point that is already
    there, with the same key, step and value, is not logged twice, so a resumed training leaves no duplicates.
    """

    def __init__(
        self, client: Any, run_id: str | None, *, config: TrackingConfig, uri: str, keep_status: str | None, fresh: bool
    ):
        self._client = client
        self._config = config
        self._uri = uri
        self._keep_status = keep_status
        self._run_id = run_id
        self._fresh = fresh
        self._points: dict[str, set[tuple[int, float | None]]] = {}
        self._finished = client is None

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, None when nothing is recorded."""
        return self._run_id

    @property
    def active(self) -> bool:
        """Whether entries are still being recorded."""
        return self._client is not None

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
        self._do(lambda client: client.set_terminated(self._run_id, self._keep_status or status))

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record scalars at an epoch (or 0 for final figures)."""

        def send(client: Any) -> None:
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            new: list[Any] = []
            for key, value in metrics.items():
                point = (step, None if math.isnan(value) else float(value))
                if point not in self._known(client, key):
                    new.append(Metric(key, float(value), now, step))
                    self._points[key].add(point)
            if new:
                client.log_batch(self._run_id, metrics=new)

        self._do(send)

    def _known(self, client: Any, key: str) -> set[tuple[int, float | None]]:
        """The points of a curve that the store has; None stands for NaN."""
        if key not in self._points:
            history = [] if self._fresh else client.get_metric_history(self._run_id, key)
            self._points[key] = {(point.step, None if math.isnan(point.value) else point.value) for point in history}
        return self._points[key]

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters, nested ones flat (`recipe.epochs`). What is recorded stays: MLflow's params are final."""

        def send(client: Any) -> None:
            from mlflow.entities import Param

            known = {} if self._fresh else client.get_run(self._run_id).data.params
            new = [
                Param(key, redact(value)[:MAX_PARAM_CHARACTERS])
                for key, value in flatten(params).items()
                if key not in known
            ]
            for start in range(0, len(new), MAX_BATCH):
                client.log_batch(self._run_id, params=new[start : start + MAX_BATCH])

        self._do(send)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set or overwrite tags."""

        def send(client: Any) -> None:
            from mlflow.entities import RunTag

            items = [RunTag(key, redact(str(value))[:MAX_TAG_CHARACTERS]) for key, value in tags.items()]
            client.log_batch(self._run_id, tags=items)

        self._do(send)

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

        self._do(send)

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

        self._do(send)

    def log_json(self, content: Mapping[str, Any], name: str) -> None:
        """Record a JSON artifact."""
        self._do(lambda client: client.log_dict(self._run_id, dict(content), name))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a file, or a folder with what is in it."""
        self._do(lambda client: client.log_artifact(self._run_id, str(path), folder))

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
        self._do(lambda client: self._log_model(client, model, example, labels, name))

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

    def _do(self, action: Callable[[Any], T]) -> T | None:
        """Run one call to the store. Where tracking is optional, a failing store ends the recording, not the work."""
        if self._client is None:
            return None
        try:
            return action(self._client)
        except _failures() as error:
            reason = redact(str(error).splitlines()[0] if str(error) else type(error).__name__)
            if self._config.required:
                raise TrackingError(f"MLflow refused an entry ({redact(self._uri)}): {reason}") from error
            log.warning("MLflow broke down (%s); the rest of this run is not recorded: %s", redact(self._uri), reason)
            self._client = None
            return None


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
    Errors: TrackingError when the store is unreachable and `config.required`; else a warning, and nothing is recorded.
    """
    uri = store_uri(config, root)
    if not config.enabled:
        return Run(None, None, config=config, uri=uri, keep_status=None, fresh=True)
    try:
        _probe(uri)
        client = _mlflow().MlflowClient(tracking_uri=uri, registry_uri=uri)
        experiment_id = _experiment(client, uri, root, experiment)
        found = _attach(client, run_id) if run_id else _unfinished(client, experiment_id, key)
        attached = run_id is not None and found is not None
        if found is None:
            found = client.create_run(experiment_id, run_name=run_name, tags=_first_tags(run_name, key, parent))
            fresh = True
        else:
            fresh = False
            if not attached:
                client.update_run(found.info.run_id, status="RUNNING")
    except _failures() as error:
        reason = redact(str(error))
        if config.required:
            raise TrackingError(
                f"{reason}; start the server, or set tracking.required: false in params.yaml"
            ) from error
        log.warning("no experiment tracking: %s", reason)
        return Run(None, None, config=config, uri=uri, keep_status=None, fresh=True)
    status = found.info.status if attached else None
    run = Run(client, found.info.run_id, config=config, uri=uri, keep_status=status, fresh=fresh)
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
