"""What holds for every test: one thread, no plots unless it looks at them, nothing left running."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from tests import programs
from tests.browser import browser as browser  # a fixture

# before torch is imported: threads that wait for one another are slow beside other work, and round otherwise
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONPATH"] = str(programs.ROOT)  # processes that work in other folders find this code

FIRST = ("slurm", "tracker")
"""Folders whose tests mostly wait, and so begin before the others."""


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: one worker per core, and one more for the tests that wait for SLURM."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what opens a browser, and put the slow folders first."""
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
    """Have trainings in this process draw only where the test is marked `plots`."""
    run = sys.modules.get("dino_exp.train.run")  # importing it takes seconds, which few files need
    if run is not None and not request.node.get_closest_marker("plots"):
        programs.without_plots(lambda name, nothing: monkeypatch.setattr(run, name, nothing))
