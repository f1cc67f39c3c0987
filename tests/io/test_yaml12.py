"""YAML 1.2: the values that DVC reads, limits that hold before any value is built, and output for every reader."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fer.commands import weights
from fer.config import ConfigError, read_yaml
from fer.io import yaml12
from fer.weights.registry import register

SCALARS = (
    "off", "on", "yes", "No", "y", "N", "true", "False", "TRUE", "null", "~", "", "Null", "1:30", "190:20:30", "1:30.5",
    "010", "0o17", "0b11", "0x1F", "1_000", "1e3", "1.5e3", "1E-5", "+12", "-0", "-0.0", "1.", ".5", "12e03", "1__0",
    "2024-01-31", "2001-12-14 21:59:43.10 -5", "2001-12-15T02:59:43.1Z", "12:30:45", "v1.2", "1.2.3", "'off'", '"010"',
    '"\\u00e9\\t"', "a #b", "a#b", "08", "0.1e", "1,000", "?x", "<<x", "é", "|\n  one\n  two", ">-\n  one\n  two",
)  # fmt: skip

DOCUMENTS = (
    "a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}",
    "a: &x {p: 1}\nb: &y {p: 2, r: 3}\nc: {<<: [*x, *y], s: 4}",
    "a: &x [1, 2]\nb: *x\nc: {d: *x}",
    "a: &x off\nb: *x",
    "1: one\n0x2: two",
    "off: 1\nyes: 2",
    "---\na: 1\n...\n",
    "%YAML 1.2\n---\na: off",
    "\ufeffa: 1",
    "a: 1\r\nb: off\r\n",
    "? a\n: 1",
    "a:\n- 1\n- {b: [c, d]}\n-",
)


@pytest.mark.parametrize("text", [f"key: {scalar}" for scalar in SCALARS] + list(DOCUMENTS))
def test_dvc_reads_the_same_values(text: str, tmp_path: Path) -> None:
    from dvc.utils.serialize import load_yaml

    path = tmp_path / "params.yaml"
    path.write_bytes(text.encode())
    # The text says the types too: 1, 1.0 and True are equal.
    assert repr(yaml12.load(path.read_bytes())) == repr(load_yaml(str(path)))


@pytest.mark.parametrize(
    ("text", "value"),
    [("off", "off"), ("1:30", "1:30"), ("010", 10), ("0o17", 15), ("1e3", 1000.0), ("1_000", 1000), ("no", "no")],
)
def test_scalars_follow_yaml_12(text: str, value: object) -> None:
    assert yaml12.load(f"key: {text}".encode()) == {"key": value}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"]) | st.sampled_from("\n\t"))
    | st.sampled_from([text.strip("'\"") for text in SCALARS if "\\" not in text]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcyno019:- #"), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["a", "off", "1:30", "010", "~"]), JSON, min_size=1))
def test_dumped_values_are_loaded_by_readers_of_yaml_12_and_11(value: dict[str, Any]) -> None:
    import yaml  # of YAML 1.1; albumentations needs it

    text = yaml12.dump(value)
    assert repr(yaml12.load(text.encode())) == repr(value)
    assert repr(yaml.safe_load(text)) == repr(value)


def test_weights_list_prints_entries_that_can_be_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    for name, entry in register().items():
        weights._list(argparse.Namespace(name=name, json=False))
        assert yaml12.load(capsys.readouterr().out.encode()) == entry.model_dump(exclude_none=True)


@pytest.mark.parametrize("size", [10, 50_000])
def test_huge_file_is_refused_unread(size: int, tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as handle:
        handle.truncate(size * 2**20)  # a hole, which takes no space
    with pytest.raises(ConfigError, match=r"huge\.yaml: larger than 256 KiB$"):
        read_yaml(path)


def test_values_without_a_form_in_json_are_refused() -> None:
    with pytest.raises(yaml12.YamlError, match=r"a\.0\.b = inf: not a finite number"):
        yaml12.load(b"a: [{b: .inf}]")
    assert math.isfinite(yaml12.load(b"a: 1e308")["a"])
