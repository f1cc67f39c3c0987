"""`fer study NAME`: the trainings of a published table, and their result beside what was printed.

    .work/study-<name>-<digest>/plan.json which cells it is made of
    .work/study-<name>-<digest>/<cell>/   what a stopped study goes on from; a finished cell's result and answers stay
    studies/<name>/results.json           every cell, and what was made of them; written last
    studies/<name>/table.md, *.svg        the table, and the figures of studies that have some

A cell is a row under one seed and, in a cross-validation, one fold. Its epoch is chosen as its recipe says, on
validation unless it says otherwise; then the test split is opened, once a cell.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from fer import params as parameters
from fer.config import ConfigError, parse
from fer.console import log
from fer.evaluation.figures import save
from fer.io import yaml12
from fer.io.files import write_atomic, write_json
from fer.names import check_name
from fer.params import Params
from fer.processes import lock, set_environment
from fer.stages import add_resume_options, remove_progress
from fer.studies import Study, StudyOptions, Tta, list_studies, load_study
from fer.studies.cell import Cell, Plan, row_recipe, train_cell
from fer.studies.results import read
from fer.training.recipe import CrossValidation

_OPTIONS = ("smoke", "dataset", "recipe", "seeds", "folds", "rows", "tta", "workers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which table, on what."""
    parser.add_argument("name", nargs="?", help="a study, or the path of a .yaml file of your own; none lists them")
    parser.add_argument("--smoke", action="store_true", help="small models on the synthetic faces, minutes")
    parser.add_argument("--dataset", metavar="NAME", help=f"a key of `datasets` in {parameters.FILE_NAME}")
    parser.add_argument("--recipe", metavar="FILE/SECTION", help="in place of the study's recipe")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="each row is trained once a seed (0)")
    parser.add_argument("--folds", type=int, metavar="K", help="cross-validation over K folds")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these rows of the table")
    parser.add_argument("--set", nargs="+", metavar="KEY=VALUE", default=[], help="recipe keys for all rows")
    parser.add_argument("--tta", choices=get_args(Tta), help="a second figure, with test-time augmentation")
    parser.add_argument("--workers", type=int, metavar="N", help="trainings at once; 0: in this process, without Ray")
    add_resume_options(parser)


def main(args: argparse.Namespace) -> None:
    """Lists the studies, or runs or goes on with one."""
    if args.name is None:
        for name in list_studies():
            study = load_study(name, Path())
            print(f"{name:<24}{study.source}: {study.title}")
        return
    given = {name: getattr(args, name) for name in _OPTIONS}
    changes = {name: value for name, value in given.items() if value is not None}
    options = parse(StudyOptions, changes | {"set": _assignments(args.set)}, "fer study")
    run_study(parameters.load(), args.name, options, accept_versions=args.accept_versions, restart=args.restart)


def run_study(
    params: Params, name: str, options: StudyOptions, *, accept_versions: bool = False, restart: bool = False
) -> Path:
    """Runs a study, or resumes it.

    Args:
        accept_versions, restart: as in `fer.stages.train.run_training`.

    Returns:
        the folder with results.json and table.md.

    Raises:
        ValueError: a mistake in the study or the options, shards that cannot be used, or cells that failed.
    """
    study = load_study(name, params.root)
    if options.tta is not None:
        study = study.model_copy(update={"tta": options.tta})
    plan = replace(make_plan(params, name, study, options), accept_versions=accept_versions)
    stem = check_name(Path(name).stem, "fer study")
    final = params.root / "studies" / (stem + ("-smoke" if options.smoke else ""))
    work = Path(plan.folder)
    with lock(work / "lock"):
        if restart:
            remove_progress(work)
        plan.write()
        alone = {cell.key: cell for cell in plan.cells}.values()  # rows that are alike share a training
        waiting = [cell for cell in alone if plan.result(cell) is None]
        log.info("%s: %d trainings, %d of them done before", name, len(alone), len(alone) - len(waiting))
        if failures := _run(params, plan, waiting, options.workers) if waiting else {}:
            reasons = "\n".join(f"  {key}: {reason}" for key, reason in failures.items())
            raise ValueError(f"{name}: {len(failures)} of {len(alone)} trainings failed:\n{reasons}")
        results = [result for cell in plan.cells if (result := plan.result(cell)) is not None]
        report = read(study, options, plan, results)
        _record(params, plan, study, results)
        final.mkdir(parents=True, exist_ok=True)
        write_atomic(final / "table.md", report.markdown)
        for figure, drawn in report.figures.items():
            save(drawn, final / f"{figure}.svg")
        write_json(
            final / "results.json",
            {
                "study": study.model_dump(mode="json"),
                "options": options.model_dump(mode="json"),
                **report.content,
                "cells": results,
            },
        )
        for cell in plan.cells:
            for state in (work / cell.key).glob("state-*.pt"):
                state.unlink()
    print(report.markdown)
    log.info("-> %s", final.relative_to(params.root))
    return final


