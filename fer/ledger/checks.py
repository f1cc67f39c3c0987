"""The checks of the ledger: a printed number against a recipe, a model, a count, a cost, its table or our runs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fer import published
from fer.ledger.counts import count, create
from fer.ledger.printed import close, decimals, described
from fer.ledger.results import Run
from fer.ledger.rules import Outcome, Rule
from fer.presets import load_preset
from fer.published import Number

_SCALES = {"K": 1e3, "M": 1e6}

PATHS = {
    "learning_rate": "learning_rate",
    "batch_size": "batch_size",
    "weight_decay": "weight_decay",
    "epochs": "epochs",
    "patience": "patience",
    "gamma": "schedule.gamma",
    "erasing_p": "augment.Erasing.p",
    "erasing_scale_min": "augment.Erasing.scale.0",
    "erasing_scale_max": "augment.Erasing.scale.1",
    "rotation_deg": "augment.Affine.rotate.1",
    "shift": "augment.Affine.translate_percent.1",
    "zoom": "augment.Affine.scale.1",
    "lambda_a": "options.attention_loss_weight",
    "heads": "options.num_heads",
    "top_k": "options.topk",
}
"""Metric -> where a recipe says it; a name leads to the transform of that name."""

_OPTIMIZERS = {"Adam": "adam", "SGD": "sgd", "SAM": "sam"}
"""As a setting names them -> as a recipe does."""


def apply(number: Number, rule: Rule, runs: Sequence[Run]) -> Outcome:
    """Checks one number."""
    if rule.check == "result":
        return _result(number, rule, runs)
    if rule.check in ("cited", "not reproducible"):
        return Outcome(verdict=rule.check, differs=rule.why, how=described(number))
    return _CHECKS[rule.check](number, rule)


def _compared(same: bool, ours: float | str, how: str, differs: str) -> Outcome:
    return Outcome(verdict="equal" if same else "differs", ours=show(ours), how=how, differs="" if same else differs)


def show(value: float | str) -> str:
    """For people: no more digits than are needed."""
    return value if isinstance(value, str) else f"{value:.6g}" if abs(value) < 1e5 else f"{value:,.0f}"


# ------------------------------------------------------------------------------------------------ settings


def _recipe(number: Number, rule: Rule) -> Outcome:
    """The first recipe decides; the others are named where they differ."""
    path = rule.path or PATHS[number.metric]
    values, differs = [], []
    for name in rule.recipes:
        recipe = _load(name).in_stages[(rule.stage or 1) - 1]
        value = _found(recipe.model_dump(mode="json"), path)
        if value is not None and number.metric == "zoom":  # printed as the range around 1
            value -= 1
        problem = "" if value is not None and _isclose(value, number.value) else _shown(value)
        if number.metric == "learning_rate" and not problem:
            problem = _other_optimizer(number.setting, recipe)
        values.append(value)
        differs.append(f"{name}: {problem}" if problem else "")
    return Outcome(
        verdict="differs" if differs[0] else "equal",
        ours=_shown(values[0]),
        how=f"recipe {' and '.join(rule.recipes)}: {path}",
        differs="; ".join(text for text in (*differs, rule.why) if text),
    )


def _shown(value: float | None) -> str:
    return "none" if value is None else show(value)


def _isclose(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)


def _other_optimizer(setting: str, recipe: Any) -> str:
    """What a recipe trains by, where the setting of a learning rate names another optimizer or schedule."""
    printed = {name for word, name in _OPTIMIZERS.items() if word in setting.split(",")[0].split()}
    ours = {recipe.optimizer, *(["sam"] if recipe.sam else [])}
    if printed in (set(), ours) and (recipe.schedule.kind == "exponential" or "ExponentialLR" not in setting):
        return ""
    return " over ".join(sorted(ours, reverse=True)) + f", {recipe.schedule.kind} schedule"


def _found(content: Any, path: str) -> float | None:
    """The number at a path of a recipe; None where it has none."""
    for key in path.split("."):
        if isinstance(content, list) and not key.isdigit():
            content = next((one for one in _transforms(content) if one.get("name") == key), None)
        elif isinstance(content, list):
            content = content[int(key)] if int(key) < len(content) else None
        elif content is not None:
            content = content.get(key)
    return None if content is None else float(content)


def _transforms(specs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Transforms, and those within containers."""
    return [one for spec in specs for one in (spec, *_transforms(spec.get("transforms") or []))]


@cache
def _load(name: str) -> Any:
    from fer.training.recipe import load_recipe

    return load_recipe({"recipe": name}, Path(), "fer/ledger/map.yaml")


