"""The report in a real browser: Debian's Chromium, without a window."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from builders.published import make_project, publish_training

from fer.io.files import read_json, write_json
from fer.stages import report
from fer.stages.evaluate import run as run_evaluation

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report on three models, one of them without a result."""
    params = make_project(tmp_path_factory.mktemp("project"))
    params = replace(params, recipes={key: params.recipe("nano") for key in ("nano", "other", "third")})
    for key, accuracy in (("nano", 0.4), ("other", 0.6)):
        publish_training(params, key=key)
        folder = run_evaluation(params, "toy", key)
        write_json(folder / "test.json", read_json(folder / "test.json") | {"accuracy": accuracy})
        write_json(folder / "run.json", read_json(folder / "run.json") | {"latency_ms": 10 * accuracy})
    publish_training(params, key="third")
    return report.run(params).as_uri()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any, address: str) -> Iterator[Any]:
    """The page, loaded; every message of its console and every error is a failure, and so is a request."""
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request", lambda request: problems.extend([] if request.url.startswith(("file:", "data:")) else [request.url])
    )
    page.goto(address, wait_until="load")
    yield page
    page.close()
    assert problems == []


def models(page: Any) -> list[str]:
    return [
        str(text).strip() for text in page.locator("#leaderboard tbody > tr > th:nth-child(2) > a").all_inner_texts()
    ]


def test_header_buttons_sort_the_leaderboard_by_mouse_and_keyboard(page: Any) -> None:
    assert models(page) == ["other", "nano", "third"]
    latency = page.locator("#leaderboard th[data-key=latency_ms]")
    latency.get_by_role("button").click()
    assert latency.get_attribute("aria-sort") == "ascending"
    assert models(page) == ["nano", "other", "third"], "the fastest first, those without the value last"
    page.keyboard.press("Enter")
    assert latency.get_attribute("aria-sort") == "descending"
    assert models(page) == ["other", "nano", "third"]
    page.locator("#leaderboard th[data-key=model] button").press("Enter")
    assert latency.get_attribute("aria-sort") is None
    assert models(page) == ["nano", "other", "third"]


def test_a_confusion_cell_opens_its_faces_by_keyboard_and_gives_the_focus_back(page: Any) -> None:
    cell = page.locator("button[data-cell]").first
    name = str(cell.get_attribute("aria-label"))
    cell.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name=name.partition(":")[0])
    assert dialog.is_visible()
    images = dialog.locator("img")
    assert images.count() > 0
    assert images.evaluate_all("all => all.every(one => one.complete && one.naturalWidth > 0 && one.alt)")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert cell.evaluate("one => one === document.activeElement")


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_no_width_makes_the_page_scroll_sideways(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_everything_that_is_shown_has_a_name(page: Any) -> None:
    unnamed = "all => all.filter(one => !(one.innerText || one.getAttribute('aria-label'))).length"
    assert page.locator("button, a, svg[role=img], [role=region]").evaluate_all(unnamed) == 0
    assert page.locator("svg").count() == page.locator("svg[role=img]").count() > 0
    assert page.locator("table").count() == page.locator("table > caption").count()


def test_dark_and_light_follow_the_system(page: Any) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(background) != light
