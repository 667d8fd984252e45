"""Settings of all tests: one thread, no plots unless the test needs them, no processes left running."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from tests import programs
from tests.browser import browser as browser  # a fixture

# before torch is imported: more threads are slow while other tests run, and change rounding
os.environ.setdefault("OMP_NUM_THREADS", "1")
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as in a terminal, also where the tests run under nohup
os.environ["PYTHONPATH"] = str(programs.ROOT)  # for processes with another working directory

FIRST = ("slurm", "tracker")
"""Folders whose tests mostly wait, and therefore start before the others."""


def pytest_xdist_auto_num_workers() -> int:
    """Return the workers of `-n auto`: one per core, and one more for the tests that wait for SLURM."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that open a browser, and start the slow folders first."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
    items.sort(key=lambda item: item.path.parent.name not in FIRST)


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    yield
    programs.end_all()


@pytest.fixture(autouse=True)
def _no_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no plots in trainings of this process, unless the test is marked `plots`."""
    run = sys.modules.get("dino_exp.training.run")  # not imported here, as that takes seconds
    if run is not None and not request.node.get_closest_marker("plots"):
        programs.without_plots(lambda name, nothing: monkeypatch.setattr(run, name, nothing))
