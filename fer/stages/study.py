"""`fer study NAME`: trains the rows of a published table, and writes their results beside the printed ones.

    .work/study-<name>-<digest>/plan.json which cells it is made of
    .work/study-<name>-<digest>/<cell>/   what a stopped study resumes from; a finished one keeps result and predictions
    reports/studies/<name>/results.json   every cell, and what was made of them; written last
    reports/studies/<name>/table.md, *.svg  the table, and the figures of studies that have some

A cell that fails costs its own result alone: the others are trained, the table is written of what there is, and the
failed ones are named in it, in results.json and at the end, with an exit status that is not 0.

A cell is a row on one dataset under one seed and, in a cross-validation, one fold; one that another study has finished
is taken over. Its epoch is chosen as its recipe says, on validation unless it says otherwise; then the test split is
opened, once a cell. Each cell has an MLflow run of its own, below that of the study, from its start to its end.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from fer import params as parameters
from fer.config import ConfigError, parse
from fer.console import log
from fer.evaluation.config import TtaName
from fer.evaluation.figures import save
from fer.io import yaml12
from fer.io.files import read_json_if_there, write_atomic, write_json
from fer.io.storage import Folder, inside
from fer.lease import leased
from fer.names import check_name
from fer.params import Params
from fer.processes import empty_held, lock
from fer.published import dataset_name
from fer.shards.read import ShardSet
from fer.stages import add_resume_options
from fer.stages.record import log_data
from fer.studies import Row, Study, StudyOptions, list_studies, load_study, row_recipe
from fer.studies.cell import Cell, Plan, link, tidy
from fer.studies.results import read
from fer.tracking import Run, open_run
from fer.training.job import TrainJob
from fer.training.recipe import vary

_OPTIONS = ("smoke", "dataset", "recipe", "seeds", "folds", "rows", "tta", "workers", "workers_per_cell")
_RECORDED = "recorded.json"  # in a cell's folder, and the study's: the MLflow run has all there is


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which table, on what."""
    parser.add_argument("name", nargs="?", help="a study, or the path of a .yaml file of your own; none lists them")
    parser.add_argument("--smoke", action="store_true", help="small models on the synthetic faces, minutes")
    parser.add_argument(
        "--dataset", nargs="+", metavar="NAME", help=f"columns, or other keys of `datasets` in {parameters.FILE_NAME}"
    )
    parser.add_argument("--recipe", metavar="FILE/SECTION", help="in place of the study's recipes")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="each row is trained once a seed (0)")
    parser.add_argument("--folds", type=int, metavar="K", help="cross-validation over K folds")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these rows of the table")
    parser.add_argument("--set", nargs="+", metavar="KEY=VALUE", default=[], help="recipe keys for all rows")
    parser.add_argument("--tta", choices=get_args(TtaName), help="test accuracy with test-time augmentation too")
    parser.add_argument("--workers", type=int, metavar="N", help="most cells at once; 0: in this process, without Ray")
    parser.add_argument("--workers-per-cell", type=int, metavar="N", help="Ray workers of each cell, a GPU each (1)")
    add_resume_options(parser)


def main(args: argparse.Namespace) -> None:
    """Lists the studies, or runs or resumes one."""
    if args.name is None:
        for name in list_studies():
            study = load_study(name, Path())
            print(f"{name:<26}{study.source}: {study.title}")
        return
    given = {name: getattr(args, name) for name in _OPTIONS}
    changes = {name: value for name, value in given.items() if value is not None}
    options = parse(StudyOptions, changes | {"set": _assignments(args.set)}, "fer study")
    run(parameters.load(), args.name, options, accept_versions=args.accept_versions, restart=args.restart)


