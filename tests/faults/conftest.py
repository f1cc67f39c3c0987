"""The time limits here are for two idle cores; a slower or busy machine gets more."""

from pathlib import Path

import pytest
from builders.limits import patience


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Scales the `timeout` of pyproject.toml or of a mark by how slow this machine is."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            mark = item.get_closest_marker("timeout")
            limit = float(mark.args[0] if mark else config.getini("timeout"))
            item.add_marker(pytest.mark.timeout(patience(limit)), append=False)
