"""One attempt at a run, and how it ended."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from omegaconf import DictConfig

from dino_exp.config.identity import run_id
from dino_exp.config.schema import Config
from dino_exp.errors import FAILED, INTERRUPTED, UserError, known_words, refuse, report


@dataclass(frozen=True)
class Outcome:
    """The end of one run."""

    run_id: str
    state: str
    exit_code: int
    message: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Those of its end: knn_top1, loss, ..."""
    directory: Path | None = None
    """None for a run that was never started, or of which a manifest tells."""


def attempt(
    cfg: Config | DictConfig, directory: Path, group: str | None, keep: Collection[Path] = ()
) -> Outcome:
    """Train, and turn whatever happens into an outcome.

    After an error that the other processes do not share, this process exits at once: they may wait for it
    forever. Of the empty folders that Hydra made for a run that was never started, `keep` was there before.
    """
    from dino_exp.parallel import distributed
    from dino_exp.training.run import train

    name, together = run_id(cfg), not distributed.several()
    try:
        result = train(cast(Config, cfg), directory, group)
        return Outcome(name, result.state, result.exit_code, result.message, result.metrics, result.directory)
    except UserError as error:
        if distributed.is_main():
            remove_if_empty(directory, keep)
            refuse([str(error)])
        together = together or isinstance(error, distributed.AgreedError)
        outcome = Outcome(name, "failed", error.exit_code, str(error))
    except KeyboardInterrupt:
        outcome = Outcome(name, "preempted", INTERRUPTED, "stopped by Ctrl-C")
    except Exception as error:
        if not isinstance(error, distributed.OtherFailedError):
            report(error, "Once that is repaired, the same command resumes from the last checkpoint.")
        outcome = Outcome(name, "failed", FAILED, known_words(error) or f"{type(error).__name__}: {error}")
    if not together:
        distributed.leave(outcome.exit_code)
    return outcome


def remove_if_empty(directory: Path, keep: Collection[Path]) -> None:
    """Remove a folder and those above it while they are empty, up to one of `keep`."""
    for folder in (directory, *directory.parents):
        if folder in keep:
            return
        try:
            folder.rmdir()
        except OSError:
            return
