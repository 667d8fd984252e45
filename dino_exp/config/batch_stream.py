"""What determines the batches of crops that a run is trained on: runs that agree in it can share them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dino_exp.config.identity import settings

GROUPS = ("crops.", "augment.", "data.")
KEYS = {"data_content", "trainer.seed", "trainer.batch_size"}
SHOWN = 3
"""Keys in a sentence."""


def stream_settings(cfg: Any) -> dict[str, Any]:
    """Return the values that determine the batches, by dotted key."""
    return {key: value for key, value in settings(cfg).items() if key in KEYS or key.startswith(GROUPS)}


def who_shares(streams: Sequence[dict[str, Any]]) -> str:
    """Return in words which runs share their batches, given the `stream_settings` of each."""
    keys = dict.fromkeys(key for stream in streams for key in stream)
    different = [key for key in keys if any(each.get(key) != streams[0].get(key) for each in streams)]
    if not different:
        return "Runs that train at the same time share their batches of images."
    named = ", ".join(different[:SHOWN]) + ", ..." * (len(different) > SHOWN)
    differs = f"{named} {'differ' if len(different) > 1 else 'differs'}"
    if any(stream in streams[:number] for number, stream in enumerate(streams)):
        return f"{differs}: of the runs that train at the same time, those that agree share their images."
    return f"{differs}: these runs do not share images."
