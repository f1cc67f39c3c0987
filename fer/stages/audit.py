"""`fer audit DATASET --model M`: labels that are probably wrong, by models that were not trained on them.

    .work/audit-<dataset>-<model>-<digest>/  a cell a fold, as in a study: what a stopped audit resumes from
    reports/audited/<dataset>/<model>/    appears complete, by rename
        suspects.csv, suspects.png        rows with their given and suggested label, the most probable mistakes first
        joint.csv                         estimated fraction of rows of each given (line) and true label (column)
        out_of_fold.parquet               every row's probabilities, in the form of an evaluation's predictions
        audit.json                        counts, thresholds, and the check against better labels where there are some

The rows are those of the folds: training, and validation where none is published. The held-out fold also chooses the
epoch. The test split decides nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer import params as parameters
from fer.console import log, progress
from fer.io.files import write_atomic, write_json
from fer.io.storage import inside
from fer.outputs import AUDITED
from fer.params import Params
from fer.processes import empty_held, lock
from fer.stages import add_resume_options
from fer.tracking import Run, open_run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fer.evaluation.predicted import Predicted
    from fer.explain.audit import Suspects
    from fer.shards.read import ShardSet
    from fer.studies.cell import Cell, Plan

_FOLDS = 5
_SHEET = 60  # faces of the sheet
_HELD_OUT = "held_out.npz"  # of a cell: `logits` of the rows of its fold, in their order


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which dataset and model, and what the result is checked against."""
    parser.add_argument("dataset", metavar="DATASET", help="key of `datasets` in params.yaml")
    parser.add_argument("--model", required=True, metavar="M", help="key of `models`: the recipe that is trained")
    parser.add_argument(
        "--folds", type=int, default=_FOLDS, metavar="K", help=f"models, each trained without one fold ({_FOLDS})"
    )
    parser.add_argument(
        "--against", metavar="DATASET", help="with shards of the same images and better labels, as ferplus of fer2013"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="folds at once; 0: in this process, without Ray")
    add_resume_options(parser)


def main(args: argparse.Namespace) -> None:
    """Audits it, or resumes."""
    run(
        parameters.load(), args.dataset, args.model, folds=args.folds, against=args.against, workers=args.workers,
        accept_versions=args.accept_versions, restart=args.restart,
    )  # fmt: skip


def run(
    params: Params,
    dataset: str,
    model_key: str,
    *,
    folds: int = _FOLDS,
    against: str | None = None,
    workers: int | None = None,
    accept_versions: bool = False,
    restart: bool = False,
) -> Path:
    """Trains a model a fold, or resumes, and publishes reports/audited/<dataset>/<model_key>/.

    Args:
        folds: 2 .. the folds of the shards.
        against: dataset whose labels of the same images the suspects are compared with; None: the clean labels of
            synthetic faces, where noise was added.
        workers: folds trained at once; None: as many as the cluster holds; 0: one after the other, without Ray.
        accept_versions, restart: as in `fer.stages.train.run`.

    Returns:
        the folder.

    Raises:
        ValueError: unknown keys, shards that cannot be used, too many folds, no common image, or folds that failed.
    """
    from fer.stages.evaluate import open_shards
    from fer.stages.study import CellLog, clear_states, run_cells
    from fer.studies.cell import tidy

    params.dataset(dataset)
    recipe = params.recipe(model_key)
    final = AUDITED.folder(params.root, dataset, model_key)
    shards = open_shards(params, dataset, f"trained/{dataset}/{model_key}")
    better = _better_labels(params, shards, against)
    plan = _plan(params, dataset, model_key, shards, folds, accept_versions=accept_versions)
    key = hashlib.sha256("".join(plan.distinct).encode()).hexdigest()
    work, experiment = Path(plan.folder), f"audit {dataset}"
    with lock(work / "lock"):
        if restart:
            clear_states(params, plan)
            empty_held(work)
        with open_run(
            params.tracking, params.home, checkout=params.root, experiment=experiment, run_name=model_key, key=key,
            params={"folds": folds, "against": against},
            tags={"fer.kind": "audit", "dataset": dataset, "model": recipe.last.model},
            join=all((plan.place(cell) / _HELD_OUT).is_file() for cell in plan.cells),  # only read again
        ) as tracked:  # fmt: skip
            if failures := run_cells(params, plan, CellLog(params, plan, tracked, experiment), workers):
                lines = (f"{title}: {reason}" for title, reason in failures.items())
                raise ValueError("\n  ".join([f"audit of {dataset}: {len(failures)} of {folds} folds failed", *lines]))
            rows = _read(plan, shards, folds)
            tidy(plan)
            with AUDITED.publish(final) as folder:
                facts = {"dataset": dataset, "model": model_key, "folds": folds, "against": against, "fingerprint": key}
                summary = _write(folder, shards, rows, facts, better)
            _record(tracked, final, summary)
    log.info(f"audit of {dataset} by {model_key}: {_described(summary)} -> {final.relative_to(params.root)}")
    return final


