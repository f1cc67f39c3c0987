"""The plan stage: is everything that `dvc repro` is about to do right, and what has changed outside the project?

    data/plan/<stage>/<item>.json   what each other stage depends on; appears complete, by rename

It runs first and every time: a name that is refused reaches no shell, and no output of others is removed.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from fer.io.files import write_json
from fer.outputs import EVALUATED, FACES, PLAN, RAW, SHARDS, STATISTICS, TRAINED
from fer.params import Params

_OF_DATASET = {"download": (RAW,), "crop": (FACES,), "shard": (SHARDS, STATISTICS)}
_OF_MODEL = {"train": (TRAINED,), "evaluate": (EVALUATED,)}


def checked_items(params: Params) -> list[str]:
    """Every `<stage>/<item>` of `params.run`, with what lies in the place of its outputs looked at.

    Raises:
        FileError: a folder or file that is not ours to replace.
    """
    items = []
    for stages, keys in (
        (_OF_DATASET, [(dataset,) for dataset in params.run.datasets]),
        (_OF_MODEL, list(product(params.run.datasets, params.run.models))),
    ):
        for (stage, outputs), names in product(stages.items(), keys):
            for output in outputs:
                output.folder(params.root, *names)
            items.append(f"{stage}/{'-'.join(names)}")
    return items


def run_plan(params: Params) -> Path:
    """Checks where the stages of `params.run` write, looks for changed data, and writes what the stages depend on.

    Returns:
        the folder data/plan.

    Raises:
        ValueError: an output that is not ours to replace, or data that may not be read.
    """
    from fer.sources.origin import origin_digest

    items: dict[str, dict[str, Any]] = {item: {} for item in [*checked_items(params), "report"]}
    for dataset in params.run.datasets:
        digest = origin_digest(dataset, params.dataset(dataset), params.root, params.home)
        items[f"download/{dataset}"]["origin"] = digest
    final = PLAN.folder(params.root)
    with PLAN.publish(final) as out:
        for item, content in items.items():
            write_json(out / f"{item}.json", content)
    return final
