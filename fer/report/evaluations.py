"""The evaluations that `fer evaluate` left, for the page: published weights, other models, and the matrix.

    reports/evaluations/<dataset>/<name>/test.json    one each
    reports/matrix/matrix.json                        models by datasets

Whoever wrote a file here, the page is made: what cannot be used is left out, and reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fer.evaluation.output import facts_in
from fer.io.files import FileError, read_object
from fer.params import Params
from fer.shards.manifest import FILE_NAME, digest

_KEYS: dict[str, type] = {"about": list, "rows": int, "accuracy": float, "balanced_accuracy": float, "intervals": list}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Weights on the test split of a dataset.

    Attributes:
        test: test.json.
        about: its facts (`fer.stages.score.Weights.about`).
        stale: whether the shards have changed since.
    """

    dataset: str
    name: str
    test: Mapping[str, Any]
    about: Mapping[str, Any]
    stale: bool

    @property
    def published(self) -> bool:
        """Whether others trained the weights."""
        return bool(self.about["kind"] == "published weights")

    def interval(self, metric: str) -> Mapping[str, Any] | None:
        """The interval of a metric."""
        return next((line for line in self.test["intervals"] if line["metric"] == metric), None)


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """All of them; `matrix`: the lines of matrix.json by model, then dataset; `problems`: what could not be used."""

    results: tuple[Evaluation, ...] = ()
    matrix: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def datasets(self) -> list[str]:
        """The columns of the matrix."""
        return list(dict.fromkeys(dataset for row in self.matrix.values() for dataset in row))

    @property
    def synthetic(self) -> set[str]:
        """Those of them that are rendered."""
        return {name for row in self.matrix.values() for name, line in row.items() if line.get("synthetic")}


def collect_evaluations(params: Params) -> Evaluations:
    """The contents of reports/evaluations and reports/matrix; empty where there is nothing."""
    results: list[Evaluation] = []
    problems: list[str] = []
    matrix: dict[str, dict[str, Mapping[str, Any]]] = {}
    for path in sorted((params.root / "reports" / "evaluations").glob("*/*/test.json")):
        try:
            results.append(_evaluation(params, path.parent))
        except (ValueError, OSError, TypeError, KeyError) as error:
            problems.append(str(error).replace(f"{params.root}/", ""))
    path = params.root / "reports" / "matrix" / "matrix.json"
    if path.is_file():
        try:
            for line in read_object(path, {"lines": list}, "run `fer evaluate --matrix` again")["lines"]:
                if not isinstance(line, dict) or not {"weights", "dataset", "skipped", "accuracy"} <= line.keys():
                    raise FileError(f"{path}: not what `fer evaluate --matrix` writes; run it again")
                matrix.setdefault(line["weights"], {})[line["dataset"]] = line
        except (ValueError, OSError, TypeError) as error:
            matrix = {}
            problems.append(str(error).replace(f"{params.root}/", ""))
    return Evaluations(results=tuple(results), matrix=matrix, problems=tuple(problems))


def _evaluation(params: Params, folder: Path) -> Evaluation:
    path, dataset, remedy = folder / "test.json", folder.parent.name, "remove the folder, and evaluate again"
    test = read_object(path, _KEYS, remedy)
    about = facts_in(test)
    if missing := {"kind", "weights", "trained_on", "data_digest"} - about.keys():
        raise FileError(f"{path}: about has no {', '.join(sorted(missing))}; {remedy}")
    shards = params.root / "data" / "shards" / dataset
    now = digest(shards) if (shards / FILE_NAME).is_file() else None
    stale = now is not None and about["data_digest"] != now
    return Evaluation(dataset=dataset, name=folder.name, test=test, about=about, stale=stale)
