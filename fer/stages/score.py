"""Any weights on the test split of any dataset, by the code of the evaluate stage; DVC does not know the results.

    reports/evaluations/<dataset>/<name>/     appears complete, by rename; files as in evaluated/<dataset>/<model>
        test.json    also `classes`, where those of model and dataset differ, and `notes`, in words

Needs no train.json. An evaluation that is there already is not computed again: weights, data, classes, the `evaluate`
section and the code are its identity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fer import published
from fer.console import log
from fer.evaluation.classes import FEWEST, ClassMap, ExtraClasses
from fer.evaluation.output import entries, facts_in, read, write
from fer.io.files import FileError, sha256
from fer.labels import is_identities
from fer.outputs import EVALUATIONS
from fer.params import Params
from fer.processes import lock
from fer.shards.read import ShardSet
from fer.stages.closure import code
from fer.stages.evaluate import described, evaluate, facts_of
from fer.stages.record import record
from fer.training.recipe import Recipe
from fer.weights.registry import register
from fer.weights.store import WeightsInfo, read_info


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights to evaluate.

    Attributes:
        name: of the folder of their results.
        given: as the user named them: by it they are known again.
        file: of this project's format; published ones are imported before.
        facts: train.json, where they lie in the folder of a run.
    """

    name: str
    given: str
    file: Path
    facts: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def info(self) -> WeightsInfo:
        """The description in the file."""
        return read_info(self.file)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What test.json and MLflow say of them.

        `kind`: "published weights", which others trained, or "own weights". `trained_on`: a key of `datasets`, or the
        published name of a dataset; None where unknown. `selected_on_test`: whether the epoch was selected on the test
        split of that dataset, as far as it is known; so it is where others tell how. `printed`: the authors' accuracy,
        0 .. 1, and their `protocol`. `file`, `file_sha256`: that of others which was imported.
        """
        extra = self.info.extra
        entry = register().get(str(extra.get("published")))
        about = {
            "weights": self.given,
            "model": self.info.model,
            "kind": "published weights" if "file" in extra else "own weights",
            "trained_on": str(extra["dataset"]) if "dataset" in extra else None,
            "protocol": self.facts.get("protocol"),
            "selected_on_test": self.facts.get("recipe", {}).get("protocol") == "published",
        }
        if "file" in extra:
            about |= {"file": extra["file"], "file_sha256": extra.get("sha256")}
        if entry:
            printed = entry.accuracy / 100 if entry.accuracy else None
            about |= {"printed": printed, "protocol": entry.protocol, "selected_on_test": entry.protocol is not None}
            about |= {"input": entry.input, "source": entry.source}
        return about

    def trained_on(self, params: Params, dataset: str) -> bool:
        """Whether the dataset is the one that they were trained on."""
        config = params.datasets.get(dataset)
        names = {dataset, published.dataset_name(config.source, len(self.info.labels)) if config else None}
        return self.about["trained_on"] in names - {None}

    def refusal(self, shards: ShardSet) -> str | None:
        """Why they cannot be scored on a dataset of expressions, in words; None where they can."""
        if is_identities(self.info.label_space):
            return "their classes are people"
        classes = _classes(self, shards)
        if (count := len(classes.shared)) < FEWEST:
            return f"{count or 'no'} shared class{'' if count == 1 else 'es'}, at least {FEWEST} are needed"
        return None


def score(
    params: Params, dataset: str, shards: ShardSet, weights: Weights, extra: ExtraClasses = "left_out"
) -> tuple[Path, dict[str, Any]]:
    """Evaluates weights, or finds their evaluation, in reports/evaluations/<dataset>/<name>.

    Args:
        shards: of the dataset, as `open_shards` gives them.
        extra: the rule for classes that the dataset lacks (`fer.evaluation.classes`).

    Returns:
        the folder and its test.json.

    Raises:
        ValueError: weights or statistics that cannot be used, too few shared classes, or a folder that holds the
            user's files or the evaluation of other weights.
    """
    final = EVALUATIONS.folder(params.root, dataset, weights.name)
    if reason := weights.refusal(shards):
        raise ValueError(f"{weights.given} on {dataset}: {reason}")
    classes, title = _classes(weights, shards, extra), f"{weights.name} on {dataset}"
    fingerprint = _fingerprint(params, dataset, shards, weights, classes)
    with lock(params.root / ".work" / f"score-{dataset}-{weights.name}.lock"):
        summary = read(final)
        facts = facts_in(summary)
        if facts and facts.get("weights") != weights.given:
            raise FileError(
                f"{final}: holds the evaluation of {facts.get('weights')!r}, not of {weights.given!r}; give these "
                "weights another --name, or remove the folder"
            )
        if facts.get("fingerprint") == fingerprint:
            log.info(f"evaluate {title}: is done: {described(summary)} -> {final.relative_to(params.root)}")
            return final, summary
        predictions, summary = evaluate(params, dataset, shards, weights.file, classes)
        summary["notes"] = _notes(params, dataset, shards, weights)
        facts = {
            "dataset": dataset,
            "synthetic": shards.manifest.synthetic,
            "own_dataset": weights.trained_on(params, dataset),
            "fingerprint": fingerprint,
        }
        summary["about"] = entries(weights.about | facts | facts_of(shards, weights.file, params.evaluate))
        with EVALUATIONS.publish(final) as folder:
            write(folder, predictions, summary, shards, title)
        tags = {"fer.kind": weights.about["kind"], **{key: str(value) for key, value in weights.about.items() if value}}
        record(params, dataset, weights.name, summary, shards, final, key=fingerprint, tags=tags)
    for note in summary["notes"]:
        log.warning("%s: %s", title, note)
    log.info(f"evaluate {title}: {described(summary)}{_of_classes(summary)} -> {final.relative_to(params.root)}")
    return final, summary


def _classes(weights: Weights, shards: ShardSet, extra: ExtraClasses = "left_out") -> ClassMap:
    return ClassMap(of_model=weights.info.labels, of_dataset=shards.labels, extra=extra)


def _fingerprint(params: Params, dataset: str, shards: ShardSet, weights: Weights, classes: ClassMap) -> str:
    model = Recipe(model=weights.info.model, epochs=1, batch_size=1, learning_rate=1)  # how a closure names a model
    statistics = params.root / "data" / "statistics" / dataset
    identity = {
        "code": code().digest("evaluate", recipes=[model]),
        "evaluate": params.evaluate.model_dump(mode="json", exclude={"workers", "batch_size"}),
        "seed": params.seed,
        "extra": classes.extra,
        "files": {
            path.name: sha256(path)
            for path in (weights.file, *(statistics / f"{name}.csv" for name in ("duplicates", "dropped")))
            if path.is_file()
        },
        "data": shards.digest,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _notes(params: Params, dataset: str, shards: ShardSet, weights: Weights) -> list[str]:
    """In what this evaluation differs from one of the authors, or of the run, as far as it is known."""
    notes, info, manifest = [], weights.info, shards.manifest
    trained = info.extra.get("crop") or {}
    if other := [key for key in ("align", "border") if key in trained and trained[key] != manifest.crop.get(key)]:
        kinds = (f"{key} {manifest.crop.get(key)}, in training {trained[key]}" for key in other)
        notes.append(f"the faces are cropped otherwise than those of the training: {'; '.join(kinds)}")
    if manifest.image_size and (side := min(manifest.image_size)) < info.input_size:
        notes.append(f"images of {side} px are enlarged to the model's {info.input_size} px")
    digest = weights.facts.get("data_digest", shards.digest)
    if weights.trained_on(params, dataset) and digest != shards.digest:
        notes.append("the weights were trained on other shards of this dataset, so that test rows may be among them")
    return notes


def _of_classes(summary: Mapping[str, Any]) -> str:
    classes = summary.get("classes")
    if not classes:
        return ""
    rule = "their logits are left out" if classes["extra"] == "left_out" else "to predict them is counted as wrong"
    only = f"; the model's {', '.join(classes['only_model'])}: {rule}" if classes["only_model"] else ""
    left = f"; {classes['rows_left_out']} rows of {', '.join(classes['only_dataset'])} left out"
    return f"; {len(classes['shared'])} shared classes{only}{left if classes['only_dataset'] else ''}"