# ------------------------------------------------------------------------------------------------ what is trained


def make_plan(params: Params, name: str, study: Study, options: StudyOptions) -> Plan:
    """The cells of a study.

    Raises:
        ValueError: a row that does not exist, a key that no recipe has, shards that cannot be used.
    """
    from fer.shards.read import ShardSet
    from fer.stages.closure import code
    from fer.training.job import TrainJob
    from fer.weights.parts import locate

    folds, cells = options.folds or study.folds, []
    for row in options.chosen(study):
        dataset = options.dataset_of(study, row)
        params.dataset(dataset)
        shards = ShardSet.open((params.root / "data" / "shards" / dataset).resolve())
        recipe = row_recipe(study, row, options, params.root)
        pretrained = locate(recipe.pretrained, params.root, params.parent)
        for seed in options.seeds:
            for fold in range(folds) if folds else [None]:
                own = recipe
                if folds and fold is not None:
                    held = CrossValidation(folds=folds, fold=fold)
                    own = recipe.model_copy(update={"cross_validation": held})
                job = TrainJob.create(
                    shards,
                    own,
                    seed=seed,
                    code=code().digest("study", recipes=[own]),
                    config=params.train,
                    work=params.home / ".work",
                    pretrained=pretrained,
                    more={"tta": study.tta, "threads": params.train.threads},
                )
                cells.append(
                    Cell(
                        row=row.row,
                        key=job.fingerprint[:20],
                        dataset=dataset,
                        shards=str(shards.folder),
                        labels=tuple(shards.labels),
                        recipe=own,
                        seed=seed,
                        fold=fold,
                        pretrained=pretrained,
                    )
                )
    cells.sort(key=lambda cell: options.seeds.index(cell.seed))  # a study that is stopped has whole comparisons
    # Of all rows, so that a choice of rows and the whole table share their trainings.
    datasets = " ".join(dict.fromkeys(options.dataset_of(study, row) for row in study.rows))
    label = hashlib.sha256(f"{name} {datasets}".encode()).hexdigest()[:8]
    return Plan(
        name=name,
        kind=study.kind,
        tta=study.tta,
        folder=str((params.home / ".work" / f"study-{Path(name).stem}-{label}").resolve()),
        threads=params.train.threads,
        gpu=params.train.gpu,
        checkpoint_every_steps=params.train.checkpoint_every_steps,
        cells=tuple(cells),
    )


def _assignments(texts: Sequence[str]) -> dict[str, Any]:
    pairs = [text.partition("=") for text in texts]
    if wrong := [key for key, sign, _ in pairs if not sign]:
        raise ConfigError(f"fer study --set {wrong[0]}: expected KEY=VALUE")
    try:
        return {key: yaml12.load(os.fsencode(value)) for key, _, value in pairs}
    except yaml12.YamlError as error:
        raise ConfigError(f"fer study --set: {error}") from None


# ------------------------------------------------------------------------------------------------ where it runs


