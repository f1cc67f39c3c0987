"""`fer tune`: searches the hyper-parameters of a model on a dataset, and writes the best recipe to be used.

    .work/tune-<fingerprint>/        what a stopped search goes on from; each trial's history stays, its weights go
    tuned/<dataset>/<model>.json     evidence: every trial, the seed, the budget, the data
    tuned/<dataset>/<model>.yaml     the best recipe, complete; written last

Only the validation split decides. The recipe's own values are the first trial.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer import params as parameters
from fer.cluster.config import TuneConfig, check_space
from fer.config import parse
from fer.console import log
from fer.io import yaml12
from fer.io.files import FileError, read_json, sha256, write_atomic, write_json
from fer.io.yaml12 import brief
from fer.params import Params
from fer.processes import lock, set_environment
from fer.stages import add_resume_options, remove_progress

if TYPE_CHECKING:
    from fer.cluster.trials import Trial, TrialLog, TrialPlan
    from fer.tracking import Run

TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our own record is the only one
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one draws boxes even when told to be silent
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else a search that is being stopped starts a second cluster
    "TUNE_DISABLE_AUTO_INIT": "1",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to search; the rest stands in section `tune` of params.yaml."""
    parser.add_argument(
        "--dataset", required=True, metavar="NAME", help=f"a key of `datasets` in {parameters.FILE_NAME}"
    )
    parser.add_argument("--model", required=True, metavar="NAME", help=f"a key of `models` in {parameters.FILE_NAME}")
    parser.add_argument(
        "--trials", type=int, metavar="N", help="instead of tune.trials; more than last time adds to it"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="instead of tune.epochs")
    parser.add_argument("--max-concurrent", type=int, metavar="N", help="instead of tune.max_concurrent")
    parser.add_argument("--time-budget", type=float, metavar="MINUTES", help="instead of tune.time_budget_minutes")
    add_resume_options(parser)


