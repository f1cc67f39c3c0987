"""The only reader of the process environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The environment variables that are read; everything else comes from params.yaml."""

    ray_address: str | None
    ray_host: Path | None
    mlflow_tracking_uri: str | None
    mlflow_login: str | None
    debug: bool
    dvc_stage: str | None
    dvc_experiment: str | None
    dvc_root: Path | None
    cache: Path
    cache_gb: str | None
    completing: str | None


def environment() -> Environment:
    """Reads RAY_ADDRESS, FER_RAY_HOST, MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME with MLFLOW_TRACKING_PASSWORD,
    FER_DEBUG and the variables that DVC sets for a stage.

    The folder of downloads that projects share is FER_CACHE, or else below XDG_CACHE_HOME; FER_CACHE_GB bounds what it
    holds of files in object stores. A shell that completes a
    line by argcomplete gives the line in COMP_LINE.
    """
    read = os.environ.get
    user = read("MLFLOW_TRACKING_USERNAME")
    return Environment(
        ray_address=read("RAY_ADDRESS") or None,
        ray_host=Path(path) if (path := read("FER_RAY_HOST")) else None,
        mlflow_tracking_uri=read("MLFLOW_TRACKING_URI") or None,
        mlflow_login=f"{user}:{read('MLFLOW_TRACKING_PASSWORD')}" if user else None,
        debug=bool(read("FER_DEBUG")),
        dvc_stage=read("DVC_STAGE") or None,
        dvc_experiment=read("DVC_EXP_NAME") or None,
        dvc_root=Path(root) if (root := read("DVC_ROOT")) else None,
        cache=Path(read("FER_CACHE") or f"{read('XDG_CACHE_HOME') or '~/.cache'}/fer"),
        cache_gb=read("FER_CACHE_GB") or None,
        completing=read("COMP_LINE") if "_ARGCOMPLETE" in os.environ else None,
    )
