"""Health checks of MLflow: whether its store responds, and which of its runs look abandoned.

Over a server's REST API and in a database file opened for reading: MLflow's own client retries a dead server for
minutes.
"""

from __future__ import annotations

import json
import time
from base64 import b64encode
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote
from urllib.request import Request, urlopen

from fer.environment import environment
from fer.lineage import redact
from fer.tracking.compat import running_in_database
from fer.tracking.config import is_server, server_address

STALE_HOURS = 6.0
_SECONDS = 5.0


class TrackingError(ValueError):
    """The tracking store cannot be reached or rejects an entry, and `tracking.required` is true."""


def check_server(uri: str) -> None:
    """Checks that a server responds; other stores are left alone.

    Raises:
        TrackingError: it does not.
    """
    if not is_server(uri):
        return
    try:
        with urlopen(f"{server_address(uri)}/health", timeout=_SECONDS):
            pass
    except HTTPError:
        pass  # it responds; whether it lets us in, the first real request shows
    except (URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise TrackingError(f"the MLflow server {redact(uri)} does not answer ({reason})") from error


def stale_runs(uri: str) -> list[str]:
    """Names of runs that are RUNNING and have logged nothing for `STALE_HOURS`.

    Raises:
        OSError, ValueError, sqlite3.Error: the store does not respond.
    """
    if is_server(uri):
        running = _running_on_server(uri)
    else:
        path = Path(uri.removeprefix("sqlite:///"))
        # A database that is not there yet is created by the first run.
        running = running_in_database(path, _SECONDS) if uri.startswith("sqlite:///") and path.exists() else []
    oldest = (time.time() - STALE_HOURS * 3600) * 1000
    return [name for name, last in running if last < oldest]


def _running_on_server(uri: str) -> list[tuple[str, int]]:
    experiments = _post(uri, "experiments/search", {"max_results": 1000}).get("experiments", [])
    if not experiments:
        return []
    ids = [one["experiment_id"] for one in experiments]
    query = {"experiment_ids": ids, "filter": "attributes.status = 'RUNNING'", "max_results": 200}
    running = []
    for run in _post(uri, "runs/search", query).get("runs", []):
        times = [run["info"]["start_time"], *(metric["timestamp"] for metric in run["data"].get("metrics", []))]
        running.append((str(run["info"].get("run_name", run["info"]["run_id"])), max(map(int, times))))
    return running


def _post(uri: str, call: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    if login := unquote(uri.split("://")[1].rpartition("@")[0]) or environment().mlflow_login:
        headers["Authorization"] = f"Basic {b64encode(login.encode()).decode()}"
    url = f"{server_address(uri)}/api/2.0/mlflow/{call}"
    request = Request(url, data=json.dumps(body).encode(), headers=headers)
    with urlopen(request, timeout=_SECONDS) as response:
        found: dict[str, Any] = json.loads(response.read(2_000_000))
        return found