def run(
    params: Params, name: str, options: StudyOptions, *, accept_versions: bool = False, restart: bool = False
) -> Path:
    """Runs a study, or resumes it.

    Args:
        accept_versions, restart: as in `fer.stages.train.run`.

    Returns:
        the folder with results.json and table.md.

    Raises:
        ValueError: a mistake in the study or the options, shards that cannot be used; or, after all else was written,
            cells that failed, and rows that trained the same.
    """
    study = load_study(name, params.root)
    if options.tta is not None:
        study = study.model_copy(update={"tta": options.tta})
    options = _of_the_datasets_there(params, study, options)
    plan = make_plan(params, name, study, options, accept_versions=accept_versions)
    stem = check_name(Path(name).stem, "fer study")
    final = params.root / "reports" / "studies" / (stem + ("-smoke" if options.smoke else ""))
    work, whole = Path(plan.folder), hashlib.sha256("".join(cell.key for cell in plan.cells).encode()).hexdigest()
    with lock(work / "lock"):
        if restart:
            clear_states(params, plan)
            empty_held(work)
        plan.write()
        experiment, recorded = f"study {stem}", {"key": whole}
        with open_run(
            params.tracking, params.home, checkout=params.root, experiment=experiment, run_name=study.title, key=whole,
            params={"source": study.source}, tags={"fer.kind": "study", **_places(plan)},
            # A study that is only read again leaves its run as it is.
            join=read_json_if_there(work / _RECORDED) == recorded,
        ) as parent:  # fmt: skip
            if not restart:
                plan.adopt()
            record = CellLog(params, plan, parent, experiment)
            failures = run_cells(params, plan, record, options.workers, workers=options.workers_per_cell)
            finished = plan.finished()
            wrong = _wrong(study, options, finished, failures)
            if finished.cells:
                results = finished.results()
                report = read(study, options, finished, results)
                final.mkdir(parents=True, exist_ok=True)
                write_atomic(final / "table.md", "\n".join([report.markdown, *(f"**{line}**\n" for line in wrong)]))
                for figure, drawn in report.figures.items():
                    save(drawn, final / f"{figure}.svg")
                about = {"study": study.model_dump(mode="json"), "options": options.model_dump(mode="json")}
                write_json(final / "results.json", {**about, **report.content, "cells": results, "wrong": wrong})
                for file in ("table.md", "results.json"):  # cells of an earlier start have their runs under its parent
                    parent.log_artifact(final / file)
                print(report.markdown)
                log.info("-> %s", final.relative_to(params.root))
            tidy(plan)
            if wrong:
                what = f"{len(failures)} of {len(plan.distinct)} cells failed" if failures else "rows trained the same"
                kept = "the table has what there is" if finished.cells else "there is no table"
                raise ValueError("\n  ".join([f"{name}: {what}; {kept}:", *wrong]))
        if parent.active:
            write_json(work / _RECORDED, recorded)
    return final


def _places(plan: Plan) -> dict[str, str]:
    """The datasets and the models of a study, as tags."""
    places = {
        "dataset": {one.dataset for one in plan.cells},
        "model": {one.job.recipe.last.model for one in plan.cells},
    }
    return {tag: ", ".join(sorted(names)) for tag, names in places.items()}


def _wrong(study: Study, options: StudyOptions, finished: Plan, failures: Mapping[str, str]) -> list[str]:
    """What is wrong with the runs, a line each: cells that failed, and rows that trained the same thing."""
    same = {row.row: row.same_as for row in study.rows if row.same_as is not None} if options.smoke else {}
    return [
        *(f"{title}: {reason}" for title, reason in failures.items()),
        *(
            f"{cell.title}: its logits are those of {other.row}, bit by bit: what tells the two apart had no effect"
            for other, cell in finished.twins(same)
        ),
    ]


# ------------------------------------------------------------------------------------------------ what is trained


def _of_the_datasets_there(params: Params, study: Study, options: StudyOptions) -> StudyOptions:
    """The options with the columns that have shards, where nobody chose any; as they are where none has."""
    from fer.shards.manifest import FILE_NAME

    there = [name for name in study.datasets if (params.root / "data" / "shards" / name / FILE_NAME).is_file()]
    missing = [name for name in study.datasets if name not in there]
    if options.dataset is not None or options.smoke or not there or not missing:
        return options
    log.warning("left out, for they have no shards: %s (dvc repro shard@NAME)", ", ".join(missing))
    return options.model_copy(update={"dataset": tuple(there)})


