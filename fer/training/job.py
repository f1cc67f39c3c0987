"""One run of training as data: what decides its result, what identifies it, and where it keeps its checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fer.io.cache import send
from fer.io.storage import inside
from fer.lineage import versions
from fer.shards.read import ShardSet
from fer.shards.remote import upload
from fer.training.recipe import Recipe, TrainStageConfig
from fer.weights.parts import PartSource

_DECISIVE = ("torch", "numpy", "opencv-python-headless", "pyarrow", "albumentations")


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One run of training, as every rank gets it; picklable.

    Attributes:
        shards: folder of the sharded dataset, absolute; or its URL.
        work_dir: folder of checkpoints and progress, the same one for all ranks, absolute; or its URL.
        labels: of the dataset, in the order of the class indices.
        threads: CPU threads of each rank.
        fingerprint: see `fingerprint`.
        pretrained: the weights that the model and parts of it start from.
        command: what the user types to start or resume the run; named in errors.
        accept_versions: whether to resume a checkpoint that other versions of the libraries wrote.
    """

    shards: str
    work_dir: str
    recipe: Recipe
    labels: tuple[str, ...]
    seed: int
    threads: int
    checkpoint_every_steps: int
    fingerprint: str
    pretrained: tuple[PartSource, ...] = ()
    command: str = ""
    accept_versions: bool = False

    @classmethod
    def create(
        cls,
        shards: ShardSet,
        recipe: Recipe,
        *,
        seed: int,
        code: str,
        config: TrainStageConfig,
        work: Path | str,
        pretrained: Sequence[PartSource] = (),
        more: Mapping[str, Any] | None = None,
        command: str = "",
        accept_versions: bool = False,
    ) -> TrainJob:
        """The run with its fingerprint, and the first 16 digits of that as its folder below `work`.

        Args:
            code: digest of the code that decides the result.
            more: whatever else tells this run from others.
        """
        whole = fingerprint(shards.digest, recipe, seed, code, pretrained, more)
        return cls(
            shards=str(shards.folder),
            work_dir=inside(work, whole[:16]),
            recipe=recipe,
            labels=tuple(shards.labels),
            seed=seed,
            threads=config.threads,
            checkpoint_every_steps=config.checkpoint_every_steps,
            fingerprint=whole,
            pretrained=tuple(pretrained),
            command=command,
            accept_versions=accept_versions,
        )

    def sent_to(self, storage: str) -> TrainJob:
        """The same run on copies of its inputs in a store, each below its digest; what is there is not sent again."""
        return replace(
            self,
            shards=upload(Path(self.shards), inside(storage, "shards")),
            pretrained=tuple(
                replace(source, path=send(Path(source.path), inside(storage, "weights"))) for source in self.pretrained
            ),
        )


def fingerprint(
    data_digest: str,
    recipe: Recipe,
    seed: int,
    code: str,
    pretrained: Sequence[PartSource] = (),
    more: Mapping[str, Any] | None = None,
) -> str:
    """Hex SHA-256 of what decides the result of training: a run, a search or a cell of a study.

    Not of the machine: ranks, threads and processor. Nor of the libraries' versions: where they change, resuming is
    refused (`TrainState.check`) and nothing is lost; another fingerprint would start over silently.
    """
    parts = {
        "data": data_digest,
        "recipe": recipe.model_dump(mode="json"),
        "pretrained": [source.identity for source in pretrained],
        "seed": seed,
        "code": code,
        **(more or {}),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def decisive_versions() -> dict[str, str]:
    """The libraries whose version may change the bits of a result, without what follows a "+" (+cpu, +cu130)."""
    installed = versions()
    return {name: installed[name].partition("+")[0] for name in _DECISIVE}