# ------------------------------------------------------------------------------------------------ out-of-fold logits


def _plan(params: Params, dataset: str, model_key: str, shards: ShardSet, folds: int, *, accept_versions: bool) -> Plan:
    """A cell a fold, as in a study of one row."""
    from fer.shards.folds import group_folds
    from fer.stages.closure import code
    from fer.studies.cell import Cell, Plan
    from fer.training.job import TrainJob
    from fer.training.recipe import vary
    from fer.weights.parts import locate

    group_folds(shards.manifest.folds, folds)
    recipe, config = params.recipe(model_key), params.train_of(model_key)
    folder = (params.home / ".work" / f"audit-{dataset}-{model_key}-{folds}").resolve()
    work = inside(params.storage, "work") if params.storage else folder
    pretrained = locate(recipe.sources, params.root, params.parent)
    cells = []
    for fold in range(folds):
        shards.manifest.files("validation", folds=folds, fold=fold)  # refuses a fold without rows
        held_out = {"folds": folds, "fold": fold}
        whole = recipe.model_copy(update={"protocol": "validation", "selection": "best"})
        own = vary(whole, {"cross_validation": held_out}, f"models.{model_key}")
        job = TrainJob.create(
            shards,
            own,
            seed=params.seed,
            code=code().digest("study", recipes=[own]),
            config=config,
            work=work,
            pretrained=pretrained,
            command=f"fer audit {dataset} --model {model_key} --folds {folds}",
            accept_versions=accept_versions,
        )
        key = job.fingerprint[:20]
        job = replace(job, fingerprint=key, work_dir=inside(work, key))
        cells.append(Cell(row=model_key, dataset=dataset, fold=fold, job=job))
    return Plan(
        name=f"audit of {dataset}", kind="table", tta="none", folder=str(folder), gpu=config.gpu, cells=tuple(cells)
    )


def _read(plan: Plan, shards: ShardSet, folds: int) -> Predicted:
    """The rows of all folds with the probabilities of the model that did not see them."""
    import numpy as np

    from fer.evaluation.metrics import log_softmax
    from fer.evaluation.predicted import Predicted
    from fer.shards.table import read_table

    sample_ids, labels, logits = list[str](), list[int](), []
    with progress(folds, "predict held-out folds", "fold") as bar:
        for cell in plan.cells:
            logits.append(_held_out(cell, plan.place(cell) / _HELD_OUT, "cuda:0" if plan.gpu else "cpu"))
            for file in shards.manifest.files("validation", folds=folds, fold=cell.fold or 0):
                columns = read_table(shards.folder / file, ["sample_id", "label"])
                sample_ids += columns["sample_id"]
                labels += columns["label"]
            bar.update(1)
    return Predicted(
        name=plan.cells[0].row,
        sample_ids=tuple(sample_ids),
        classes=shards.labels,
        labels=np.array(labels, np.int64),
        probabilities=np.exp(log_softmax(np.concatenate(logits))),
        data_digest=shards.digest,
    )


