"""The sweepers that propose runs one after another, and what their settings and spaces must be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dino_exp.config.fields import number
from dino_exp.config.launcher_settings import OptunaSettings
from dino_exp.config.search_space import Numbers, Space


@dataclass(kw_only=True)
class BoundarySettings:
    """Where training ends and collapse begins, over two or three keys with an interval each."""

    _target_: str = "hydra_plugins.dino_exp_launchers.BoundarySweeper"
    n_runs: int = number(20, at_least=4, hint="fewer say nothing about a boundary")
    """Runs in all, those of earlier times in the same intervals included."""
    n_jobs: int = number(4, at_least=1)
    """Runs at one time; the next ones are chosen when all of them have ended."""
    tolerance: float = number(0.01, at_least=0, below=1)
    """Share of the space that may change sides between two batches; the search ends after the second batch in
    a row that moves the boundary less. 0 uses all runs."""
    seed: int = number(0, at_least=0)
    """Seed of the first points and of the candidates for the next ones."""
    params: dict[str, Any] = field(default_factory=dict)
    """The space, in a file: loss.teacher_temp: interval(0.02,0.1). What is typed wins."""


ENDS_EARLY = {
    "optuna": ("trainer.on_collapse=stop",),
    "boundary": ("trainer.on_collapse=stop", "trainer.on_healthy=stop"),
}
"""What ends the runs of each search as soon as what it asks is settled, unless the user types another value:
for a boundary their verdict, for Optuna a collapse alone, since a healthy run is compared at its end."""
SEARCHES: dict[str, type] = {"optuna": OptunaSettings, "boundary": BoundarySettings}


def key_problems(search: str, spaces: Sequence[Space]) -> Iterator[str]:
    """Yield why a search cannot look through the space of each key, one per line."""
    for space in spaces:
        fractions = isinstance(space, Numbers) and not space.whole and space.step is None
        if search == "boundary" and not fractions:
            yield (
                f"{space.key}: a boundary is searched over intervals of fractions; write "
                f"'{space.key}=interval(LOW,HIGH)', or give it one value."
            )
        elif search != "boundary" and isinstance(space, Numbers) and space.momentum:
            yield f"{space.key}: tag momentum is for hydra/sweeper=boundary; remove it."


def number_problem(keys: int) -> str:
    """Return why there is no boundary over so many keys."""
    what = {0: "a single point", 1: "that of one key"}.get(keys, f"that of {keys} keys")
    return (
        f"hydra/sweeper = boundary: the space is {what}; give two or three keys an interval, e.g. "
        "'loss.teacher_temp=interval(0.02,0.1)' 'loss.center_momentum=interval(0,0.999)'."
    )
