"""A wrong key, type or value is rejected by name, with the nearest valid key."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from fer.config import Config, ConfigError, parse, read_yaml


class Inner(Config):
    rate: float = Field(0.1, gt=0, le=1)


class Outer(Config):
    size: int = Field(112, ge=16)
    kind: Literal["linear", "cubic"] = "linear"
    window: tuple[float, float] = (0.5, 1.0)
    inner: Inner = Inner()
    many: dict[str, Inner] = Field(default_factory=dict)


def test_lists_become_tuples_and_integers_floats() -> None:
    assert parse(Outer, {"window": [1, 2], "inner": {"rate": 1}}, "f.yaml").window == (1.0, 2.0)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ({"siez": 3}, ["f.yaml", "'siez'", "did you mean 'size'"]),
        ({"inner": {"raet": 3}}, ["'inner.raet'", "did you mean 'rate'"]),
        ({"many": {"a": {"rat": 3}}}, ["'many.a.rat'", "did you mean 'rate'"]),
        ({"size": "112"}, ["size = '112'", "integer"]),
        ({"size": 3}, ["size = 3", "greater than or equal to 16"]),
        ({"size": True}, ["size = True", "integer"]),
        ({"kind": "cubik"}, ["kind = 'cubik'", "did you mean 'cubic'"]),
        ({"inner": {"rate": 2}}, ["inner.rate = 2", "less than or equal to 1"]),
        ({"window": [1]}, ["window"]),
    ],
)
def test_mistake_names_file_key_value_and_remedy(data: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Outer, data, "f.yaml")
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Outer, {"size": 3, "kind": 4}, "f.yaml")
    assert len(str(caught.value).splitlines()) == 2


def test_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        read_yaml(tmp_path / "absent.yaml")