def make_plan(params: Params, name: str, study: Study, options: StudyOptions, *, accept_versions: bool = False) -> Plan:
    """The cells of a study.

    Raises:
        ValueError: a row that does not exist, an unknown recipe key, shards that cannot be used.
    """
    from fer.stages.closure import code
    from fer.weights.parts import locate

    # Of all rows, so that a choice of rows and the whole table share their cells.
    datasets = " ".join(dict.fromkeys(one for row in study.rows for one in options.columns(study, row)))
    label = hashlib.sha256(f"{name} {datasets}".encode()).hexdigest()[:8]
    folder = (params.home / ".work" / f"study-{Path(name).stem}-{label}").resolve()
    work = inside(params.storage, "work") if params.storage else folder
    folds, stage = options.folds or study.folds, params.train.model_copy(update={"workers": options.workers_per_cell})
    cells: list[Cell] = []
    places = [(row, dataset) for row in options.chosen(study) for dataset in options.columns(study, row)]
    # All of them first: a mistyped key is refused before any shards have to be there.
    own_recipes = [row_recipe(study, row, options, params.root, dataset) for row, dataset in places]
    for (row, dataset), recipe in zip(places, own_recipes, strict=True):
        config = params.dataset(dataset)
        shards = ShardSet.open((params.root / "data" / "shards" / dataset).resolve())
        known_as = (
            None if options.smoke or shards.manifest.synthetic else dataset_name(config.source, len(shards.labels))
        )
        changes = row.set | (row.smoke if options.smoke else {}) | options.set
        pretrained = locate(recipe.sources, params.root, params.parent)
        for seed in options.seeds_of(row):
            for fold in range(folds) if folds else [None]:
                own = recipe
                if folds and fold is not None:
                    held = {"cross_validation": {"folds": folds, "fold": fold}}
                    own = vary(recipe, held, f"study row {row.row!r}")
                try:
                    stage.worker_counts(own, at_start=True)
                except ValueError as error:
                    problem = f"row {row.row!r}: {str(error).partition(';')[0]}"
                    raise ConfigError(f"fer study --workers-per-cell {options.workers_per_cell}: {problem}") from None
                others = [cell for cell in cells if (cell.fold, cell.dataset) == (fold, dataset)]
                starts, recipes = _sources(study, row, seed, others)
                linked = {name: keys for name, keys in (("starts", starts), ("recipes", recipes)) if keys}
                job = TrainJob.create(
                    shards,
                    own,
                    seed=seed,
                    code=code().digest("study", recipes=[own]),
                    config=params.train,
                    work=work,
                    pretrained=pretrained,
                    more={"tta": study.tta, "threads": params.train.threads, **linked},
                    command=f"fer study {name}",
                    accept_versions=accept_versions,
                )
                key = job.fingerprint[:20]
                job = replace(job, fingerprint=key, work_dir=inside(work, key))
                cell = Cell(row=row.row, dataset=dataset, known_as=known_as, fold=fold, job=job)
                cells.append(replace(cell, starts=starts, recipes=recipes, changes=changes))
    if not cells:
        raise ConfigError(f"fer study {name}: no row has a run on {datasets or 'these datasets'}")
    cells = link(cells)
    cells.sort(key=lambda cell: options.seeds.index(cell.job.seed))  # a study that is stopped has whole comparisons
    plan = Plan(name=name, kind=study.kind, tta=study.tta, folder=str(folder), gpu=params.train.gpu, cells=tuple(cells))
    _check_distinct(study, options, plan)
    return plan