def _held_out(cell: Cell, kept: Path, device: str) -> npt.NDArray[np.float32]:
    """Logits (n, K) of a finished cell for the rows of its fold; `kept`, for the weights are removed afterwards.

    Raises:
        ValueError: the weights are gone, and nothing was kept.
    """
    import numpy as np

    from fer.shards.read import EvalBatches, ModelInput, ShardSet
    from fer.training.loop import build_model, compute_logits
    from fer.training.state import TrainState

    job = cell.job
    if not kept.is_file():
        state = TrainState.load(job.work_dir)
        if state is None:
            raise ValueError(f"{job.work_dir}: the weights are gone; start over: `{job.command} --restart`")
        model = build_model(job)
        model.load_state_dict(state.best_model)
        held = job.recipe.last.cross_validation
        assert held is not None, "a cell of an audit holds a fold out"
        batches = EvalBatches(
            ShardSet.open(job.shards, verify=False).split("validation", folds=held.folds, fold=held.fold),
            model_input=ModelInput.of(model),
            batch_size=job.recipe.last.eval_batch_size,
            threads=job.threads,
        )
        try:
            logits, _, rows = compute_logits(model.to(device), batches, job.recipe.last, device)
        finally:
            batches.close()
        buffer = io.BytesIO()
        np.savez_compressed(buffer, logits=logits[rows.argsort()].numpy())
        write_atomic(kept, buffer.getvalue())
    with np.load(kept) as arrays:
        return np.asarray(arrays["logits"], np.float32)


# ------------------------------------------------------------------------------------------------ better labels


def _better_labels(params: Params, shards: ShardSet, against: str | None) -> dict[str, str]:
    """The name of a better label of each sample where one is known, given the right label or not.

    That is the label of the same image in another dataset, unless it has several there; or the clean label of synthetic
    faces, where noise was added to some.

    Raises:
        ValueError: the other dataset is unknown, has no shards, or no image in common.
    """
    from fer.shards.read import ShardSet
    from fer.shards.table import read_table

    files = shards.manifest.files("development")
    if against is None:
        known, noise = dict[str, str](), False
        for file in files:
            columns = read_table(shards.folder / file, ["sample_id", "label", "clean_label"])
            noise |= columns["label"] != columns["clean_label"]
            names = (shards.labels[label] for label in columns["clean_label"])
            known.update(zip(columns["sample_id"], names, strict=True))
        return known if noise else {}
    params.dataset(against)
    other = ShardSet.open((params.root / "data" / "shards" / against).resolve())
    labels = defaultdict[bytes, set[str]](set)
    for digest, label in _images(other, [part.file for part in other.manifest.parts], "label"):
        labels[digest].add(other.labels[label])
    one = {digest: min(of_image) for digest, of_image in labels.items() if len(of_image) == 1}
    found = {sample: one[digest] for digest, sample in _images(shards, files, "sample_id") if digest in one}
    if not found:
        raise ValueError(
            f"{against}: holds none of the images of {shards.manifest.dataset}, byte by byte; crop both alike"
        )
    return found


def _images(shards: ShardSet, files: Sequence[str], column: str) -> Iterator[tuple[bytes, Any]]:
    """SHA-256 of the stored image, and the value of a column, of every row."""
    from fer.shards.schema import shard_schema
    from fer.shards.table import TableReader

    for file in files:
        for batch in TableReader(shards.folder / file, shard_schema()).batches(["image", column]):
            for record in batch.to_pylist():
                yield hashlib.sha256(record["image"]).digest(), record[column]


# ------------------------------------------------------------------------------------------------ results


