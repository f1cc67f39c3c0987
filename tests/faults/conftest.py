"""The limit of each test here is meant for two idle cores; a machine that is slower, or busy, gets more."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders.limits import patience


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Scales `timeout`, the default of pyproject.toml and a mark's own, by how slow this machine is."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            mark = item.get_closest_marker("timeout")
            limit = float(mark.args[0] if mark else config.getini("timeout"))
            item.add_marker(pytest.mark.timeout(patience(limit)), append=False)
