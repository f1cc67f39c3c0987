"""The site's pages that are made of code: every model has a card, whose numbers are those of the code."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml_text

from fer.models import list_models

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_model_of_ours_has_a_card(hooks: ModuleType) -> None:
    named = [name for names in hooks.models().values() for name in names]
    assert {"ddamfn", "poster_v2", "btn", "lhc_net", "dynamic_vit_base"} <= set(named)
    assert len(named) == len(set(named))
    assert set(named) <= set(list_models())


def test_a_card_has_cost_options_recipes_weights_and_results(hooks: ModuleType) -> None:
    text = hooks.card("ddamfn", hooks.cards()["ddamfn"])
    for expected in ("4,105,999", "`num_heads=2`", "`ddamfn/paper_rafdb`", "`ddamfn_rafdb`", "RAF-DB", "../results.md"):
        assert expected in text
    assert "`btn" not in text
    tables = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().splitlines()}) == 1


def test_links_of_the_files_beside_docs_lead_to_pages(hooks: ModuleType) -> None:
    found = hooks.relinked(
        "[a](docs/faces.md) [b](CONTRIBUTING.md#map) [c](CHANGELOG.md) [d](fer/cli.py) [e](https://x.y)"
    )
    assert found == "[a](faces.md) [b](contributing.md#map) [c](changes.md) d [e](https://x.y)"


def test_every_page_is_in_the_navigation_and_nothing_is_asked_of_other_servers() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    nav = yaml_text.load(text)
    pages = set(re.findall(r"[a-z-]+\.md", str(nav["nav"])))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= pages
    assert nav["strict"] is True
    assert nav["theme"]["font"] is False
    assert "extra_javascript" not in nav
