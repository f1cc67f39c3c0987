"""Experiment tracking: an MLflow experiment a dataset, an MLflow run a training job; alone imports mlflow.

    config.py   where runs are recorded
    run.py      `open_run` and `Run`: what the stages call
    store.py    an MLflow store: how a run is found in it, and the calls that record
    models.py   logged models, as MLflow and `fer.load` read them
    registry.py registered models, and which is the champion of its dataset
    journal.py  entries that wait for a store that is down
    health.py   whether the store responds, and abandoned runs
    compat.py   what MLflow does not promise between versions

The driver owns the run: workers never use the store. A run is found again by the fingerprint of its training job, so a
killed and resumed job keeps its run and its curves; every run ends as FINISHED, FAILED or KILLED.

Where tracking is not required and the store is down, entries are written to a journal, and sent when the store responds
again: a minute later, at the end of the run, or when the next run is opened.
"""

from fer.tracking.config import TrackingConfig, store_uri
from fer.tracking.health import TrackingError
from fer.tracking.registry import Candidate
from fer.tracking.run import Run, open_run

__all__ = ["Candidate", "Run", "TrackingConfig", "TrackingError", "open_run", "store_uri"]
