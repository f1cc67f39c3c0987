"""`fer tune`: searches the hyperparameters of a model on a dataset, and writes the best recipe.

    .work/tune-<fingerprint>/        what a stopped search resumes from; each trial's history stays, its weights go
    tuned/<dataset>/<model>.json     evidence: every trial, the seed, the budget, the data
    tuned/<dataset>/<model>.yaml     the best recipe, complete; written last

Only the validation split decides. The recipe's own values are the first trial.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
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
from fer.processes import empty_held, lock
from fer.stages import add_resume_options

if TYPE_CHECKING:
    from fer.cluster.trials import Trial, TrialLog, TrialPlan
    from fer.shards.read import ShardSet
    from fer.tracking import Run

_OPTIONS = {
    "trials": "trials",
    "epochs": "epochs",
    "max_concurrent": "max_concurrent",
    "time_budget": "time_budget_minutes",
}
_DIGEST = "# SHA-256 of what follows: "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to search; the rest is in section `tune` of params.yaml."""
    for option, section in (("--dataset", "datasets"), ("--model", "models")):
        parser.add_argument(
            option, required=True, metavar="NAME", help=f"a key of `{section}` in {parameters.FILE_NAME}"
        )
    parser.add_argument(
        "--trials", type=int, metavar="N", help="instead of tune.trials; more than last time extends it"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="instead of tune.epochs")
    parser.add_argument("--max-concurrent", type=int, metavar="N", help="instead of tune.max_concurrent")
    parser.add_argument("--time-budget", type=float, metavar="MINUTES", help="instead of tune.time_budget_minutes")
    add_resume_options(parser)


def main(args: argparse.Namespace) -> None:
    """Runs or resumes the search."""
    loaded = parameters.load()
    changes = {key: value for name, key in _OPTIONS.items() if (value := getattr(args, name)) is not None}
    loaded.recipe(args.model)
    config = parse(TuneConfig, loaded.tune_of(args.model).model_dump() | changes, "fer tune", "tune")
    run(loaded, args.dataset, args.model, config, accept_versions=args.accept_versions, restart=args.restart)


def run(
    params: Params,
    dataset: str,
    model_key: str,
    config: TuneConfig,
    *,
    accept_versions: bool = False,
    restart: bool = False,
) -> Path:
    """Runs a search, or resumes it, and writes `tuned/<dataset>/<model_key>.yaml`.

    Args:
        config: section `tune` as it holds for the model, with the command's options in place of its own.
        accept_versions, restart: as in `fer.stages.train.run`.

    Returns:
        The written recipe.

    Raises:
        ValueError: a mistake in params, shards that cannot be used, resources that do not exist, another process at the
            same search, or no trial that ended with a result.
    """
    from fer.shards.read import ShardSet
    from fer.tracking import open_run

    params.dataset(dataset)
    recipe = params.recipe(model_key)
    check_space(recipe, config, str(params.root / parameters.FILE_NAME))
    shards = ShardSet.open((params.root / "data" / "shards" / dataset).resolve())
    plan = _plan(params, config, dataset, model_key, shards, accept_versions=accept_versions)
    work = Path(plan.job.work_dir)
    done, written = work / "done.json", params.root / "tuned" / dataset / f"{model_key}.yaml"
    refuse_edited(written)
    with lock(work / "lock"):
        if restart:
            empty_held(work)
        if _is_done(done, written, config):
            log.info("this search has ended; change tune, seed or data for another, or extend it with --trials")
            _print_next_step(params, dataset, model_key, written)
            return written
        settings = {name: one.model_dump(mode="json") for name, one in (("tune", config), ("recipe", recipe))}
        tags = {"fer.kind": "search", "dataset": dataset, "model": recipe.model, "data_digest": shards.digest}
        with open_run(
            params.tracking, params.home, checkout=params.root, experiment=dataset, run_name=f"tune {model_key}",
            key=plan.job.fingerprint, params=settings | {"seed": params.seed}, tags=tags,
        ) as parent:  # fmt: skip
            record = _search(params, plan, config, parent, dataset, model_key)
            best = record.best()
            if best is None:
                reasons = "; ".join(f"trial {one.number}: {one.reason or one.status}" for one in record.trials.values())
                raise ValueError(f"no trial ended with a result, nothing is written ({reasons or 'none began'})")
            _write(written, plan, config, record, best, shards.digest)
            _log_outcome(parent, record, best, written)
        write_json(done, {"trials": len(record.trials), "written_sha256": sha256(written)})
        for state in work.glob("*/state-*.pt"):
            state.unlink()
        shutil.rmtree(work / "ray", ignore_errors=True)
    log.info("%s", table(record, plan.metric))
    _print_next_step(params, dataset, model_key, written)
    return written


