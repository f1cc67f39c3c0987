"""What a run trains on, phase after phase, and what chooses the epoch of each.

    protocol    selection  phases, each with all of the recipe's stages            kept
    validation  best       training rows                                           the best epoch on validation
    validation  refit      the same, then all rows, for as many epochs as it chose the last epoch
    published   best       all rows                                                the best epoch on test
    published   refit      training rows, then all rows                            the best epoch on test

"All rows" are those of training and validation: all but the test split's. A second phase begins with the first weights
again, and takes the learning rates of the first: it ends sooner, it does not decay sooner. Epochs and stages are
counted on: with two stages the history's column `stage` is 1, 2 in the first phase and 3, 4 in the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fer.training.recipe import Recipe

if TYPE_CHECKING:
    from fer.training.state import Record, TrainState

Rows = Literal["train", "development"]

LABELS: Mapping[str, str] = {
    "validation": "epoch chosen on validation",
    "refit": "number of epochs chosen on validation, then trained on all rows but the test split's",
    "published": "trained on all rows but the test split's, epoch chosen on the test split: optimistic",
}
"""The protocols by name, in words."""


@dataclass(frozen=True, kw_only=True)
class PhaseStage:
    """One stage of one phase.

    Attributes:
        recipe: of the stage.
        rows: it is trained on: "train", or "development": those of validation too, so that nothing is validated.
        chosen_by: column of the history that chooses its epoch; None: the last one is kept.
        follows: place of the stage that it repeats, with as many epochs as that one chose; None: it has its own.
        is_first: whether it begins with the first weights, not with those of the stage before.
    """

    recipe: Recipe
    rows: Rows
    chosen_by: str | None
    follows: int | None
    is_first: bool

    def epochs(self, chosen: Sequence[int]) -> int:
        """The most it trains, where `chosen` are the epochs that the stages before chose."""
        return self.recipe.epochs if self.follows is None else chosen[self.follows]

    def is_over(self, state: TrainState) -> bool:
        """Whether a state in this stage has reached its end."""
        return state.stage_is_over(
            self.epochs(state.chosen), None if self.follows is not None else self.recipe.patience
        )


def protocol_name(recipe: Mapping[str, Any]) -> str:
    """How the result of a recipe, as in train.json, came about: a key of `LABELS`."""
    if recipe.get("protocol") == "published":
        return "published"
    return "refit" if recipe.get("selection") == "refit" else "validation"


def phase_stages(recipe: Recipe) -> list[PhaseStage]:
    """Everything that a run of the recipe trains, in order."""
    stages, made = recipe.in_stages, list[PhaseStage]()

    def add(rows: Rows, split: str | None, follows: bool = False) -> None:
        for index, stage in enumerate(stages):
            column = f"{split}_{stage.selection_metric}" if split else None
            place = index if follows else None
            made.append(PhaseStage(recipe=stage, rows=rows, chosen_by=column, follows=place, is_first=index == 0))

    if recipe.protocol == "validation" or recipe.selection == "refit":
        add("train", "val")
    if recipe.protocol == "published":
        add("development", "test")
    elif recipe.selection == "refit":
        add("development", None, follows=True)
    return made


def trained_on(recipe: Recipe) -> list[str]:
    """The splits that the kept weights were trained on."""
    return ["train", "validation"] if phase_stages(recipe)[-1].rows == "development" else ["train"]


def validated(recipe: Recipe, state: TrainState) -> Record | None:
    """The row of history that validation chose, of a finished run; None where nothing was validated."""
    places = [place for place, stage in enumerate(phase_stages(recipe)) if stage.rows == "train"]
    if not places:
        return None
    rows = [row for row in state.history if row["stage"] == places[-1] + 1]
    return rows[[*state.chosen, state.best_epoch - state.first_epoch][places[-1]] - 1]
