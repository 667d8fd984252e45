"""Time for the report of a large sweep, which consists of copies of one run.

    python -m benchmarks.reports outputs/demo/RUN [--runs 1000] [--lines 2000]

The copies differ in teacher temperature, center momentum and seed. Their metrics.jsonl repeats the lines of
the real one with increasing steps. Measures the complete command `report.py SWEEP`, twice.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from benchmarks.measure import report
from dino_exp.config.stored import read_config
from dino_exp.runs.run_directory import RunDirectory, read_metrics

REPORT = Path(__file__).parents[1] / "report.py"


def multiply(run: RunDirectory, folder: Path, runs: int, lines: int) -> None:
    """Write `runs` copies of a run to `folder`."""
    cfg = read_config(run)
    real = [line for line in read_metrics(run.metrics_file) if "loss" in line]
    texts = [
        json.dumps(line | {"step": step}) for step, line in zip(range(1, lines + 1), itertools.cycle(real))
    ]
    metrics = "\n".join(texts) + "\n"
    side = round(runs ** (1 / 3))
    for number in range(runs):
        setting, seed = divmod(number, side)
        cfg.loss.teacher_temp = round(0.01 * (1 + setting % side), 4)
        cfg.loss.center_momentum = round(setting // side / (runs / side / side), 4)
        cfg.trainer.seed = seed
        copy = RunDirectory(folder / f"run_{number:08x}")
        copy.path.mkdir(parents=True)
        OmegaConf.save(cfg, copy.config_file)
        copy.metrics_file.write_text(metrics)
        for file in (run.status_file, run.summary_file):
            (copy.path / file.name).write_text(file.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--lines", type=int, default=2000)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder) / "sweep"
        multiply(RunDirectory(arguments.run), sweep, arguments.runs, arguments.lines)
        size = sum(file.stat().st_size for file in sweep.glob("*/metrics.jsonl"))
        for turn in ("first", "second"):
            start = time.perf_counter()
            subprocess.run([sys.executable, str(REPORT), str(sweep)], check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - start
            page = (sweep / "report" / "index.html").stat().st_size
            rows.append({"": turn, "seconds": seconds, "page, MB": page / 1e6, "metrics, MB": size / 1e6})
    title = f"report.py over {arguments.runs:,} runs with {arguments.lines:,} lines each"
    report("reports", title, rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