def _run(params: Params, plan: Plan, cells: Sequence[Cell], workers: int | None) -> dict[str, str]:
    """Trains the cells; what went wrong with each that failed."""
    if workers == 0:
        failures = {}
        for cell in cells:
            try:
                train_cell(plan, cell)
            except ValueError as error:
                failures[cell.title] = str(error).splitlines()[0]
            else:
                _tell(plan, cell)
        return failures
    from fer.stages.tune import TUNE_ENVIRONMENT

    for name, value in TUNE_ENVIRONMENT.items():
        set_environment(name, value)
    return _run_on_ray(params, plan, cells, workers)


def _run_on_ray(params: Params, plan: Plan, cells: Sequence[Cell], workers: int | None) -> dict[str, str]:
    """The cells as a grid of Ray Tune's: on whatever cluster there is, as many at once as it holds."""
    from fer.cluster.session import connect, require

    with connect(params.cluster, dashboard=True) as found:
        from ray import tune

        from fer.cluster.search import fit, reason

        require(workers=1, cpus=plan.threads, gpus=int(plan.gpu))
        room = found.gpus if plan.gpu else found.cpus // plan.threads
        storage = Path(plan.folder, "ray")
        shutil.rmtree(storage, ignore_errors=True)
        failures: dict[str, str] = {}
        by_key = {cell.key: cell for cell in cells}

        class Listener(tune.Callback):  # type: ignore[misc]
            """Tells of each cell that ends; runs in the driver."""

            def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
                _tell(plan, by_key[trial.config["cell"]])

            def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
                cell = by_key[trial.config["cell"]]
                failures[cell.title] = reason(trial)
                log.warning("%s: %s", cell.title, failures[cell.title])

        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_trial, plan=plan), {"CPU": plan.threads, **({"GPU": 1} if plan.gpu else {})}
            ),
            param_space={"cell": tune.grid_search([cell.key for cell in cells])},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=max(1, min(workers or room, room, len(cells))),
                trial_dirname_creator=lambda trial: trial.config["cell"],
            ),
            run_config=tune.RunConfig(
                name=f"study-{time.time_ns()}",
                storage_path=str(storage),
                verbose=0,
                callbacks=[Listener()],
                failure_config=tune.FailureConfig(max_failures=1),
            ),
        )
        fit(tuner, threading.Event())
    shutil.rmtree(storage, ignore_errors=True)
    return failures


def _trial(config: Mapping[str, Any], plan: Plan) -> None:
    """One cell, in a Ray actor."""
    from ray import tune

    from fer import processes

    processes.quiet_libraries()
    (cell,) = (cell for cell in plan.cells if cell.key == config["cell"])
    train_cell(plan, cell)
    tune.report({"done": 1})


def _tell(plan: Plan, cell: Cell) -> None:
    if found := plan.result(cell):
        log.info(
            "%s: validation %.4f, test %.4f, epoch %d, %.0f s",
            cell.title,
            found["val_accuracy"],
            found["test_accuracy"],
            found["best_epoch"],
            found["seconds"],
        )


def _record(params: Params, plan: Plan, study: Study, results: Sequence[Mapping[str, Any]]) -> None:
    """Each cell as an MLflow run, below one of the study."""
    from fer.tracking import open_run

    experiment = f"study {Path(plan.name).stem}"
    whole = hashlib.sha256("".join(cell.key for cell in plan.cells).encode()).hexdigest()
    with open_run(
        params.tracking, params.home, checkout=params.root,
        experiment=experiment, run_name=study.title, key=whole,
        params={"source": study.source}, tags={"fer.kind": "study"},
    ) as parent:  # fmt: skip
        if not parent.active:
            return
        for cell, result in zip(plan.cells, results, strict=True):
            with open_run(
                params.tracking, params.home, checkout=params.root,
                experiment=experiment, run_name=cell.title, key=cell.key,
                params={"recipe": cell.recipe.model_dump(mode="json"), "seed": cell.seed, "fold": cell.fold},
                tags={"fer.kind": "cell", "row": cell.row, "model": cell.recipe.last.model}, parent=parent,
            ) as run:  # fmt: skip
                numbers = {k: v for k, v in result.items() if isinstance(v, int | float) and k not in ("seed", "fold")}
                run.log_metrics({key: float(value) for key, value in numbers.items()})
