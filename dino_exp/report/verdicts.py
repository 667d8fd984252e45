"""Outcomes of runs: what each means, and its mark in figures."""

from __future__ import annotations

from typing import NamedTuple


class Outcome(NamedTuple):
    """How a verdict or state is shown."""

    shape: str
    """Vega's name of a mark, or an SVG path in a square from -1 to 1."""
    kind: str
    """One of `KINDS`, by which curves are colored."""
    meaning: str
    """A sentence for the reader."""


KINDS = ("healthy", "slow", "collapsed", "failed")
"""Groups of outcomes: learning, undecided, collapsed, ended without a result."""

CROSS = "M-1,-.5L-.5,-1L0,-.5L.5,-1L1,-.5L.5,0L1,.5L.5,1L0,.5L-.5,1L-1,.5L-.5,0Z"
STAR = "M0,-1L.3,-.3L1,0L.3,.3L0,1L-.3,.3L-1,0L-.3,-.3Z"
BAR = "M-1,-.35L1,-.35L1,.35L-1,.35Z"
HOURGLASS = "M-.9,-1L.9,-1L0,0L.9,1L-.9,1L0,0Z"

OUTCOMES = {
    "healthy": Outcome("circle", "healthy", "The teacher's outputs depend on the image: training works."),
    "slow": Outcome("diamond", "slow", "The outputs hardly depend on the image yet."),
    "warming-up": Outcome(HOURGLASS, "slow", "Too early for a verdict."),
    "recovered": Outcome("circle", "healthy", "It had collapsed, and has recovered."),
    "collapsed-uniform": Outcome(
        "square", "collapsed", "Collapsed: all prototypes are equally likely, for every image."
    ),
    "collapsed-one-hot": Outcome("triangle-up", "collapsed", "Collapsed: one prototype takes every image."),
    "collapsed-constant": Outcome(
        "triangle-down", "collapsed", "Collapsed: the same output for every image, neither flat nor one-hot."
    ),
    "mixed": Outcome(STAR, "slow", "The runs in the cell have different outcomes."),
    "diverged": Outcome(CROSS, "failed", "Diverged: a value is not a finite number."),
    "failed": Outcome("cross", "failed", "Failed: the program ended with an error."),
    "lost": Outcome("triangle-left", "failed", "Lost: no process holds the run, and it has not finished."),
    "cancelled": Outcome("triangle-right", "failed", "Cancelled."),
    "preempted": Outcome(BAR, "slow", "Stopped and saved; it can be resumed."),
    "pruned": Outcome(BAR, "slow", "Pruned: a search stopped it, because others do better."),
    "pending": Outcome(BAR, "slow", "Waiting: nothing has been logged yet."),
    "running": Outcome(BAR, "slow", "Running; no verdict yet."),
}


def outcome_of(word: str) -> Outcome:
    """Return how an outcome is shown, including outcomes that this version does not know.

    Outcomes of unfinished runs, such as `running: healthy`, have the mark of their state and the color of the
    verdict.
    """
    state, colon, verdict = word.partition(": ")
    if colon and state in OUTCOMES:
        so_far = outcome_of(verdict)
        return Outcome(BAR, so_far.kind, f"{state.capitalize()}, so far: {so_far.meaning}")
    if word in OUTCOMES:
        return OUTCOMES[word]
    kind = "collapsed" if word.startswith("collapsed") else "slow"
    return Outcome("square" if kind == "collapsed" else "diamond", kind, f"{word[:1].upper()}{word[1:]}.")