def _write(
    folder: Path,
    shards: ShardSet,
    rows: Predicted,
    facts: dict[str, Any],
    better: Mapping[str, str],
) -> dict[str, Any]:
    """The files of an audit; returns audit.json."""
    import numpy as np

    from fer.explain.audit import find_suspects, scored

    names, found = shards.labels, find_suspects(rows.labels, rows.probabilities)
    summary = {
        **facts,
        "rows": len(rows.labels),
        "out_of_fold_accuracy": float(rows.correct.mean()),
        "suspects": len(found.rows),
        "estimated_noise": found.noise,
        "thresholds": {
            name: value if np.isfinite(value) else None
            for name, value in zip(names, found.thresholds.tolist(), strict=True)
        },
        "synthetic": shards.manifest.synthetic,
        "data_digest": shards.digest,
    }
    if better:
        labels = [better.get(sample) for sample in rows.sample_ids]
        known = np.array([label is not None for label in labels])
        wrong = known & np.array([label != names[own] for label, own in zip(labels, rows.labels, strict=True)])
        right = [labels[row] == names[to] for row, to in zip(found.rows, found.suggested, strict=True) if known[row]]
        summary["check"] = {
            "against": facts["against"] or "clean labels",
            **scored(found, wrong, known),
            "suggestion_is_the_better_label": float(np.mean(right)) if right else None,
        }
    _write_tables(folder, shards, rows, found, better)
    write_json(folder / "audit.json", summary)
    return summary


def _write_tables(folder: Path, shards: ShardSet, rows: Predicted, found: Suspects, better: Mapping[str, str]) -> None:
    import numpy as np

    from fer.explain.contact_sheet import Line, faces_of, sheet
    from fer.shards.schema import prediction_schema
    from fer.shards.table import write_table
    from fer.stages.explore import write_csv

    names = shards.labels
    probabilities = ("probability_given", "probability_suggested")
    header = ["rank", "sample_id", "given", "suggested", "margin", *probabilities, "better"]
    lines = []
    for rank, (row, to, margin) in enumerate(zip(found.rows, found.suggested, found.margin, strict=True), start=1):
        own, of_row = rows.labels[row], rows.probabilities[row]
        numbers = (margin, of_row[own], of_row[to])
        lines.append(
            [rank, rows.sample_ids[row], names[own], names[to], *numbers, better.get(rows.sample_ids[row], "")]
        )
    write_csv(folder / "suspects.csv", header, lines)
    joint = ([name, *(f"{value:.6f}" for value in of)] for name, of in zip(names, found.joint, strict=True))
    write_csv(folder / "joint.csv", ["given", *names], joint)
    first = lines[:_SHEET]
    texts = [
        [Line(f"given: {given}"), Line(f"suggested: {to}"), Line(f"margin: {m:.2f}")]
        for _, _, given, to, m, *_ in first
    ]
    faces = faces_of(shards.split("development"), [line[1] for line in first])
    write_atomic(folder / "suspects.png", sheet(faces, texts, columns=10))
    write_table(
        folder / "out_of_fold.parquet",
        {
            "sample_id": list(rows.sample_ids),
            "label": rows.labels.astype(np.int8),
            "predicted": rows.predicted.astype(np.int8),
            "probabilities": list(rows.probabilities.astype(np.float32)),
            "correct": rows.correct,
        },
        prediction_schema(),
        metadata={"fer.labels": ",".join(names), "fer.data_digest": shards.digest, "fer.split": "development"},
    )


def _record(tracked: Run, folder: Path, summary: dict[str, Any]) -> None:
    """The counts, and all files but the sheet: faces stay on this disk."""
    keys = ("out_of_fold_accuracy", "suspects", "estimated_noise")
    tracked.log_metrics({key: summary[key] for key in keys})
    for name in ("precision", "recall", "base_rate"):
        if (value := summary.get("check", {}).get(name, {}).get("value")) is not None:
            tracked.log_metrics({name: value})
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.csv")]):
        tracked.log_artifact(file)


def _described(summary: dict[str, Any]) -> str:
    """The main numbers in words, for the log."""
    text = (
        f"{summary['suspects']} suspects in {summary['rows']} rows, out-of-fold accuracy "
        f"{summary['out_of_fold_accuracy']:.4f}, estimated noise {100 * summary['estimated_noise']:.1f} %"
    )
    if check := summary.get("check"):
        shown = {
            name: "-" if check[name]["value"] is None else f"{100 * check[name]['value']:.1f} %"
            for name in ("precision", "recall", "base_rate")
        }
        text += (
            f"; against {check['against']}: precision {shown['precision']}, recall {shown['recall']}, base rate "
            f"{shown['base_rate']}"
        )
    return text
