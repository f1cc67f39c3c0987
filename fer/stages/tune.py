"""`fer tune`: searches the hyperparameters of a model on a dataset, and writes the best recipe.

    .work/tune-<fingerprint>/        what a stopped search resumes from; each trial's history stays, its weights go.
                                     Trials are in STORAGE/work/tune-<fingerprint>/ where params.yaml names a store
    tuned/<dataset>/<model>.json     evidence: every trial, the seeds, the budget, the data
    tuned/<dataset>/<model>.trial-<n>.yaml   with `tune.cost`, the other recipes of the Pareto front
    tuned/<dataset>/<model>.yaml     the best recipe, complete; written last

Only the validation split decides. The recipe's own values are the first trial. The winner's result is the best of many,
so it is trained again under `tune.seeds` other seeds, beside the recipe as it is; their means are what to believe.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer import params as parameters
from fer.cluster.config import TuneConfig, check_space
from fer.config import parse
from fer.console import log
from fer.evaluation.aggregate import spread
from fer.io import yaml12
from fer.io.files import FileError, read_json, sha256, write_atomic, write_json
from fer.io.storage import Folder, inside
from fer.io.yaml12 import brief
from fer.lease import leased
from fer.params import Params
from fer.processes import empty_held, lock
from fer.report.charts import alone
from fer.report.searches import SearchFile, charts_of
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
    loaded.recipe(args.model)
    if args.trials and loaded.tune_of(args.model).method == "grid":
        raise ValueError("fer tune --trials: tune.method = grid tries every combination of the choices; leave it out")
    changes = {key: value for name, key in _OPTIONS.items() if (value := getattr(args, name)) is not None}
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
    from fer.stages.record import log_data
    from fer.tracking import open_run

    params.dataset(dataset)
    recipe = params.recipe(model_key)
    check_space(recipe, config, str(params.root / parameters.FILE_NAME))
    shards = ShardSet.open((params.root / "data" / "shards" / dataset).resolve())
    plan = _plan(params, config, dataset, model_key, shards, accept_versions=accept_versions)
    work = Path(plan.job.work_dir)
    done, written = work / "done.json", params.root / "tuned" / dataset / f"{model_key}.yaml"
    for path in [written, *written.parent.glob(f"{model_key}.trial-*.yaml")]:
        refuse_edited(path)
    with lock(work / "lock"), leased(params.storage, work.name, params.home) as check:
        if restart:
            empty_held(work)
            if params.storage:
                Folder(plan.work).clear()
        if _is_done(done, written, config):
            log.info("this search has ended; change tune, seed or data for another, or extend it with --trials")
            _print_next_step(params, dataset, model_key, written)
            return written
        settings = {name: one.model_dump(mode="json") for name, one in (("tune", config), ("recipe", recipe))}
        tags = {"fer.kind": "search", "dataset": dataset, "model": recipe.last.model, "data_digest": shards.digest}
        with open_run(
            params.tracking, params.home, checkout=params.root, experiment=dataset, run_name=f"tune {model_key}",
            key=plan.job.fingerprint, params=settings | {"seed": params.seed}, tags=tags,
        ) as parent:  # fmt: skip
            log_data(parent, dataset, shards, "train", "validation")
            record = _search(params, plan, config, parent, dataset, model_key, shards, check)
            best = record.best()
            if best is None:
                reasons = "; ".join(f"trial {one.number}: {one.reason or one.status}" for one in record.searched)
                raise ValueError(f"no trial ended with a result, nothing is written ({reasons or 'none began'})")
            evidence = _evidence(plan, config, record, best, shards.digest)
            files = _write(written, plan, record, best, evidence)
            _log_outcome(parent, evidence, best, files, work)
        counts = {"trials": len(record.searched), "seeds": config.seeds}
        write_json(done, {**counts, "written_sha256": sha256(written)})
        for state in Folder(plan.work).below((".pt",)):
            trial, _, name = state.partition("/")
            Folder(inside(plan.work, trial)).remove(name)
        shutil.rmtree(work / "ray", ignore_errors=True)
    log.info("%s", table(record, plan.metric))
    for line in evidence.conclusion:
        log.info("%s", line)
    _print_next_step(params, dataset, model_key, written)
    return written


def table(record: TrialLog, metric: str) -> str:
    """The trials as text, the best one marked by *, with a cost the rest of the Pareto front by +."""
    cost = record.plan.cost
    marks = {trial.number: "+" for trial in record.front()} if cost else {}
    marks |= {best.number: "*"} if (best := record.best()) else {}
    names = sorted({name for trial in record.searched for name in trial.chosen})
    rows = [["", "trial", *names, metric, "at epoch", *([cost] if cost else []), "epochs", "seconds", "state"]]
    for trial in record.searched:
        values = [_short(trial.chosen[name]) if name in trial.chosen else "-" for name in names]
        score = f"{trial.best:.4f}" if trial.best is not None else "-"
        costs = ["-" if trial.cost is None else _short(trial.cost)] if cost else []
        numbers = [score, str(trial.best_epoch or "-"), *costs, str(trial.epochs), f"{trial.seconds:.1f}"]
        rows.append([marks.get(trial.number, ""), str(trial.number), *values, *numbers, trial.status])
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
    what = config.model_dump(mode="json", exclude={"trials", "seeds", "max_concurrent", "time_budget_minutes"})
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
    return TrialPlan(
        job=job,
        gpu=train.gpu,
        epochs=config.epochs,
        metric=config.metric,
        cost=config.cost,
        workers=config.workers_per_trial,
        timeout_seconds=train.collective_timeout_seconds,
        storage=params.storage,
    )


def _search(
    params: Params,
    plan: TrialPlan,
    config: TuneConfig,
    parent: Run,
    dataset: str,
    model_key: str,
    shards: ShardSet,
    check: Callable[[], object],
) -> TrialLog:
    """Runs the trials, each with an MLflow run below that of the search."""
    from fer.cluster import grid
    from fer.cluster.trials import SEED, TrialLog
    from fer.stages.record import log_data
    from fer.tracking import open_run

    def open_trial_run(trial: Trial, run_id: str | None) -> Run:
        seed = f", seed {trial.values[SEED]}" if SEED in trial.values else ""
        tags = {
            "fer.kind": "trial",
            "trial": trial.number,
            **({"trial.parent": trial.parent} if trial.parent else {}),
            "dataset": dataset,
            "model": plan.job.recipe.last.model,
        }
        opened = open_run(
            params.tracking, params.home, checkout=params.root, experiment=dataset,
            run_name=f"{model_key} trial {trial.number}{seed}", key=trial.key, params={"trial": trial.chosen},
            tags=tags, parent=parent, run_id=run_id,
        )  # fmt: skip
        log_data(opened, dataset, shards, "train", "validation")
        return opened

    record, interrupted = TrialLog(plan, open_trial_run, parent), True
    try:
        grid.search(plan, config, params.cluster, record, check)
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
    enough = content["trials"] >= config.planned and content["seeds"] >= config.seeds
    return bool(enough and content["written_sha256"] == sha256(written))


def _evidence(plan: TrialPlan, config: TuneConfig, record: TrialLog, best: Trial, data_digest: str) -> SearchFile:
    """What the .json beside the recipe holds; the same of every repetition of a search, but for its times."""
    from fer.cluster.proposals import importance
    from fer.cluster.trials import own_values

    own = own_values(plan.job.recipe, config.space) or {}
    sets = {"winner": best.values} | ({"recipe": own} if own != best.values else {})
    results = {name: record.confirmed(values) for name, values in sets.items()}
    winner, recipe = results["winner"], results.get("recipe", {})
    sign = 1 if record.higher_is_better else -1
    gains = {seed: sign * (value - recipe[seed]) for seed, value in winner.items() if seed in recipe}
    content = {
        "best_trial": best.number,
        "best": best.best,
        "metric": plan.metric,
        "cost": plan.cost,
        "front": [trial.number for trial in record.front()] if plan.cost else [],
        "confirmed": {
            name: asdict(spread(list(values.values())))
            for name, values in (results | {"gain": gains}).items()
            if values
        },
        "importance": {} if config.method == "pbt" else importance(record, config.space),
        "seed": plan.job.seed,
        "data_digest": data_digest,
        "fingerprint": plan.job.fingerprint,
        "budget": config.model_dump(mode="json", exclude={"space"}),
        "space": [(name, span.model_dump(mode="json")) for name, span in config.space.items()],
        "trials": [
            asdict(trial) | {"values": trial.chosen, "parent": trial.parent}
            for _, trial in sorted(record.trials.items())
        ],
    }
    return parse(SearchFile, content, f"the search of {plan.job.recipe.model}")


def _write(written: Path, plan: TrialPlan, record: TrialLog, best: Trial, evidence: SearchFile) -> list[Path]:
    """The other recipes of the front, the evidence, the best recipe last; a repeated search writes the same bytes."""
    others = [trial for trial in record.front() if plan.cost and trial is not best]
    paths = [written.with_suffix(f".trial-{trial.number}.yaml") for trial in others]
    texts = [_recipe_text(path, plan, record, trial, evidence) for path, trial in zip(paths, others, strict=True)]
    text = _recipe_text(written, plan, record, best, evidence)
    for path, other in zip(paths, texts, strict=True):
        write_atomic(path, other)
    write_json(written.with_suffix(".json"), evidence.model_dump(mode="json"))
    write_atomic(written, text)
    return [*paths, written.with_suffix(".json"), written]


def _recipe_text(path: Path, plan: TrialPlan, record: TrialLog, trial: Trial, evidence: SearchFile) -> str:
    """The recipe of a trial, complete, with a head that says what it reached."""
    from fer.cluster.trials import recipe_values
    from fer.training.recipe import Recipe, vary

    recipe, first = vary(plan.job.recipe, recipe_values(trial.values), "tune.space"), record.trials.get(1)
    winner, cost = trial.number == evidence.best_trial, f", {plan.cost} {trial.cost:.4g}" if plan.cost else ""
    reached = f"{plan.metric} {trial.best:.4f}{cost} on the validation split"
    lines = [
        f"Written by `fer tune` for {path.parent.name}; every trial is in {path.name.partition('.')[0]}.json.",
        f"{reached}, trial {trial.number} of {len(record.searched)}, epoch {trial.best_epoch} of {plan.epochs}.",
        *([f"The first trial reached {first.best:.4f}."] if first is not None and first.best is not None else []),
        *(f"{line[0].upper()}{line[1:]}." for line in evidence.conclusion if winner),
        f"Chosen: {', '.join(f'{name} {_short(value)}' for name, value in sorted(trial.chosen.items()))}.",
        f"Seed {plan.job.seed}, data {evidence.data_digest[:16]}.",
    ]
    body = yaml12.dump(recipe.model_dump(mode="json"))
    head = "".join(f"# {line}\n" for line in lines)
    text = f"{head}{_DIGEST}{hashlib.sha256(body.encode()).hexdigest()}\n{body}"
    parse(Recipe, yaml12.load(text.encode()), str(path))
    return text


def _log_outcome(parent: Run, evidence: SearchFile, best: Trial, files: Sequence[Path], work: Path) -> None:
    columns = ("number", "status", "epochs", "best", "best_epoch", *(["cost"] if evidence.cost else []), "seconds")
    shown: dict[str, Any] = {name: [getattr(trial, name) for trial in evidence.trials] for name in columns}
    names = sorted({name for trial in evidence.trials for name in trial.values})
    shown |= {name: [trial.values.get(name) for trial in evidence.trials] for name in names}
    parent.log_table(shown, "trials.json")
    parent.set_tags({"best_trial": best.number, **{f"best.{name}": value for name, value in best.chosen.items()}})
    for part, of in evidence.confirmed.items():
        parent.log_metrics({f"{part}_mean": of.mean} | ({} if of.std is None else {f"{part}_std": of.std}))
    for path in files:
        parent.log_artifact(path, "tuned")
    for name, chart in charts_of(evidence).items():
        write_atomic(work / f"{name}.svg", alone(chart))
        parent.log_artifact(work / f"{name}.svg", "charts")


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
