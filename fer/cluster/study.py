"""`fer study NAME`: the trainings of a published table, and their result beside what was printed.

    .work/study-<name>-<digest>/<cell>/   what a stopped study goes on from; each finished cell's result.json stays
    studies/<name>/results.json           every cell, and each row's mean, spread and interval; written last
    studies/<name>/table.md               the table

A cell is a row under one seed and, in a cross-validation, one fold. Its epoch is chosen as its recipe says, on
validation unless it says otherwise; then the test split is opened, once a cell.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from fer import params as parameters
from fer.config import Config, ConfigError, parse
from fer.console import log
from fer.evaluation.aggregate import Spread, spread
from fer.files import read_json, write_atomic, write_json
from fer.params import Params
from fer.processes import lock, set_environment
from fer.studies import Row, Study, list_studies, load_study
from fer.training.recipe import CrossValidation, Recipe, load_recipe
from fer.weights.parts import PartSource

_RESULT = "result.json"


class StudyOptions(Config):
    """What a person may say to `fer study`; None leaves it to the study."""

    smoke: bool = False
    dataset: str | None = None
    recipe: str | None = None
    seeds: tuple[int, ...] = (0,)
    folds: int | None = None
    rows: tuple[str, ...] | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    workers: int | None = None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training of a study; picklable.

    Attributes:
        row: of the table. key: identity of the training; names its folder.
        recipe, seed, pretrained: as in a training.
    """

    row: str
    key: str
    recipe: Recipe
    seed: int
    fold: int | None
    pretrained: tuple[PartSource, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a worker must know; picklable, paths absolute."""

    name: str
    folder: str
    shards: str
    labels: tuple[str, ...]
    threads: int
    gpu: bool
    checkpoint_every_steps: int
    cells: tuple[Cell, ...]


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
    parser.add_argument("--workers", type=int, metavar="N", help="trainings at once; 0: in this process, without Ray")


def main(args: argparse.Namespace) -> None:
    """Lists the studies, or runs or goes on with one."""
    if args.name is None:
        for name in list_studies():
            study = load_study(name, Path())
            print(f"{name:<24}{study.source}: {study.title}")
        return
    given = {name: getattr(args, name) for name in ("smoke", "dataset", "recipe", "seeds", "folds", "rows", "workers")}
    changes = {name: value for name, value in given.items() if value is not None}
    options = parse(StudyOptions, changes | {"set": _assignments(args.set)}, "fer study")
    run_study(parameters.load(), args.name, options)


def run_study(params: Params, name: str, options: StudyOptions) -> Path:
    """Runs a study, or goes on with it.

    Returns:
        the folder with results.json and table.md.

    Raises:
        ValueError: a mistake in the study or the options, shards that cannot be used, or cells that failed.
    """
    study = load_study(name, params.root)
    plan = make_plan(params, name, study, options)
    final = params.root / "studies" / (Path(name).stem + ("-smoke" if options.smoke else ""))
    work = Path(plan.folder)
    with lock(work / "lock"):
        waiting = [cell for cell in plan.cells if not (work / cell.key / _RESULT).is_file()]
        log.info("%s: %d trainings, %d of them done before", name, len(plan.cells), len(plan.cells) - len(waiting))
        failures = _run(params, plan, waiting, options.workers) if waiting else {}
        results = [_result(plan, cell) for cell in plan.cells]
        table = summarise(study, options, [result for result in results if result])
        if failures:
            reasons = "\n".join(f"  {key}: {reason}" for key, reason in failures.items())
            raise ValueError(f"{name}: {len(failures)} of {len(plan.cells)} trainings failed:\n{reasons}")
        _record(params, plan, study, results)
        final.mkdir(parents=True, exist_ok=True)
        write_atomic(final / "table.md", markdown(study, options, table))
        write_json(
            final / "results.json",
            {
                "study": study.model_dump(mode="json"),
                "options": options.model_dump(mode="json"),
                "rows": [row | {name: asdict(row[name]) for name in ("test", "validation")} for row in table],
                "cells": results,
            },
        )
        for cell in plan.cells:
            for state in (work / cell.key).glob("state-*.pt"):
                state.unlink()
    print(markdown(study, options, table))
    log.info("-> %s", final.relative_to(params.root))
    return final


# ------------------------------------------------------------------------------------------------ what is trained


def make_plan(params: Params, name: str, study: Study, options: StudyOptions) -> Plan:
    """The cells of a study.

    Raises:
        ValueError: a row that does not exist, a key that no recipe has, shards that cannot be used.
    """
    from fer.cluster.train import code_digest
    from fer.shards.read import ShardSet
    from fer.weights.parts import locate

    dataset = options.dataset or (study.smoke.dataset if options.smoke else study.dataset)
    params.dataset(dataset)
    shards = ShardSet.open((params.root / "data" / "shards" / dataset).resolve())
    code, folds = code_digest(), options.folds or study.folds
    cells = []
    for row in _chosen(study, options):
        recipe = row_recipe(study, row, options, params.root)
        pretrained = locate(recipe.pretrained, params.root)
        for seed in options.seeds:
            for fold in range(folds) if folds else [None]:
                own = recipe
                if folds and fold is not None:
                    held = CrossValidation(folds=folds, fold=fold)
                    own = recipe.model_copy(update={"cross_validation": held})
                what = [shards.digest, own.model_dump(mode="json"), [one.digest for one in pretrained], seed, code]
                digest = hashlib.sha256(json.dumps([*what, params.train.threads], sort_keys=True).encode()).hexdigest()
                cells.append(
                    Cell(row=row.row, key=digest[:20], recipe=own, seed=seed, fold=fold, pretrained=pretrained)
                )
    label = hashlib.sha256(f"{name} {dataset}".encode()).hexdigest()[:8]
    return Plan(
        name=name,
        folder=str((params.root / ".work" / f"study-{Path(name).stem}-{label}").resolve()),
        shards=str(shards.folder),
        labels=tuple(shards.labels),
        threads=params.train.threads,
        gpu=params.train.gpu,
        checkpoint_every_steps=params.train.checkpoint_every_steps,
        cells=tuple(cells),
    )


def row_recipe(study: Study, row: Row, options: StudyOptions, root: Path) -> Recipe:
    """The complete recipe of a row."""
    from fer.cluster.trials import vary

    where = f"study row {row.row!r}"
    base = options.recipe or (study.smoke.recipe if options.smoke else study.recipe)
    recipe = load_recipe({"recipe": base}, root, where)
    values = {**study.set, **row.set, **(study.smoke.set | row.smoke if options.smoke else {}), **options.set}
    if "model" in values and "options" not in values:
        values = {"options": {}, **values}  # options are a model's own
    return vary(recipe, values, where)


def _chosen(study: Study, options: StudyOptions) -> list[Row]:
    if options.rows is None:
        return study.rows
    names = [row.row for row in study.rows]
    if unknown := [name for name in options.rows if name not in names]:
        raise ConfigError(f"fer study --rows: no row {unknown[0]!r}; the rows: {', '.join(names)}")
    return [row for row in study.rows if row.row in options.rows]


def _assignments(texts: Sequence[str]) -> dict[str, Any]:
    import yaml

    pairs = [text.partition("=") for text in texts]
    if wrong := [key for key, sign, _ in pairs if not sign]:
        raise ConfigError(f"fer study --set {wrong[0]}: expected KEY=VALUE")
    return {key: yaml.safe_load(value) for key, _, value in pairs}


# ------------------------------------------------------------------------------------------------ where it runs


def _run(params: Params, plan: Plan, cells: Sequence[Cell], workers: int | None) -> dict[str, str]:
    """Trains the cells; what went wrong with each that failed."""
    if workers == 0:
        failures = {}
        for cell in cells:
            try:
                train_cell(plan, cell)
            except ValueError as error:
                failures[_title(cell)] = str(error).splitlines()[0]
            else:
                _tell(plan, cell)
        return failures
    from fer.cluster.tune import TUNE_ENVIRONMENT

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
                failures[_title(cell)] = reason(trial)
                log.warning("%s: %s", _title(cell), failures[_title(cell)])

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


def train_cell(plan: Plan, cell: Cell) -> None:
    """Trains a cell, or goes on with it, opens the test split, and writes its result.json."""
    import torch

    from fer.training.data import open_data
    from fer.training.loop import TrainJob, build_model, train, validate
    from fer.training.peers import Peers

    work = Path(plan.folder, cell.key)
    work.mkdir(parents=True, exist_ok=True)
    job = TrainJob(
        shards=plan.shards,
        work_dir=str(work),
        recipe=cell.recipe,
        labels=plan.labels,
        seed=cell.seed,
        threads=plan.threads,
        checkpoint_every_steps=plan.checkpoint_every_steps,
        fingerprint=cell.key,
        pretrained=cell.pretrained,
    )
    device = "cuda:0" if plan.gpu else "cpu"
    state = train(job, device=device)
    model = build_model(job)
    model.load_state_dict(state.best_model)
    recipe = cell.recipe.last
    data = open_data(plan.shards, recipe, model, seed=cell.seed, peers=Peers(), threads=plan.threads, test=True)
    assert data.test is not None
    try:
        tested = validate(model.to(device), data.test, recipe, Peers(), device, "test")
    finally:
        data.close()
    best = state.history[state.best_epoch - 1]
    write_json(
        work / _RESULT,
        {
            "row": cell.row,
            "seed": cell.seed,
            "fold": cell.fold,
            "key": cell.key,
            "best_epoch": state.best_epoch,
            "epochs": state.epoch,
            **{name: value for name, value in best.items() if name.startswith(("train_", "val_"))},
            **tested,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "seconds": round(sum(timing["seconds"] for timing in state.timings), 1),
            "peak_memory_mb": round(torch.cuda.max_memory_allocated() / 1e6) if plan.gpu else None,
        },
    )


def _tell(plan: Plan, cell: Cell) -> None:
    if found := _result(plan, cell):
        log.info(
            "%s: validation %.4f, test %.4f, epoch %d, %.0f s",
            _title(cell),
            found["val_accuracy"],
            found["test_accuracy"],
            found["best_epoch"],
            found["seconds"],
        )


def _title(cell: Cell) -> str:
    return f"{cell.row}, seed {cell.seed}" + ("" if cell.fold is None else f", fold {cell.fold}")


def _result(plan: Plan, cell: Cell) -> dict[str, Any] | None:
    path = Path(plan.folder, cell.key, _RESULT)
    return dict(read_json(path)) if path.is_file() else None


# ------------------------------------------------------------------------------------------------ the table


def summarise(study: Study, options: StudyOptions, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line for each row with results: spreads over its cells, their difference to the baseline's pair by pair."""
    by_row = {row.row: [one for one in results if one["row"] == row.row] for row in _chosen(study, options)}
    base = {(one["seed"], one["fold"]): one["test_accuracy"] for one in by_row.get(study.baseline or "", [])}
    lines = []
    for row in _chosen(study, options):
        if not (cells := by_row[row.row]):
            continue
        pairs = [one["test_accuracy"] - base[one["seed"], one["fold"]] for one in cells if base]
        lines.append(
            {
                "row": row.row,
                "published": row.published,
                "test": spread([one["test_accuracy"] for one in cells]),
                "validation": spread([one["val_accuracy"] for one in cells]),
                "difference": asdict(spread(pairs)) if pairs and row.row != study.baseline else None,
                "parameters": cells[0]["parameters"],
                "seconds": sum(one["seconds"] for one in cells),
            }
        )
    return lines


def markdown(study: Study, options: StudyOptions, table: Sequence[Mapping[str, Any]]) -> str:
    """The table for people."""
    lines = [f"# {study.title}", "", f"{study.source}."]
    if options.smoke:
        lines += ["", "**Smoke run: small models on synthetic faces. It shows that every row runs, and nothing else.**"]
    lines += [*(["", study.note] if study.note else []), ""]
    lines += [
        "| row | test accuracy, % | 95 % interval of the mean | n | validation, % | against the baseline, points | "
        "parameters | published, % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in table:
        test, validation, against = line["test"], line["validation"], line["difference"]
        cells = [
            line["row"],
            _mean(test),
            f"{100 * test.low:.2f} to {100 * test.high:.2f}" if test.low is not None else "-",
            str(test.count),
            _mean(validation),
            _against(against),
            f"{line['parameters']:,}",
            f"{line['published']:g}" if line["published"] is not None else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean(value: Spread) -> str:
    return f"{100 * value.mean:.2f}" + (f" ± {100 * value.std:.2f}" if value.std is not None else "")


def _against(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    interval = "" if value["low"] is None else f" ({100 * value['low']:+.2f} to {100 * value['high']:+.2f})"
    return f"{100 * value['mean']:+.2f}{interval}"


def _record(params: Params, plan: Plan, study: Study, results: Sequence[Mapping[str, Any] | None]) -> None:
    """Each cell as an MLflow run, below one of the study."""
    from fer.tracking import open_run

    experiment = f"study {Path(plan.name).stem}"
    whole = hashlib.sha256("".join(cell.key for cell in plan.cells).encode()).hexdigest()
    with open_run(
        params.tracking, params.root, experiment=experiment, run_name=study.title, key=whole,
        params={"source": study.source}, tags={"fer.kind": "study"},
    ) as parent:  # fmt: skip
        if not parent.active:
            return
        for cell, result in zip(plan.cells, results, strict=True):
            assert result is not None
            with open_run(
                params.tracking, params.root, experiment=experiment, run_name=_title(cell), key=cell.key,
                params={"recipe": cell.recipe.model_dump(mode="json"), "seed": cell.seed, "fold": cell.fold},
                tags={"fer.kind": "cell", "row": cell.row, "model": cell.recipe.last.model}, parent=parent.run_id,
            ) as run:  # fmt: skip
                numbers = {k: v for k, v in result.items() if isinstance(v, int | float) and k not in ("seed", "fold")}
                run.log_metrics({key: float(value) for key, value in numbers.items()})
