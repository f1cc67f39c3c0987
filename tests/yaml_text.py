"""YAML in tests, by the library itself and not by ours."""

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML


def load(text: str) -> Any:
    """The value of a document."""
    return YAML(typ="safe").load(text)


def load_all(text: str) -> list[Any]:
    """The values of several documents."""
    return list(YAML(typ="safe").load_all(text))


def dump(value: Any) -> str:
    """A document."""
    yaml: Any = YAML(typ="safe")
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue()


def edit(path: Path, dotted: str, value: object) -> None:
    """Sets one key of a file, such as `train.workers`."""
    document = load(path.read_text())
    *parents, last = dotted.split(".")
    place = document
    for key in parents:
        place = place[key]
    place[last] = value
    path.write_text(dump(document))
