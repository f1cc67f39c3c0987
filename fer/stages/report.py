"""The report stage: gathers what the other stages left, and writes reports/index.html."""

from __future__ import annotations

from pathlib import Path

from fer.console import log
from fer.io.files import write_atomic
from fer.params import Params
from fer.report.collect import collect
from fer.report.page import render


def run(params: Params) -> Path:
    """Writes reports/index.html from data/shards, trained, evaluated, and studies where there are; returns its path."""
    content = collect(params)
    path = params.root / "reports" / "index.html"
    write_atomic(path, render(content))
    done = sum(1 for result in content.results if not result.missing)
    log.info(f"report: {done} of {len(content.results)} results -> {path.relative_to(params.root)}")
    for result in content.results:
        for problem in (*([result.missing] if result.missing else []), *result.stale):
            log.warning("%s on %s: %s", result.model, result.dataset, problem)
    for problem in (*content.studies.problems, *content.evaluations.problems):
        log.warning("left out of the report: %s", problem)
    return path