def _model(number: Number, rule: Rule) -> Outcome:
    assert rule.model is not None
    assert rule.path is not None
    digits = re.findall(r"\d+", f"{number.row} {number.setting}")
    path = rule.path.format(index=int(digits[0]) - 1 if digits else 0)
    ours = float(_attribute(rule.model, path))
    return _compared(_isclose(ours, number.value), ours, f"model {rule.model}: {path}", rule.why)


def _attribute(model: str, path: str) -> Any:
    """An attribute of the model, or below `options` one of its options' defaults."""
    from fer.models import model_options

    first, *rest = path.split(".")
    content = model_options(model) if first == "options" else getattr(create(model), first)
    for key in rest:
        if isinstance(content, dict):
            content = content[key]
        else:
            content = content[int(key)] if key.isdigit() else getattr(content, key)
    return content


def _count(number: Number, rule: Rule) -> Outcome:
    counted, where = count(number)
    ours = counted / _SCALES.get(number.unit, 1)
    return _compared(close(number, ours), ours, where, "our registry counts otherwise")


# ------------------------------------------------------------------------------------------------ costs


def _cost(number: Number, rule: Rule) -> Outcome:
    assert rule.model is not None
    ours, convention = cost_of(rule.model, number)
    same = ours < number.value if number.setting == "less than" else close(number, ours)
    return _compared(same, ours, f"{rule.model}, {convention}", rule.why)


def cost_of(model: str, number: Number) -> tuple[float, str]:
    """Our count of a printed cost in its unit, under the convention that the work counts by, and the convention."""
    from fer.studies.published_costs import published_costs

    costs = published_costs(model, cost_in_full(model))
    assert costs is not None
    same = [one for one in costs.numbers if one.printed == f"{number.printed} {number.unit}"]
    unit = [one for one in costs.numbers if one.printed.split()[1] == number.unit]
    found = (same or unit)[0]
    return float(found.ours.split()[0]), found.convention


@cache
def cost_in_full(model: str) -> Any:
    """`fer.models.cost.measure` of a model of 7 classes."""
    from fer.models.cost import measure

    return measure(create(model))


# ------------------------------------------------------------------------------------------------ from the tables


def _difference(number: Number, rule: Rule) -> Outcome:
    """`row` against the other row of the table `of`, which `other` names, or "against ..." in the setting."""
    other = rule.other or re.sub(r"^against ", "", number.setting)
    metric = {"flops_saved": "flops", "params_saved": "params"}.get(number.metric, rule.path or "accuracy")
    one, two = (
        next(published.numbers(work=number.work, table=rule.of, row=row, dataset=number.dataset, metric=metric))
        for row in (number.row, other)
    )
    gains = number.metric.endswith("gain")
    big, small = (one, two) if gains else (two, one)
    ours = big.value - small.value
    how = f"{rule.of}: {big.printed} - {small.printed} = {show(round(ours, 6))}"
    if number.unit == "%":
        ours = 100 * (1 - small.value / big.value)
        how = f"{rule.of}: 1 - {small.printed} / {big.printed} = {ours:.1f} %"
    same = abs(round(ours - number.value, 9)) <= 0.5 * 10.0 ** -decimals(number)
    return _compared(same, round(ours, 6), how, "the table says otherwise")


# ------------------------------------------------------------------------------------------------ functions


def _computed(number: Number, rule: Rule) -> Outcome:
    assert rule.call is not None
    ours, how = _FUNCTIONS[rule.call](number)
    return _compared(close(number, ours), ours, how, rule.why)


def _heads(number: Number) -> tuple[float, str]:
    """Of LHC-Net's five blocks, of the first two, and their share."""
    heads = [block.num_heads for block in create("lhc_net").lhc]
    first, whole = sum(heads[:2]), sum(heads)
    needed = "that they are needed: fer study lhc_net_blocks"
    if number.metric == "heads_share":
        return (
            100 * first / whole,
            f"{first} of {whole} heads; {needed}",
        )
    ours = first if number.setting == "necessary" else whole
    how = f"model lhc_net: {' + '.join(map(str, heads))} heads"
    return ours, f"{how}; {needed}" if number.setting == "necessary" else how


def _modules(number: Number) -> tuple[float, str]:
    return len(create("lhc_net").lhc), "model lhc_net: its LHC blocks"


def _threshold(number: Number) -> tuple[float, str]:
    """Equations 21 and 23 with d = HW / 2n and n = 8: L1 > G1 as A > threshold * B; HW cancels."""
    from fer.studies.lhc_analysis import threshold

    ours = float(threshold(56 * 56, 196, 8))
    return ours, f"equations 21, 23: A/3 + B/9 > (A + B) / 6.375, so A > {ours:.4f} B"