def table(record: TrialLog, metric: str) -> str:
    """The trials as text, the best one marked."""
    best = record.best()
    names = sorted({name for trial in record.trials.values() for name in trial.values})
    rows = [["", "trial", *names, metric, "at epoch", "epochs", "seconds", "state"]]
    for _, trial in sorted(record.trials.items()):
        values = [_short(trial.values.get(name)) for name in names]
        score = f"{trial.best:.4f}" if trial.best is not None else "-"
        numbers = [score, str(trial.best_epoch or "-"), str(trial.epochs), f"{trial.seconds:.1f}"]
        rows.append(["*" if trial is best else "", str(trial.number), *values, *numbers, trial.status])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _plan(
    params: Params, config: TuneConfig, dataset: str, model_key: str, shards: ShardSet, *, accept_versions: bool
) -> TrialPlan:
    from fer.cluster.trials import TrialPlan
    from fer.stages.closure import code
    from fer.training.job import TrainJob
    from fer.weights.parts import locate

    recipe, train = params.recipe(model_key), params.train_of(model_key)
    # How much is tried, which is not what a trial is, stays out: a longer search resumes a shorter one.
    what = config.model_dump(mode="json", exclude={"trials", "max_concurrent", "time_budget_minutes"})
    job = TrainJob.create(
        shards,
        recipe,
        seed=params.seed,
        code=code().digest("tune", recipes=[recipe]),
        config=train,
        work=params.home / ".work",
        pretrained=locate(recipe.sources, params.root, params.parent),
        more={"tune": what, "threads": train.threads},
        command=f"fer tune --dataset {dataset} --model {model_key}",
        accept_versions=accept_versions,
    )
    job = replace(job, work_dir=str((params.home / ".work" / f"tune-{job.fingerprint[:16]}").resolve()))
    return TrialPlan(job=job, gpu=train.gpu, epochs=config.epochs, metric=config.metric)


def _search(params: Params, plan: TrialPlan, config: TuneConfig, parent: Run, dataset: str, model_key: str) -> TrialLog:
    """Runs the trials, each with an MLflow run below that of the search."""
    from fer.cluster import grid
    from fer.cluster.trials import TrialLog
    from fer.tracking import open_run

    def open_trial_run(trial: Trial, run_id: str | None) -> Run:
        tags = {"fer.kind": "trial", "trial": trial.number, "dataset": dataset, "model": plan.job.recipe.model}
        return open_run(
            params.tracking, params.home, checkout=params.root, experiment=dataset,
            run_name=f"{model_key} trial {trial.number}", key=trial.key, params={"trial": trial.values}, tags=tags,
            parent=parent, run_id=run_id,
        )  # fmt: skip

    record, interrupted = TrialLog(plan, open_trial_run, parent), True
    try:
        grid.search(plan, config, params.cluster, record)
        interrupted = False
    finally:
        record.close(interrupted)
    return record


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


def _write(written: Path, plan: TrialPlan, config: TuneConfig, record: TrialLog, best: Trial, data_digest: str) -> None:
    """The evidence first, the recipe last; the same search writes the same recipe, byte by byte."""
    from fer.training.recipe import Recipe, vary

    recipe = vary(plan.job.recipe, best.values, "tune.space")
    first = record.trials.get(1)
    lines = [
        f"Written by `fer tune` for {written.parent.name}; every trial is in {written.stem}.json.",
        f"{plan.metric} {best.best:.4f} on the validation split, trial {best.number} of {len(record.trials)}, epoch "
        f"{best.best_epoch} of {plan.epochs}.",
        *([f"The first trial reached {first.best:.4f}."] if first is not None and first.best is not None else []),
        f"Chosen: {', '.join(f'{name} {_short(value)}' for name, value in sorted(best.values.items()))}.",
        f"Seed {plan.job.seed}, data {data_digest[:16]}.",
    ]
    body = yaml12.dump(recipe.model_dump(mode="json"))
    head = "".join(f"# {line}\n" for line in lines)
    text = f"{head}{_DIGEST}{hashlib.sha256(body.encode()).hexdigest()}\n{body}"
    parse(Recipe, yaml12.load(text.encode()), str(written))
    evidence = {
        "best_trial": best.number,
        "metric": plan.metric,
        "seed": plan.job.seed,
        "data_digest": data_digest,
        "fingerprint": plan.job.fingerprint,
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
    log.info(
        "next: to use it, in %s under models.%s, replace what is there by:\n    %s",
        parameters.FILE_NAME,
        model_key,
        f"recipe: {written.relative_to(params.root).as_posix()}#{sha256(written)[:8]}",
    )
    log.info("then: dvc repro %s", params.target("train", dataset, model_key))


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else brief(str(value))
