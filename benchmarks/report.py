"""`fer bench report`: the size of the report, and how long Chromium takes to open it."""

import argparse
import shutil
import statistics
from pathlib import Path

from benchmarks.result import BenchResult, benchmark
from fer import params
from fer.stages import report


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", type=Path, default=Path(), help="folder of params.yaml (default: this one)")
    parser.add_argument("--rounds", type=int, default=5, help="how often the page is opened (default 5)")


@benchmark("report", help="reports/index.html: its size, and the time to open it in Chromium", arguments=_arguments)
def run(args: argparse.Namespace) -> BenchResult:
    """Makes the report of a project, and opens it, each time in a browser without a cache."""
    from playwright.sync_api import sync_playwright

    if (chromium := shutil.which("chromium")) is None:
        raise ValueError("fer bench report opens the page in Chromium: apt-get install chromium")
    path = report.run(params.load(args.project.resolve() / params.FILE_NAME))
    loaded, busy, faces = [], [], 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(args.rounds + 1):  # the first one starts the browser's processes
            context = browser.new_context()
            page = context.new_page()
            session = context.new_cdp_session(page)
            session.send("Performance.enable")
            page.goto(path.resolve().as_uri(), wait_until="load")
            loaded.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventStart"))
            metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
            busy.append(1000 * metrics["TaskDuration"])
            faces = page.locator("button[data-cell]").count()
            context.close()
        browser.close()
    row = {
        "report": str(path),
        "MB": round(path.stat().st_size / 1e6, 2),
        "cells with faces": faces,
        "load event ms": round(statistics.median(loaded[1:])),
        "fastest ms": round(min(loaded[1:])),
        "main thread ms": round(statistics.median(busy[1:])),
    }
    notes = [
        "load event: from the navigation's start to the page's load event, median; the page is complete and sorts then",
        "main thread: time of Chromium's tasks for the page until then",
    ]
    return BenchResult("The report in Chromium", [row], notes, {"rounds": args.rounds})