def _check_distinct(study: Study, options: StudyOptions, plan: Plan) -> None:
    """ConfigError where two rows would train the same thing, unless they are meant to."""
    first: dict[tuple[str, str], str] = {}
    for row in (row for row in options.chosen(study) if not (options.smoke and row.same_as)):
        for key, dataset in {(cell.key, cell.dataset) for cell in plan.cells if cell.row == row.row}:
            other = first.setdefault((key, dataset), row.row)
            if other != row.row:
                raise ConfigError(
                    f"{plan.name}: rows {other!r} and {row.row!r} train the same on {dataset}; change one, or choose "
                    "others with --rows"
                )


def _sources(study: Study, row: Row, seed: int, cells: Sequence[Cell]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Keys of the `cells`, all planned before, that a run starts from, and whose recipe it takes."""
    starts: tuple[str, ...] = ()
    if row.start:
        found = [cell for cell in cells if cell.row in row.start.rows]
        starts = tuple(cell.key for cell in found if row.start.run == "best" or cell.job.seed == seed)
        if not starts:
            raise ConfigError(f"{study.title}: row {row.row!r}, seed {seed}: no run of {', '.join(row.start.rows)}")
    return starts, tuple(cell.key for cell in cells if cell.row in row.recipe_of)


def _assignments(texts: Sequence[str]) -> dict[str, Any]:
    pairs = [text.partition("=") for text in texts]
    if wrong := [key for key, sign, _ in pairs if not sign]:
        raise ConfigError(f"fer study --set {wrong[0]}: expected KEY=VALUE")
    try:
        return {key: yaml12.load(os.fsencode(value)) for key, _, value in pairs}
    except yaml12.YamlError as error:
        raise ConfigError(f"fer study --set: {error}") from None


# ------------------------------------------------------------------------------------------------ where it runs


def run_cells(
    params: Params, plan: Plan, record: CellLog, at_once: int | None, *, workers: int = 1
) -> Mapping[str, str]:
    """Trains the cells that have no result yet; by title, what went wrong with those that failed.

    Args:
        at_once: cells; None: as many as the cluster has room for; 0: one after the other in this process.
        workers: of each cell, on Ray.
    """
    pending = [cell for cell in plan.distinct.values() if plan.result(cell) is None]
    log.info("%s: %d cells, %d of them done", plan.name, len(plan.distinct), len(plan.distinct) - len(pending))
    try:
        record.catch_up()
        while wave := [cell for cell in pending if plan.is_ready(cell)]:
            _run_wave(params, plan, wave, record, at_once, workers)
            pending = [cell for cell in pending if cell not in wave]
        record.failures.update({cell.title: "a run that it depends on failed" for cell in pending})
        return record.failures
    finally:
        record.close()


def _run_wave(
    params: Params, plan: Plan, cells: Sequence[Cell], record: CellLog, at_once: int | None, workers: int
) -> None:
    """Trains cells of which none depends on another."""
    if at_once == 0:
        for cell in cells:
            record.start(cell.key)
            record.end(cell.key, partial(_train, params, plan, cell))
        return
    from fer.cluster.beside import run_beside, train_in_task
    from fer.cluster.fit import train_on_ray

    threads = cells[0].job.threads
    stage = params.train.model_copy(update={"workers": workers, "threads": threads, "gpu": plan.gpu})

    on_ray = partial(
        train_in_task if workers == 1 else train_on_ray, stage=stage, config=params.cluster, storage=params.storage
    )
    run_beside(
        {cell.key: partial(_train, params, plan, cell, on_ray) for cell in cells}, params.cluster,
        workers=workers, threads=threads, gpu=plan.gpu, at_once=at_once, on_start=record.start, on_end=record.end,
    )  # fmt: skip


def clear_states(params: Params, plan: Plan) -> None:
    """Removes the states of all cells that are in a store; HeldError where another project trains one."""
    for cell in plan.distinct.values() if params.storage else ():
        with _leased(params, cell):
            Folder(cell.job.work_dir).clear()


def _leased(params: Params, cell: Cell) -> AbstractContextManager[Callable[[], object]]:
    return leased(params.storage, cell.job.fingerprint[:16], params.home, wait=params.queued)


def _train(
    params: Params,
    plan: Plan,
    cell: Cell,
    on_ray: Callable[..., Any] | None = None,
    poll: Callable[[], object] = lambda: None,
) -> None:
    """Trains a cell, which no other project with the same store trains meanwhile."""
    with _leased(params, cell) as check:
        plan.train(cell, on_ray and partial(on_ray, poll=lambda: (poll(), check())))


class CellLog:
    """Cells as they run: for each a log line, and an MLflow run below that of the study.

    Attributes:
        failures: by title of the cell.
    """

    def __init__(self, params: Params, plan: Plan, parent: Run, experiment: str) -> None:
        self._params, self._plan, self._parent, self._experiment = params, plan, parent, experiment
        self._runs: dict[str, Run] = {}
        self.failures: dict[str, str] = {}

    def start(self, key: str) -> None:
        """A cell begins, or begins again after its workers were lost."""
        if key in self._runs:
            return
        cell = self._plan.distinct[key]
        recipe = self._plan.resolved(cell).job.recipe
        settings = {"recipe": recipe.model_dump(mode="json"), "seed": cell.job.seed, "fold": cell.fold}
        tags = {"fer.kind": "cell", "row": cell.row, "dataset": cell.dataset, "model": recipe.last.model}
        self._runs[key] = opened = open_run(
            self._params.tracking, self._params.home, checkout=self._params.root, experiment=self._experiment,
            run_name=cell.title, key=key, params=settings, tags=tags, parent=self._parent,
        )  # fmt: skip
        log_data(opened, cell.dataset, ShardSet.open(Path(cell.job.shards)), "train", "validation", "test")

    def end(self, key: str, outcome: Callable[[], object]) -> None:
        """A cell has ended; `outcome` raises what went wrong."""
        cell, reason = self._plan.distinct[key], ""
        try:
            outcome()
        except (ValueError, RuntimeError, OSError, MemoryError) as error:  # as out of memory on the GPU
            reason = (str(error) or type(error).__name__).splitlines()[0]
        run, result = self._runs.pop(key), self._plan.result(cell)
        if result is None:
            self.failures[cell.title] = reason
            log.warning("%s: %s", cell.title, reason)
            run.finish("FAILED")
            self._record_totals()
            return
        self._finish(run, cell, result)
        self._record_totals()
        log.info(
            "%s: validation %.4f, test %.4f, epoch %d, %.0f s",
            cell.title,
            *(result.get(name, math.nan) for name in ("val_accuracy", "test_accuracy", "best_epoch", "seconds")),
        )

    def catch_up(self) -> None:
        """Records the cells that were done before, and that no driver lived to record."""
        for key, cell in self._plan.distinct.items():
            result = self._plan.result(cell)
            if result is not None and not (self._plan.place(cell) / _RECORDED).is_file():
                self.start(key)
                self._finish(self._runs.pop(key), cell, result)
                self._record_totals()

    def close(self) -> None:
        """No run is left open, whatever happened."""
        for run in self._runs.values():
            run.finish("KILLED")

    def _record_totals(self) -> None:
        """How far all cells are, in the run of the study."""
        results = [result for cell in self._plan.distinct.values() if (result := self._plan.result(cell))]
        accuracies = [result["val_accuracy"] for result in results if "val_accuracy" in result]
        totals = {"cells": len(results), "failed_cells": len(self.failures)}
        best = {"best_val_accuracy": max(accuracies)} if accuracies else {}
        self._parent.log_metrics(totals | best, step=len(results))

    def _finish(self, run: Run, cell: Cell, result: Mapping[str, Any]) -> None:
        about = ("seed", "fold")
        run.log_metrics({k: float(v) for k, v in result.items() if isinstance(v, int | float) and k not in about})
        run.finish("FINISHED")
        if run.active:
            write_json(self._plan.place(cell) / _RECORDED, {"run_id": run.run_id})
