"""Looks at services from outside: who listens on a port, and which MLflow runs nobody ended."""

from __future__ import annotations

import json
import socket
import sqlite3
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

RAY, MLFLOW = "Ray's dashboard", "MLflow's pages"
PORTS = {8265: RAY, 5000: MLFLOW}
STALE_HOURS = 6.0
_PROBE_SECONDS = 3.0
_RUNNING = """
select name, max(start_time, coalesce((select max(timestamp) from metrics where metrics.run_uuid = runs.run_uuid), 0))
from runs where status = 'RUNNING' and lifecycle_stage = 'active'
"""


def who_listens(port: int) -> str | None:
    """What answers on this machine's port: a name, or None where nobody listens."""
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", port)) != 0:
            return None
    process = _process_on(port)
    tail = f" ({process})" if process else ""
    for path, sign, name in (("/health", "OK", MLFLOW), ("/api/version", "ray_version", RAY)):
        try:
            status, text = _get(f"http://127.0.0.1:{port}{path}")
        except urllib.error.HTTPError as error:
            if error.code in (401, 403) and path == "/api/version":
                return (
                    f"{RAY}, asking for a token{tail}" if b"token" in error.read().lower() else f"another service{tail}"
                )
            continue
        except (OSError, ValueError):
            continue
        if status == 200 and sign in text[:200]:
            return f"{name}{tail}"
    return f"another service{tail}"


def stale_runs(uri: str) -> list[str]:
    """Names of runs that are RUNNING and have logged nothing for long; raises what the store's absence raises."""
    if uri.startswith(("http://", "https://")):
        return _of_server(uri.rstrip("/"))
    if not uri.startswith("sqlite:///"):
        return []
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.exists():
        return []  # made by the first training
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=_PROBE_SECONDS)) as store:
        rows = store.execute(_RUNNING).fetchall()
    return [str(name) for name, last in rows if _is_stale(last)]


def _get(url: str, body: Any = None) -> tuple[int, str]:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"} if data else {})
    with urllib.request.urlopen(request, timeout=_PROBE_SECONDS) as answer:
        return answer.status, answer.read(2_000_000).decode("utf-8", "replace")


def _process_on(port: int) -> str | None:
    """`name, process 123` of the process that listens there; None where the system does not tell."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
        except OSError:
            continue
        sockets |= {
            f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port
        }
    for folder in Path("/proc").glob("[0-9]*") if sockets else ():
        try:
            if any(str(link.readlink()) in sockets for link in (folder / "fd").iterdir()):
                return f"{(folder / 'comm').read_text().strip()}, process {folder.name}"
        except OSError:  # another user's process, or one that just ended
            continue
    return None


def _of_server(uri: str) -> list[str]:
    api = f"{uri.partition('://')[0]}://{uri.partition('://')[2].rpartition('@')[2]}/api/2.0/mlflow"
    _, text = _get(f"{api}/experiments/search", {"max_results": 1000})
    experiments = [one["experiment_id"] for one in json.loads(text).get("experiments", [])]
    if not experiments:
        return []
    query = {"experiment_ids": experiments, "filter": "attributes.status = 'RUNNING'", "max_results": 200}
    _, text = _get(f"{api}/runs/search", query)
    stale = []
    for run in json.loads(text).get("runs", []):
        times = [run["info"]["start_time"], *(metric["timestamp"] for metric in run["data"].get("metrics", []))]
        if _is_stale(max(int(one) for one in times)):
            stale.append(str(run["info"].get("run_name", run["info"]["run_id"])))
    return stale


def _is_stale(last_milliseconds: int) -> bool:
    return time.time() - last_milliseconds / 1000 > STALE_HOURS * 3600