def _drop_path(number: Number) -> tuple[float, str]:
    """linspace(start, end, steps), of which the three levels take the first."""
    from fer.models.layers.linear import DropPath
    from fer.models.poster_v2 import PUBLISHED

    rates = sorted({module.rate for module in create("poster_v2").modules() if isinstance(module, DropPath)})
    step, end = rates[-1] - rates[-2], PUBLISHED.drop_path_rate
    ours = {"drop_path_start": 0.0, "drop_path_end": end, "drop_path_steps": end / step + 1}[number.metric]
    return ours, f"model poster_v2: the levels have {', '.join(map(show, rates))}, of {show(end)}"


def _views(number: Number) -> tuple[float, str]:
    """Of the test-time augmentation of the text."""
    from fer.evaluation import tta
    from fer.evaluation.config import TtaName

    name: TtaName = "lhc_paper"
    weighted = tta.views(name, 224)
    views = [view for view, _ in weighted]
    plain, zoomed = ([view for view in views if (view.zoom != 1) == one] for one in (False, True))
    positions = {(view.right, view.down) for view in plain}
    turned = {(view.right, view.down, view.rotation if view.right or view.down else 0) for view in plain}
    facts = {
        "shift_px": max(abs(view.right) for view in views),
        "zoom": 100 * (1 - zoomed[0].zoom),
        "weight": weighted[0][1],
        "rotation_rad": max(view.rotation for view in (zoomed if "second" in number.setting else plain)),
        "positions": len(positions) if number.setting == "rotate first" else len(turned),
    }
    return facts[number.metric], f"views {name}, {len(weighted)} of them"


def _loss_margin(number: Number) -> tuple[float, str]:
    """The margin over the host's training loss, beyond which a run is left out."""
    from fer.studies.lhc_analysis import LOSS_MARGIN

    return 100 * LOSS_MARGIN, "fer.studies.lhc_analysis: a run above it is left out"


def _crop(number: Number) -> tuple[float, str]:
    """The side of the crops of the paper's preset."""
    return float(load_preset(number.work).crop["size"]), f"preset {number.work}: crop.size"


def _depths(number: Number) -> tuple[float, str]:
    """The rows of the study of Figure 6."""
    from fer.studies import load_study

    rows = {row.row: row.set.get("options.vit_depth", 2) for row in load_study("poster_v2_vit_depth", Path()).rows}
    return float(rows[number.row]), "study poster_v2_vit_depth; the accuracies are drawn, not printed"


_FUNCTIONS: Mapping[str, Callable[[Number], tuple[float, str]]] = {
    "crop": _crop,
    "modules": _modules,
    "heads": _heads,
    "threshold": _threshold,
    "drop_path": _drop_path,
    "views": _views,
    "loss_margin": _loss_margin,
    "depths": _depths,
}


# ------------------------------------------------------------------------------------------------ results


def _result(number: Number, rule: Rule, runs: Sequence[Run]) -> Outcome:
    """The run nearest to what was printed: of the same table and dataset, of the dataset, of the table."""
    assert rule.model is not None
    ranked = sorted(((one.nearness(number, rule.model, rule.ablation), one) for one in runs), key=lambda pair: -pair[0])
    how = "; ".join(text for text in (described(number), rule.why) if text)
    if not ranked or ranked[0][0] == 0:
        source = "" if number.dataset == "FER2013" else ", which its authors hand out"
        plan = f"fer reproduce {number.work} --dry-run"
        lacking = f"needs {number.dataset}{source}, and a GPU; `{plan}` names data and weights that are missing"
        return Outcome(verdict="not run", scale="not run", how=how, differs=lacking)
    run = ranked[0][1]
    scale, differs = run.scale(rule.model), run.differences(number, rule.model)
    low, high = run.ends
    inside = low is not None and high is not None and low <= number.value <= high
    return Outcome(
        verdict="measured" if scale != "full" or run.dataset != number.dataset else "equal" if inside else "differs",
        ours=f"{run.value:.2f}",
        low=low,
        high=high,
        seeds=run.seeds,
        scale=scale,
        how="; ".join(text for text in (run.where, how) if text),
        differs="; ".join(differs),
    )


_CHECKS: Mapping[str, Callable[[Number, Rule], Outcome]] = {
    "recipe": _recipe,
    "model": _model,
    "count": _count,
    "cost": _cost,
    "difference": _difference,
    "computed": _computed,
}
