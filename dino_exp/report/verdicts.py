"""What the words for the outcome of a run mean to a reader, and the mark that each has in a figure."""

from __future__ import annotations

from typing import NamedTuple


class Outcome(NamedTuple):
    """How a verdict or state is shown."""

    shape: str
    """Vega's name of a mark, or its path in a square from -1 to 1."""
    kind: str
    """One of `KINDS`, which curves are colored by."""
    meaning: str
    """A sentence."""


KINDS = ("healthy", "slow", "collapsed", "failed")
"""Of outcomes: learns, undecided, collapsed, came to no end."""

CROSS = "M-1,-.5L-.5,-1L0,-.5L.5,-1L1,-.5L.5,0L1,.5L.5,1L0,.5L-.5,1L-1,.5L-.5,0Z"
STAR = "M0,-1L.3,-.3L1,0L.3,.3L0,1L-.3,.3L-1,0L-.3,-.3Z"
BAR = "M-1,-.35L1,-.35L1,.35L-1,.35Z"
HOURGLASS = "M-.9,-1L.9,-1L0,0L.9,1L-.9,1L0,0Z"

OUTCOMES = {
    "healthy": Outcome("circle", "healthy", "The teacher's outputs depend on the image: it trains."),
    "slow": Outcome("diamond", "slow", "The outputs hardly depend on the image yet."),
    "warming-up": Outcome(HOURGLASS, "slow", "Too early for a verdict."),
    "recovered": Outcome("circle", "healthy", "It had collapsed, and trains again."),
    "collapsed-uniform": Outcome(
        "square", "collapsed", "Collapsed: every prototype is as likely as any other, for every image."
    ),
    "collapsed-one-hot": Outcome("triangle-up", "collapsed", "Collapsed: one prototype takes every image."),
    "collapsed-constant": Outcome(
        "triangle-down",
        "collapsed",
        "Collapsed: the same output for every image, neither flat nor one-hot.",
    ),
    "mixed": Outcome(STAR, "slow", "The runs of a cell came to different ends."),
    "diverged": Outcome(CROSS, "failed", "Diverged: a value is not a finite number any more."),
    "failed": Outcome("cross", "failed", "Failed: the program ended with an error."),
    "lost": Outcome("triangle-left", "failed", "Lost: nobody has the run any more, and it did not end."),
    "cancelled": Outcome("triangle-right", "failed", "Cancelled."),
    "preempted": Outcome(BAR, "slow", "Stopped and saved; it will go on."),
    "pending": Outcome(BAR, "slow", "Waiting: nothing was logged yet."),
    "running": Outcome(BAR, "slow", "Running; no verdict yet."),
}


def outcome_of(word: str) -> Outcome:
    """How an outcome is shown, also one that this version does not know.

    `running: healthy` and the like, of runs that go on, have their state's mark and the verdict's color.
    """
    state, colon, verdict = word.partition(": ")
    if colon and state in OUTCOMES:
        so_far = outcome_of(verdict)
        return Outcome(BAR, so_far.kind, f"{state.capitalize()}, so far: {so_far.meaning}")
    if word in OUTCOMES:
        return OUTCOMES[word]
    kind = "collapsed" if word.startswith("collapsed") else "slow"
    return Outcome("square" if kind == "collapsed" else "diamond", kind, f"{word[:1].upper()}{word[1:]}.")
