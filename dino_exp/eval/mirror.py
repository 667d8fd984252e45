"""The tracker's copy of an evaluation, which joins that of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dino_exp.config.evaluate_config import EvaluateConfig
from dino_exp.config.stored import read_plain
from dino_exp.config.targets import build
from dino_exp.console import Console, log_lines_on
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.tracker import RunInfo, Tracker

IMAGES = (".png", ".gif")


def mirror(cfg: EvaluateConfig, folder: Path, records: list[dict[str, Any]], console: Console) -> None:
    """Send figures, as eval/<evaluation>/<figure>, and images; of a weights file as a run of its own."""
    directory, step = RunDirectory(folder), 0
    of_run = directory.config_file.exists()  # not where the run's own folder cannot be written
    status = directory.read_status() if of_run else {}
    if of_run:
        if directory.is_held():
            console.print(
                "The run is still training in another process: these results are not sent to its tracker."
            )
            return
        config: Any = read_plain(directory)
        step = records[0]["weights"]["step"] or 0
    else:
        config = OmegaConf.to_container(cfg, resolve=True)
    with log_lines_on(console):
        tracker: Tracker = build(cfg.tracker)
        tracker.start(
            RunInfo(
                directory=folder,
                name=folder.name,
                group=None,
                config=config,
                # the same for the same weights, so that a second evaluation joins the first
                tracker_id=status.get("tracker_id") or f"eval{records[0]['weights']['sha256'][:12]}",
                resume_step=step,
            )
        )
        for record in records:
            figures = {
                f"eval/{record['evaluation']}/{name}": value for name, value in record["figures"].items()
            }
            tracker.log(figures, step)
            for file in record["files"]:
                if file.endswith(IMAGES):
                    tracker.image(f"eval/{record['evaluation']}/{Path(file).stem}", folder / file, step)
        tracker.finish({}, exit_code=1 if status.get("state") == "failed" else 0)
