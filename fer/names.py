"""Names of datasets and models: each becomes a folder, a DVC stage and a key of DVC's parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import product

from fer.config import ConfigError

LONGEST = 64
_NAME = re.compile(r"[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*")
"""Characters that a shell, a path and DVC read literally. The dash is for the names of older projects."""


def check_name(name: str, where: str) -> str:
    """`name`, where it can name a folder and a stage.

    Args:
        where: file and key that it comes from, for the error.

    Raises:
        ConfigError: it is empty, longer than 64, or has other characters than A-Z, a-z, 0-9 and _.
    """
    if len(name) > LONGEST or not _NAME.fullmatch(name):
        shown = name if len(name) <= LONGEST else f"{name[:LONGEST]}..."
        remedy = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")[:LONGEST] or "my_name"
        raise ConfigError(
            f"{where}: {shown!r} cannot name a folder and a stage: use only letters, digits and _, at most {LONGEST}, "
            f"for example {remedy}"
        )
    return name


def check_keys(datasets: Iterable[str], models: Iterable[str], where: str) -> None:
    """ConfigError where a key is not a valid name, or two keys would share a folder or a stage.

    Args:
        datasets, models: keys of the two sections.
        where: the file, for the error.
    """
    sections = {"datasets": list(datasets), "models": list(models)}
    for section, keys in sections.items():
        seen: dict[str, str] = {}
        for key in keys:
            check_name(key, f"{where}: {section}")
            other = seen.setdefault(key.lower(), key)
            if other != key:
                raise ConfigError(
                    f"{where}: {section}: {other!r} and {key!r} differ only in case, and some disks give both one "
                    "folder: rename one of them"
                )
    stages: dict[str, tuple[str, str]] = {}
    for pair in product(sections["datasets"], sections["models"]):
        other_pair = stages.setdefault("-".join(pair).lower(), pair)
        if other_pair != pair:
            one, another = (f"{dataset!r} with {model!r}" for dataset, model in (other_pair, pair))
            raise ConfigError(
                f"{where}: datasets and models: {one} and {another} make the same stage {'-'.join(pair)}: write _ for "
                "the dashes of one of them"
            )
