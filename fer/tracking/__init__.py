"""Experiment tracking: an MLflow experiment a data set, a run a training. The only package that imports mlflow.

    config.py      where runs are recorded
    run.py         `open_run` and `Run`: what the stages call
    store.py       a store of MLflow: whether it answers, and how a run is found in it
    stored_run.py  a run in a store, which is told things
    model.py       a model in MLflow's form
    journal.py     what a store that is down could not be told
    pages.py       MLflow's own pages

The driver owns the run: workers never touch the store. A run is found again by the fingerprint of its training, so that
a training that was killed and goes on keeps its run and its curves; every run ends as FINISHED, FAILED or KILLED.

Where tracking is not required and the store is down, entries go to a journal, and from there to the store when it
answers again: a minute later, at the end of the run, or when the next run is opened.
"""

from fer.tracking.config import TrackingConfig, store_uri
from fer.tracking.pages import serve
from fer.tracking.run import Run, open_run
from fer.tracking.store import TrackingError

__all__ = ["Run", "TrackingConfig", "TrackingError", "open_run", "serve", "store_uri"]
