"""`python -m dino_exp.tracker.mlflow_sync RUN ...` sends runs that have ended to an MLflow server.

The server gets what it lacks: all of a run that was trained without it, or the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dino_exp.config.stored import read_plain
from dino_exp.console import Console, log_lines_on
from dino_exp.errors import FAILED, UserError, program, refuse
from dino_exp.paths import expanded
from dino_exp.runs.manifest import Manifest
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.tracker import RunInfo, tracker_id_of
from dino_exp.tracker.mlflow import MlflowTracker

SECONDS = 600.0
"""How long the server may take for a run."""


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Send the runs in these folders; return the exit code."""
    folders = list(sys.argv[1:] if arguments is None else arguments)
    if not folders or any(word.startswith("-") for word in folders):
        return refuse(["give folders of runs, e.g. python -m dino_exp.tracker.mlflow_sync outputs/demo/*"])
    with log_lines_on(Console()):
        sent = [send(expanded(folder)) for folder in folders]
    return 0 if all(sent) else FAILED


def send(path: Path) -> bool:
    """Send a run; return whether all of it has arrived.

    Raises:
        UserError: it is no run, or still training, or no server is named.
    """
    directory = RunDirectory(path)
    status, config = directory.read_status(), read_plain(directory)
    if directory.is_held():
        raise UserError(f"{path}: still training in another process, which sends it.")
    folder = path.absolute().parent
    tracker = MlflowTracker(**_settings(config), mode="online", timeout=SECONDS)
    tracker.start(
        RunInfo(
            directory=path.absolute(),
            name=path.absolute().name,
            group=folder.name if Manifest.path(folder).exists() else None,
            config=config,
            tracker_id=tracker_id_of(path, status),
        )
    )
    for image in sorted(directory.plots.glob("*.png")):
        tracker.image(image.stem, image, status.get("step", 0))
    state = status.get("state")
    summary = {**directory.read_summary(), "state": state}
    tracker.finish(summary, 0 if state in ("finished", "collapsed") else 1)
    return tracker.complete


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run's own settings of MLflow; none if it had another tracker."""
    node = config.get("tracker") or {}
    mine = str(node.get("_target_", "")).endswith(".MlflowTracker")
    return {name: node.get(name) for name in ("tracking_uri", "experiment", "tags")} if mine else {}


if __name__ == "__main__":
    sys.exit(main())