def main(args: argparse.Namespace) -> None:
    """Runs or goes on with the search."""
    loaded = parameters.load()
    given = {
        "trials": args.trials,
        "epochs": args.epochs,
        "max_concurrent": args.max_concurrent,
        "time_budget_minutes": args.time_budget,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    config = parse(TuneConfig, loaded.tune.model_dump() | changes, "fer tune", "tune")
    search(loaded, args.dataset, args.model, config, accept_versions=args.accept_versions, restart=args.restart)


def search(
    params: Params,
    dataset: str,
    model_key: str,
    config: TuneConfig | None = None,
    *,
    accept_versions: bool = False,
    restart: bool = False,
) -> Path:
    """Runs a search, or goes on with it, and writes `tuned/<dataset>/<model_key>.yaml`.

    Args:
        config: None takes `params.tune`.
        accept_versions, restart: as in `fer.stages.train.run_training`.

    Returns:
        The written recipe.

    Raises:
        ValueError: a mistake in params, shards that cannot be used, resources that do not exist, another process at the
            same search, or no trial that ended with a result.
    """
    from fer.shards.read import ShardSet
    from fer.tracking import open_run

    config = config or params.tune
    where = str(params.root / parameters.FILE_NAME)
    params.dataset(dataset)
    recipe = params.recipe(model_key)
    check_space(recipe, config, where)
    shards = ShardSet.open((params.root / "data" / "shards" / dataset).resolve())
    plan = replace(_plan(params, config, model_key, dataset, shards), accept_versions=accept_versions)
    done = Path(plan.folder, "done.json")
    written = params.root / "tuned" / dataset / f"{model_key}.yaml"
    refuse_edited(written)
    with lock(Path(plan.folder, "lock")):
        if restart:
            remove_progress(Path(plan.folder))
        if _is_done(done, written, config):
            log.info(
                "this search has ended before; change tune, seed or data for another, or ask for more with --trials"
            )
            _print_next_step(params, dataset, model_key, written)
            return written
        with open_run(
            params.tracking,
            params.home,
            checkout=params.root,
            experiment=dataset,
            run_name=f"tune {model_key}",
            key=plan.fingerprint,
            params={
                "tune": config.model_dump(mode="json"),
                "recipe": recipe.model_dump(mode="json"),
                "seed": params.seed,
            },
            tags={"fer.kind": "search", "dataset": dataset, "model": recipe.model, "data_digest": shards.digest},
        ) as parent:
            record = _record(params, plan, parent, dataset, model_key)
            _run(params, plan, config, record)
            best = record.best()
            if best is None:
                reasons = "; ".join(f"trial {one.number}: {one.reason or one.status}" for one in record.trials.values())
                raise ValueError(f"no trial ended with a result, nothing is written ({reasons or 'none began'})")
            _write(written, params, plan, config, record, best, shards.digest)
            _log_outcome(parent, record, best, written)
        write_json(done, {"trials": len(record.trials), "written_sha256": sha256(written)})
        for state in Path(plan.folder).glob("*/state-*.pt"):
            state.unlink()
        shutil.rmtree(Path(plan.folder, "ray"), ignore_errors=True)
    log.info("%s", table(record, plan.metric))
    _print_next_step(params, dataset, model_key, written)
    return written


def table(record: TrialLog, metric: str) -> str:
    """The trials as text, the best one marked."""
    best = record.best()
    names = sorted({name for trial in record.trials.values() for name in trial.values})
    rows = [["", "trial", *names, metric, "at epoch", "epochs", "seconds", "state"]]
    for trial in sorted(record.trials.values(), key=lambda one: one.number):
        values = [_short(trial.values.get(name)) for name in names]
        score = f"{trial.best:.4f}" if trial.best is not None else "-"
        numbers = [score, str(trial.best_epoch or "-"), str(trial.epochs), f"{trial.seconds:.1f}"]
        rows.append(["*" if trial is best else "", str(trial.number), *values, *numbers, trial.status])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _plan(params: Params, config: TuneConfig, model_key: str, dataset: str, shards: Any) -> TrialPlan:
    from fer.cluster.trials import TrialPlan
    from fer.stages.closure import code
    from fer.training.job import TrainJob
    from fer.weights.parts import locate

    recipe = params.recipe(model_key)
    # What says how much is tried, not what a trial is, stays out: a longer search goes on from a shorter one.
    what = config.model_dump(mode="json", exclude={"trials", "max_concurrent", "time_budget_minutes"})
    pretrained = locate(recipe.pretrained, params.root, params.parent)
    job = TrainJob.create(
        shards,
        recipe,
        seed=params.seed,
        code=code().digest("tune", recipes=[recipe]),
        config=params.train,
        work=params.home / ".work",
        pretrained=pretrained,
        more={"tune": what, "threads": params.train.threads},
    )
    return TrialPlan(
        folder=str((params.home / ".work" / f"tune-{job.fingerprint[:16]}").resolve()),
        shards=str((params.root / "data" / "shards" / dataset).resolve()),
        recipe=recipe,
        labels=tuple(shards.labels),
        seed=params.seed,
        threads=params.train.threads,
        gpu=params.train.gpu,
        epochs=config.epochs,
        metric=config.metric,
        checkpoint_every_steps=params.train.checkpoint_every_steps,
        fingerprint=job.fingerprint,
        pretrained=pretrained,
        command=f"fer tune --dataset {dataset} --model {model_key}",
    )


def _record(params: Params, plan: TrialPlan, parent: Run, dataset: str, model_key: str) -> TrialLog:
    from fer.cluster.trials import TrialLog
    from fer.tracking import open_run

    def open_trial_run(trial: Trial, run_id: str | None) -> Run:
        return open_run(
            params.tracking,
            params.home,
            checkout=params.root,
            experiment=dataset,
            run_name=f"{model_key} trial {trial.number}",
            key=trial.key,
            params={"trial": trial.values},
            tags={"fer.kind": "trial", "trial": trial.number, "dataset": dataset, "model": plan.recipe.model},
            parent=parent,
            run_id=run_id,
        )

    return TrialLog(plan, open_trial_run, parent)


def _run(params: Params, plan: TrialPlan, config: TuneConfig, record: TrialLog) -> None:
    for name, value in TUNE_ENVIRONMENT.items():
        set_environment(name, value)
    from fer.cluster.search import run_trials  # reads some of these variables when it is imported

    try:
        run_trials(plan, config, params.cluster, record, threading.Event())
    except BaseException:
        record.close(interrupted=True)
        raise
    record.close(interrupted=False)


_DIGEST = "# SHA-256 of what follows: "


def refuse_edited(written: Path) -> None:
    """FileError where a recipe is there that is not as a search wrote it, and would be replaced."""
    if not written.exists():
        return
    head, line, rest = written.read_text(encoding="utf-8").partition(_DIGEST)
    digest, _, body = rest.partition("\n")
    ours = hashlib.sha256(body.encode()).hexdigest() == digest if line else head.startswith("# Written by `fer tune`")
    if not ours:
        raise FileError(f"{written}: was edited since a search wrote it, and would be replaced; rename it")


def _is_done(done: Path, written: Path, config: TuneConfig) -> bool:
    if not done.is_file() or not written.is_file():
        return False
    content = read_json(done)
    return bool(content["trials"] >= config.trials and content["written_sha256"] == sha256(written))


def _write(
    written: Path, params: Params, plan: TrialPlan, config: TuneConfig, record: TrialLog, best: Trial, data_digest: str
) -> None:
    """The evidence first, the recipe last; the same search writes the same recipe, byte by byte."""
    from fer.training.recipe import Recipe, vary

    recipe = vary(plan.recipe, best.values, "tune.space")
    first = record.trials.get(1)
    lines = [
        f"Written by `fer tune` for {written.parent.name}; every trial stands in {written.stem}.json.",
        f"{plan.metric} {best.best:.4f} on the validation split, trial {best.number} of {len(record.trials)}, epoch "
        f"{best.best_epoch} of {plan.epochs}.",
        *([f"The first trial reached {first.best:.4f}."] if first is not None and first.best is not None else []),
        f"Chosen: {', '.join(f'{name} {_short(value)}' for name, value in sorted(best.values.items()))}.",
        f"Seed {params.seed}, data {data_digest[:16]}.",
    ]
    body = yaml12.dump(recipe.model_dump(mode="json"))
    head = "".join(f"# {line}\n" for line in lines)
    text = f"{head}{_DIGEST}{hashlib.sha256(body.encode()).hexdigest()}\n{body}"
    parse(Recipe, yaml12.load(text.encode()), str(written))
    evidence = {
        "best_trial": best.number,
        "metric": plan.metric,
        "seed": params.seed,
        "data_digest": data_digest,
        "fingerprint": plan.fingerprint,
        "budget": config.model_dump(mode="json"),
        "trials": [asdict(trial) for _, trial in sorted(record.trials.items())],
    }
    write_json(written.with_suffix(".json"), evidence)
    write_atomic(written, text)


def _log_outcome(parent: Run, record: TrialLog, best: Trial, written: Path) -> None:
    trials = [trial for _, trial in sorted(record.trials.items())]
    columns = ("number", "status", "epochs", "best", "best_epoch", "seconds")
    shown: dict[str, Any] = {name: [getattr(trial, name) for trial in trials] for name in columns}
    shown |= {name: [trial.values.get(name) for trial in trials] for name in sorted(best.values)}
    parent.log_table(shown, "trials.json")
    parent.set_tags({"best_trial": best.number, **{f"best.{name}": value for name, value in best.values.items()}})
    for path in (written, written.with_suffix(".json")):
        parent.log_artifact(path, "tuned")


def _print_next_step(params: Params, dataset: str, model_key: str, written: Path) -> None:
    line = f"recipe: {written.relative_to(params.root).as_posix()}#{sha256(written)[:8]}"
    log.info(
        "next: use it, in %s under models.%s, in place of what stands there:\n    %s",
        parameters.FILE_NAME,
        model_key,
        line,
    )
    log.info("then: dvc repro train@%s-%s", dataset, model_key)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else brief(str(value))
