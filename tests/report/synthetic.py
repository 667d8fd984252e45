"""Run and sweep folders as training writes them, without training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

LN_K = math.log(64)
BEGAN = 1_790_000_000.0
ENTROPY = {"healthy": 0.36, "slow": 0.8, "collapsed-uniform": 0.999, "collapsed-one-hot": 0.002}

CONFIG: dict[str, Any] = {
    "name": "demo",
    "backbone": {"name": "vit_micro", "patch_size": 4},
    "head": {"out_dim": 64},
    "crops": {"global_scale": [0.4, 1.0], "local_number": 2},
    "augment": {"flip": 0.5},
    "loss": {"teacher_temp": 0.02, "center_momentum": 0.5, "centering": "mean"},
    "ema": {"momentum": 0.99},
    "optimizer": {"lr": 0.008},
    "data": {"name": "shapes"},
    "trainer": {"batch_size": 32, "seed": 0, "device": "auto"},
}


def record(step: int, steps: int, verdict: str, wobble: float = 0.0) -> dict[str, Any]:
    """Return a line of metrics.jsonl with the metrics that reports use."""
    done = step / steps
    h = 0.9 + (ENTROPY.get(verdict, 0.5) - 0.9) * (1 - math.exp(-6 * done)) + 0.02 * math.sin(step + wobble)
    healthy = verdict == "healthy"
    return {
        "step": step,
        "epoch": int(6 * done),
        "images": 32 * step,
        "teacher/entropy_share": min(1.0, max(0.0, h)),
        "student/entropy_share": min(1.0, max(0.0, h + 0.1)),
        "teacher/mutual_information_share": (0.35 if healthy else 0.0) * (1 - math.exp(-6 * done)),
        "student/mutual_information_share": (0.2 if healthy else 0.0) * (1 - math.exp(-6 * done)),
        "teacher/feature_rank": 12.0 + 4 * done,
        "teacher/bottleneck_rank": 9.0,
        "loss": LN_K * min(1.0, h + 0.05),
        "kl_share": 0.25 if healthy else 0.001,
        "center_norm": 0.8,
        "ln_k": LN_K,
        "lr": 0.001 * (1 - done),
        "weight_decay": 0.04,
        "ema_momentum": 0.99 + 0.01 * done,
        "teacher_temp": 0.02,
        "images_per_second": 320.0,
        "data_wait_share": 0.03,
        "verdict": verdict,
    }


def lines(
    verdict: str, count: int, steps: int, knn: float | None, wobble: float = 0.0
) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl, with a k-NN at step 0 and six times after."""
    records = [record(max(1, steps * (index + 1) // count), steps, verdict, wobble) for index in range(count)]
    if knn is not None:
        for index in range(1, 7):
            at = records[max(0, count * index // 6 - 1)]
            at["knn_top1"], at["student_knn_top1"] = 20 + (knn - 20) * index / 6, 18 + (knn - 20) * index / 6
        records.insert(0, {"step": 0, "epoch": 0, "images": 0, "knn_top1": 20.0})
    return records


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in records))


def changed(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with dotted keys set."""
    result = json.loads(json.dumps(config))
    for key, value in values.items():
        *path, last = key.split(".")
        node = result
        for name in path:
            node = node[name]
        node[last] = value
    return result


def write_run(
    path: Path,
    *,
    verdict: str = "healthy",
    state: str = "finished",
    knn: float | None = 72.0,
    count: int = 24,
    steps: int = 900,
    values: Mapping[str, Any] = MappingProxyType({}),
    metrics: Path | None = None,
) -> Path:
    """Write a run with dotted keys of CONFIG set; its metrics are a link to the file `metrics`, if given."""
    write_json(path / "config.yaml", changed(CONFIG, values))  # JSON is YAML, and is written quickly
    records = lines(verdict, count, steps, knn, wobble=len(path.name))
    if metrics is None:
        write_lines(path / "metrics.jsonl", records)
    else:
        (path / "metrics.jsonl").hardlink_to(metrics)
    status = {"state": state, "step": steps, "total_steps": steps, "heartbeat": BEGAN + 900, "host": "node7"}
    first = {"began": BEGAN, "until": BEGAN + 300, "from_step": 0, "to_step": 300, "host": "node3"}
    second = {"began": BEGAN + 400, "from_step": 300, "host": "node7", "processes": 1}
    status["attempts"] = [each | {"job": "41_0"} for each in (first, second)]
    write_json(path / "status.json", status)
    if state in ("finished", "collapsed", "failed"):
        write_json(path / "summary.json", summary(verdict, state, knn, records[-1], steps))
    if state == "failed":
        (path / "traceback.txt").write_text(
            "Traceback (most recent call last):\nRuntimeError: <out of memory>\n"
        )
    return path


def summary(
    verdict: str, state: str, knn: float | None, final: Mapping[str, Any], steps: int
) -> dict[str, Any]:
    return {
        "state": state,
        "verdict": verdict,
        "evidence": "teacher entropy is 0.361 of ln K, KL is 0.2300 of ln K",
        "knn_top1": knn,
        "student_knn_top1": None if knn is None else knn - 2,
        "untrained_knn_top1": None if knn is None else 20.0,
        "steps": steps,
        "images_per_second": 320.0,
        "wall_seconds": 900.0,
        "environment": {"python": "3.11.7", "torch": "2.14.1"},
        "final": dict(final),
    }


def write_sweep(path: Path, runs: Sequence[Mapping[str, Any]], manifest: bool = True) -> Path:
    """Write a sweep; each of `runs` has `values` by dotted key, and arguments of `write_run`."""
    entries = {}
    for index, run in enumerate(runs):
        name = f"vit_micro_run{index}_{index:08x}"
        write_run(path / name, **run)
        overrides = [
            f"{key}={json.dumps(value) if isinstance(value, list) else value}"
            for key, value in run["values"].items()
        ]
        job = {"job": "local", "jobs": ["local"]}
        entries[name] = {"overrides": overrides, "config_hash": f"{index:08x}", **job}
    if manifest:
        write_json(path / "manifest.json", {"launcher": "local", "settings": {}, "runs": entries})
    return path


def temps_momenta(seeds: int = 1) -> list[dict[str, Any]]:
    """Return runs for `write_sweep` of which those with hot teachers or slow centers collapse."""
    runs = []
    temps, momenta = (0.02, 0.04, 0.07, 0.1, 0.2), (0, 0.9, 0.99, 0.999)
    for temp, momentum, seed in product(temps, momenta, range(seeds)):
        values = {"loss.teacher_temp": temp, "loss.center_momentum": momentum}
        values |= {"trainer.seed": seed} if seeds > 1 else {}
        verdict = "collapsed-uniform" if temp > 0.07 else "healthy"
        verdict = "collapsed-one-hot" if momentum == 0.999 else verdict
        knn = 20.4 + seed if verdict != "healthy" else 75 - 150 * temp - 3 * momentum + seed
        runs.append({"values": values, "verdict": verdict, "knn": knn})
    return runs
