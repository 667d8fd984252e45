"""Progress of a run: a live line on a terminal, a line from time to time in a log file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from dino_exp import streams
from dino_exp.console import LOG_LINES, Console
from dino_exp.dino.verdict import Verdict
from dino_exp.errors import in_words, warn
from dino_exp.eval.periodic import main_figures
from dino_exp.metrics import KNN, shown_in

COLORS = {"healthy": "green", "slow": "yellow", "warming-up": "cyan"}


def verdict_text(verdict: Verdict) -> Text:
    """Return the word of a verdict in its color: red for collapsed and diverged."""
    return Text(verdict.word, style=f"bold {COLORS.get(verdict.word, 'red')}")


class RunProgress:
    """A display of steps, loss, teacher entropy, KL, center norm, k-NN, images/s, time left, and verdict."""

    def __init__(self, console: Console, stop_step: int) -> None:
        self.console, self.stop_step = console, stop_step
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("steps, left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("starting", total=stop_step)
        self._stats = Text("")
        self._live: Live | None = None
        self._last_line = 0
        self._shown = 0.0
        self._said_lost = False

    def __enter__(self) -> RunProgress:
        if self.console.is_interactive:
            group = Group(self._bar, self._stats)
            self._live = Live(group, console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def step(self, step: int) -> None:
        """Update the bar; cheap enough for every step."""
        now = time.monotonic()
        if self._live and now - self._shown > 0.2:
            self._bar.update(self._task, completed=step)
            self._shown = now

    def logged(self, step: int, metrics: Mapping[str, Any], verdict: Verdict) -> None:
        """Show a logged step's metrics (names as in metrics.jsonl)."""
        text = Text("  ".join(self._numbers(metrics)))
        if self._live:
            self._bar.update(self._task, completed=step, description=verdict_text(verdict).markup)
            self._stats.plain = text.plain
        elif (
            step == self.stop_step
            or main_figures(metrics)
            or step - self._last_line >= self.stop_step / LOG_LINES
        ):
            self._last_line = step
            self.console.print(f"step {step}/{self.stop_step}", text, "", verdict_text(verdict))
        if (lost := streams.failure()) and not self._said_lost:
            self._said_lost = True
            warn([f"standard output: {in_words(lost)}. The run continues without it."])

    @staticmethod
    def _numbers(metrics: Mapping[str, Any]) -> list[str]:
        return [
            f"{row.short.replace(' / ', '/')} {format(metrics[row.key], row.form).replace(',', '')}"
            + ("%" if row.unit == "percent" else "")
            for row in shown_in("progress")
            if metrics.get(row.key) is not None
        ] + [f"{name} {value:.1f}%" for name, value in main_figures(metrics).items() if name != KNN.key]
