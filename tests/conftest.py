"""Fixtures that every test may use."""

import logging
import os
from pathlib import Path

import pytest

from fer import console, processes
from fer.console import log

processes.keep_freed_memory()
processes.quiet_libraries()

_LONG = ("pipeline", "stages", "faults", "cluster")
_NEEDS = "needs real data: set FER_TEST_DATA to the folder that holds fer2013/, photos/ and bad/"


@pytest.fixture(autouse=True)
def _console() -> None:
    """A command that was called before sends the log to a stream which is closed now: each test starts without.

    The level is the log's own, because a library that is imported may set that of the root (MLflow's does).
    """
    log.handlers = [handler for handler in log.handlers if not isinstance(handler, console.BarSafeHandler)]
    log.propagate = True
    log.setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data; the test is skipped where the variable is not set, and fails where it points nowhere."""
    value = os.environ.get("FER_TEST_DATA")
    if not value:
        pytest.skip(_NEEDS)
    folder = Path(value)
    assert folder.is_dir(), f"FER_TEST_DATA={value} is no folder"
    return folder


@pytest.fixture(scope="session")
def device() -> str:
    """Where a test marked gpu runs: the GPU; with FER_TEST_DEVICE=cpu the processor, which shows that the test runs."""
    import torch

    chosen = os.environ.get("FER_TEST_DEVICE", "cuda:0")
    if chosen != "cpu" and not torch.cuda.is_available():
        pytest.skip("needs a GPU, and torch finds none; FER_TEST_DEVICE=cpu runs it on the processor")
    return chosen


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout under test."""
    return Path(__file__).resolve().parents[1]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole stages and clusters first: two workers that take file after file end with short ones, and so together."""
    items.sort(key=lambda item: item.path.parent.name not in _LONG)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A test of real data that was skipped although the data is there makes the run fail."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get("FER_TEST_DATA") or reporter is None:
        return
    skipped = [report.nodeid for report in reporter.stats.get("skipped", []) if "FER_TEST_DATA" in str(report.longrepr)]
    if skipped:
        reporter.write_line(f"skipped although FER_TEST_DATA is set: {', '.join(skipped)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
