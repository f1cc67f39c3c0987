"""A name of a dataset or model is the same in a path, a shell and a key of DVC, or is rejected."""

import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fer.config import ConfigError
from fer.names import check_keys, check_name

HOSTILE = [
    "", ".", "..", "../precious", "../../../precious_dir", "/etc", "a/b", "a\\b", "a;touch PWNED;", "$(id)", "`id`",
    "a b", "a\n", "a\nb", "a\0b", "a.b", "-x", "--force", "x-", "a--b", "~", "*", "${run}", "a'b", 'a"b', "a&b", "a|b",
    "é", "名", "\u0661", "\ud800", "a" * 65,
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("section", ["datasets", "models"])
def test_hostile_key_is_rejected_with_file_section_and_a_valid_name(section: str, name: str) -> None:
    keys = {"datasets": ["good"], "models": ["good"]}
    keys[section].append(name)
    with pytest.raises(ConfigError) as caught:
        check_keys(**keys, where="params.yaml")
    error = str(caught.value)
    assert error.startswith(f"params.yaml: {section}: ")
    assert "\n" not in error
    assert check_name(error.rpartition(" ")[2], "the remedy")


@given(st.text(max_size=70))
def test_accepted_name_is_the_same_in_a_path_a_shell_and_a_dvc_key(name: str) -> None:
    try:
        check_name(name, "x")
    except ConfigError:
        assert not re.fullmatch("[A-Za-z0-9_]{1,64}", name), "the documented names pass"
        return
    assert shlex.split(f"run --dataset {name} ; ls")[2] == name == shlex.quote(name)
    assert Path("/root", name).resolve() == Path("/root") / name
    assert Path(name).parts == (name,)
    assert "." not in name
    assert not name.startswith("-")


@pytest.mark.parametrize(("datasets", "models"), [(["rafdb", "RafDB"], ["m"]), (["d"], ["m_1", "M_1"])])
def test_keys_that_differ_only_in_case_are_rejected(datasets: list[str], models: list[str]) -> None:
    with pytest.raises(ConfigError, match="differ only in case"):
        check_keys(datasets, models, "params.yaml")


def test_old_key_with_a_dash_is_accepted_where_its_stages_have_unique_names() -> None:
    check_keys(["raf-db", "fer"], ["m", "small-m"], "params.yaml")
    with pytest.raises(ConfigError, match="'a' with 'b-c' and 'a-b' with 'c' make the same stage a-b-c"):
        check_keys(["a", "a-b"], ["b-c", "c"], "params.yaml")
