"""What a search tries: proposals of Optuna, a grid, or the generations of a population.

Population-based training (Jaderberg et al. 2017, arXiv:1711.09846) is here a search over `Recipe.stages`: a member
trains one stage a generation; then the worst quarter continues from the weights of one of the best quarter, and all its
parameters are changed a little. So the weights of every member are those of a recipe, its stages from the first on,
which anyone may train again, under the same seed to the same bits, or under another.

Unlike the paper, all members of a generation end before the next begins, so that the same search proposes the same
values again; and a stage begins with the best weights of the one before and a new optimizer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import optuna
from ray.tune.result import TRAINING_ITERATION
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from fer.cluster.config import SearchRange, TuneConfig
from fer.cluster.trials import NUMBER, PARENT, STAGES, Trial, TrialLog, TrialPlan, Values
from fer.hashing import stable_hash
from fer.training.recipe import vary

optuna.logging.set_verbosity(optuna.logging.WARNING)  # it reports every study

RANDOM_TRIALS = 5
_REPLACED, _FACTORS, _REDRAWN = 4, (0.8, 1.2), 0.25
"""One member of a population in so many is replaced; its numbers change by a factor, or are drawn again so often. The
values are the defaults of `ray.tune.schedulers.PopulationBasedTraining`."""


def proposals(plan: TrialPlan, config: TuneConfig, mode: str, own: Values | None) -> Searcher:
    """TPE over the space, seeded, or its grid; the recipe's `own` values come first: the search knows what to beat."""
    if config.method == "grid":
        points = sorted(config.grid, key=lambda values: values != own)
        return Listed([{**values, NUMBER: number} for number, values in enumerate(points, start=1)])
    return NumberedSearch(
        space=partial(propose, config.space),
        metric=[plan.metric, config.cost] if config.cost else plan.metric,
        mode=[mode, "min"] if config.cost else mode,
        sampler=optuna.samplers.TPESampler(seed=plan.job.seed, n_startup_trials=RANDOM_TRIALS),
        points_to_evaluate=[own] if own else None,
    )


def propose(space: Mapping[str, SearchRange], trial: optuna.Trial) -> None:
    """Lets Optuna choose the parameters that exist beside each other, from the first to the last."""
    values: Values = {}
    for name, span in space.items():
        if not span.exists(values):
            continue
        if span.choices is not None:
            values[name] = trial.suggest_categorical(name, span.choices)
        elif span.integer:
            values[name] = trial.suggest_int(name, int(span.low or 0), int(span.high or 0), log=span.log)
        else:
            values[name] = trial.suggest_float(name, span.low, span.high, log=span.log)


def generation(number: int, plan: TrialPlan, config: TuneConfig, record: TrialLog, own: Values | None) -> list[Values]:
    """The trials of one generation of a population, counted from 0; none where no member of the last has a result.

    Args:
        record: of all generations before. own: the first member's values in the first generation.
    """
    first = number * config.trials + 1
    numbers = range(first, first + config.trials)
    chance = [random.Random(stable_hash(plan.job.seed, "population", one)) for one in numbers]
    if number == 0:
        drawn = [_near({}, config.space, one) for one in chance]
        drawn[0] = own or drawn[0]
        return [_member(first + member, plan, config, values, None) for member, values in enumerate(drawn)]
    before = [record.trials[place] for place in range(first - config.trials, first) if place in record.trials]
    ranked = record.ranked(before)
    few = len(ranked) // _REPLACED or int(len(ranked) > 1)
    best, kept = ranked[: few or 1], ranked[: len(ranked) - few]
    found = []
    for member, trial in enumerate(before if ranked else []):
        parent, values = trial, trial.values
        if trial not in kept:
            parent = chance[member].choice(best)
            values = _near(parent.values, config.space, chance[member])
        found.append(_member(first + member, plan, config, values, parent))
    return found


def _member(number: int, plan: TrialPlan, config: TuneConfig, values: Values, parent: Trial | None) -> Values:
    """The trial with one stage more than its parent's, at a constant rate: the population finds the schedule."""
    values = {name: values[name] for name in config.space if name in values}
    warmup = 0.0 if parent else plan.job.recipe.schedule.warmup_epochs
    given = {"schedule.kind": "constant", "schedule.warmup_epochs": warmup, **values}
    given |= {"epochs": config.grace_epochs, "patience": None}
    whole = vary(plan.job.recipe, given, "tune.space").model_dump(mode="json")
    stage = {key: whole[key] for key in sorted({name.partition(".")[0] for name in given})}
    if parent is None:
        return {NUMBER: number, **values, STAGES: [stage]}
    return {NUMBER: number, **values, STAGES: [*parent.values[STAGES], stage], PARENT: parent.key}


def _near(values: Values, space: Mapping[str, SearchRange], chance: random.Random) -> Values:
    """Values near to others: numbers times a factor, the neighbors of choices. Some, and those not given, are drawn."""
    found: Values = {}
    for name, span in space.items():
        if not span.exists(found):
            continue
        if name not in values or chance.random() < _REDRAWN:
            sampler = optuna.samplers.RandomSampler(seed=chance.getrandbits(32))
            trial = optuna.create_study(sampler=sampler).ask()
            propose({name: span.model_copy(update={"when": {}})}, trial)
            found[name] = trial.params[name]
        elif span.choices is not None:
            place = span.choices.index(values[name]) + chance.choice((-1, 1))
            found[name] = span.choices[min(max(place, 0), len(span.choices) - 1)]
        else:
            value = min(max(values[name] * chance.choice(_FACTORS), span.low or 0.0), span.high or 0.0)
            found[name] = round(value) if span.integer else value
    return found


def importance(record: TrialLog, space: Mapping[str, SearchRange]) -> dict[str, float]:
    """Of each parameter that all trials have, the fraction of the variance of their results that it explains.

    By Optuna's fANOVA (Hutter, Hoos and Leyton-Brown, ICML 2014), the largest first; nothing for fewer than four trials
    or equal results.
    """
    rows = sorted(record.ranked(record.searched), key=lambda trial: trial.number)
    if len(rows) < 4 or len({trial.best for trial in rows}) == 1:
        return {}
    study = optuna.create_study(direction="maximize" if record.higher_is_better else "minimize")
    for trial in rows:
        found = optuna.trial.FixedTrial(trial.values)
        propose(space, found)
        study.add_trial(
            optuna.trial.create_trial(params=found.params, distributions=found.distributions, value=trial.best)
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return {
        name: round(value, 4)
        for name, value in optuna.importance.get_param_importances(study, evaluator=evaluator).items()
    }


class Listed(Searcher):  # type: ignore[misc]
    """Proposes what is in a list."""

    def __init__(self, proposals: Sequence[Values]) -> None:
        super().__init__()
        self._proposals = iter(proposals)

    def suggest(self, trial_id: str) -> Any:
        return next(self._proposals, Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing is learned."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing is restored."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is restored."""


class NumberedSearch(OptunaSearch):  # type: ignore[misc]
    """Numbers the proposals: number and values identify a trial."""

    proposed = 0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._reported: dict[str, int] = {}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        # A trial whose process was lost reports its epochs again, of which Optuna keeps the first values and warns.
        if result[TRAINING_ITERATION] > self._reported.get(trial_id, 0):
            self._reported[trial_id] = result[TRAINING_ITERATION]
            super().on_trial_result(trial_id, result)

    def suggest(self, trial_id: str) -> Any:
        values = super().suggest(trial_id)
        if isinstance(values, dict):
            self.proposed += 1
            values[NUMBER] = self.proposed
        return values
