"""`evaluations.json`: one record per evaluation, with its network, images, settings and figures."""

from __future__ import annotations

import datetime
import hashlib
import json
from pathlib import Path
from typing import Any

from filelock import FileLock
from omegaconf import OmegaConf

from dino_exp.atomic import write_atomically
from dino_exp.config.compose_evaluation import needs_data, own_size
from dino_exp.config.evaluate_config import EvaluateConfig
from dino_exp.errors import UserError, in_words
from dino_exp.eval.opening import Origin
from dino_exp.eval.subject import Findings, Subject
from dino_exp.runs import environment, former_names
from dino_exp.runs.run_directory import to_json
from dino_exp.runs.run_files import parse_json, read_bytes

FILE = "evaluations.json"
IDENTITY = ("evaluation", "weights", "backbone", "data", "settings", "images")
"""Fields that identify a record; a newer record replaces an older one that is equal in them."""


def about(
    name: str, cfg: EvaluateConfig, subject: Subject, origin: Origin, content: str | None = None
) -> dict[str, Any]:
    """Return the part of a record that is known before the evaluation; `content` is that of the images."""
    weights = {"name": origin.name, **vars(origin), "file": str(origin.file)}
    del weights["report"]
    size = {"image_size": subject.image_size, "crop_ratio": subject.crop_ratio}
    size = size if own_size(name, cfg) else {}
    return {
        "evaluation": name,
        "weights": weights,
        "data": OmegaConf.to_container(cfg.data, resolve=True) if needs_data(name, cfg) else None,
        **({"data_content": content} if content and needs_data(name, cfg) else {}),
        "settings": OmegaConf.to_container(getattr(cfg, name), resolve=True),
        "backbone": OmegaConf.to_container(cfg.backbone, resolve=True),
        "images": {
            **size,
            "mean": list(subject.mean),
            "std": list(subject.std),
            "precision": str(subject.autocast_type or "float32").removeprefix("torch."),
            "seed": subject.seed,
        },
    }


def key(record: dict[str, Any]) -> str:
    """Return eight hex digits that identify a record; the content of weights and images counts.

    They are computed from first names, so that a record and its folder stay the same when names change.
    """
    table, name = former_names.TABLE, str(record.get("evaluation"))
    parts = {part: record.get(part) for part in IDENTITY}
    for part, group in (("backbone", "backbone"), ("data", "data"), ("settings", name)):
        if isinstance(node := parts[part], dict):
            parts[part] = table.first_node(group, node)
    if isinstance(weights := parts["weights"], dict):
        parts["weights"] = {each: weights.get(each) for each in ("sha256", "network")}
    if isinstance(images := parts["images"], dict):
        parts["images"] = {table.first_metric(each): value for each, value in images.items()}
    parts["evaluation"] = table.first_value("evaluation", record.get("evaluation"))
    if content := record.get("data_content"):  # which earlier versions did not record
        parts["data_content"] = content
    first = {table.first_metric(part): value for part, value in parts.items()}
    text = json.dumps(first, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]


def completed(record: dict[str, Any], findings: Findings, seconds: float, subject: Subject) -> dict[str, Any]:
    """Return the record with the findings."""
    return record | {
        "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **vars(findings),
        "files": [str(path) for path in findings.files],
        "seconds": round(seconds, 2),
        "environment": environment.environment(subject.device),
    }


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the records in a folder, in present names, the newest last.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / FILE
    if not file.exists():
        return []
    try:
        records = parse_json(read_bytes(file))
        if not isinstance(records, list) or not all(isinstance(each, dict) for each in records):
            raise ValueError("no list of records")
    except OSError as error:
        raise UserError(f"{in_words(error)}.") from None
    except ValueError as error:
        raise UserError(
            f"{file}: damaged ({error}); move it away, and evaluations are added to a new one."
        ) from None
    return [former_names.TABLE.present_evaluation(each) for each in records]


def folder_of(record: dict[str, Any]) -> Path:
    """Return the folder of an evaluation's files, relative to the folder of the run."""
    name = former_names.TABLE.first_value("evaluation", record["evaluation"])
    return Path("evaluations") / f"{name}_{key(record)}"


def add(folder: Path, record: dict[str, Any]) -> None:
    """Add a record to the file, in the place of an earlier one with the same key."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".evaluations.lock"):
        others = [each for each in read(folder) if key(each) != key(record)]
        text = to_json([*others, record], indent=2)
        write_atomically(folder / FILE, lambda file: file.write(text.encode()))
