"""No stored fixture goes unused: which test module runs which is found in their source."""

import re
from pathlib import Path

from .conformance import ASSETS


def test_every_fixture_is_run() -> None:
    stored = {path.stem for path in ASSETS.glob("*.json")}
    sources = [path for path in Path(__file__).parents[1].rglob("*.py") if path != Path(__file__)]
    quoted = {name for path in sources for name in re.findall(r'"(\w+)"', path.read_text())}
    assert stored - quoted == set()
    assert len(stored) == 25
