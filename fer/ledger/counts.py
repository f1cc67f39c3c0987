"""What our registry counts: the sizes of the datasets, which their readers compare a copy with, and its models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from fer.labels import DATASET_LABELS, named
from fer.presets import load_preset
from fer.published import Number
from fer.sources import affectnet, caers, fer2013, rafdb
from fer.sources.fer2013_rows import SIDE

Table = Mapping[str, Mapping[str, int]]
"""Split -> class -> images."""

_SPLITS = {"train_size": "train", "val_size": "validation", "test_size": "test"}
_SETTINGS = {"train": "train", "Train": "train", "validation": "test", "Validation": "test"}


@cache
def table(dataset: str) -> Table:
    """The counts of a dataset by split and class; of CAER-S, which prints none by class, under one name."""
    if dataset == "RAF-DB":
        return {split: dict(zip(rafdb.CLASS_NAMES, row, strict=True)) for split, row in rafdb.PUBLISHED.items()}
    if dataset.startswith("AffectNet-"):
        names = affectnet.CLASS_NAMES[: int(dataset[-1])]
        both = {"train": affectnet.TRAIN, "test": affectnet.TEST["csv release"]}
        return {split: dict(zip(names, row, strict=False)) for split, row in both.items()}
    if dataset == "FER2013":
        return fer2013.PUBLISHED
    if dataset == "AI-Hub":
        return {
            split: dict.fromkeys(DATASET_LABELS["aihub82"], size)
            for split, size in zip(("train", "test"), _slides()["per_class"], strict=True)
        }
    return {split: {"all": size} for split, size in caers.PUBLISHED.items()}


def _slides() -> Mapping[str, Any]:
    """How the slides' part of AI-Hub is taken."""
    return load_preset("dynamic_attention").datasets["aihub"].entry


def classes(dataset: str) -> int:
    """Number of classes."""
    return len(DATASET_LABELS["caers"] if dataset == "CAER-S" else table(dataset)["train"])


def count(number: Number) -> tuple[int, str]:
    """Our count of what a number counts, and where it is from."""
    of = table(number.dataset)
    where = f"registry of datasets, {number.dataset}"
    if number.metric == "n_classes":
        return classes(number.dataset), where
    if number.metric == "image_size":
        return SIDE, where
    if split := _SPLITS.get(number.metric):
        return sum(of[split].values()), f"{where}: {split}"
    sizes = {split: sum(row.values()) for split, row in of.items()}
    if number.metric == "total_size":
        return sum(sizes.values()), f"{where}: {' + '.join(f'{size:,}' for size in sizes.values())}"
    return _of_class(number, of, where)


def _of_class(number: Number, of: Table, where: str) -> tuple[int, str]:
    """The count of one class, or of every class where all are equal."""
    splits = [_SETTINGS[number.setting]] if number.setting in _SETTINGS else list(of)
    name = named(number.row) or number.row.lower()
    if name in of["train"]:
        return sum(of[split][name] for split in splits), f"{where}: {name}, {' + '.join(splits)}"
    return min(of[splits[0]].values()), f"{where}: each class, {splits[0]}"


@cache
def create(model: str) -> Any:
    """A model of 7 classes without weights."""
    import torch

    from fer.models import create_model

    with torch.device("meta"):
        return create_model(model)
