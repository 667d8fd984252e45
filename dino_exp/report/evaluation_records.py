"""Records of evaluations.json, read without trusting them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from dino_exp.report.values import as_value, value_text
from dino_exp.runs import former_names
from dino_exp.runs.run_files import if_readable, number, parse_json, read_bytes, read_file

FILE = "evaluations.json"


class Kind(NamedTuple):
    """How an evaluation is presented."""

    title: str
    head: str
    """Head of a column."""
    figure: str
    """The main figure, shown where there is room for one."""


KINDS = {
    "knn": Kind("k-NN", "k-NN (eval) %", "top1_k20"),
    "linear": Kind("Linear classifier", "linear %", "top1"),
    "low_shot": Kind("Few labels", "few labels %", "top1_share0.01"),
    "finetune": Kind("Fine-tuning", "fine-tuned %", "top1"),
    "attention": Kind("Attention maps", "Jaccard %", "jaccard_mean"),
    "retrieval": Kind("Image retrieval", "retrieval mAP %", "roxford5k_map_medium"),
    "copy_detection": Kind("Copy detection", "copies mAP %", "map_strong"),
    "video_segmentation": Kind("Video segmentation", "J&F %", "jf_mean"),
    "embed": Kind("Features", "same class %", "same_class_k10"),
}
"""Evaluations in the order in which pages show them."""


def title(evaluation: str) -> str:
    """Return the title of an evaluation; of an unknown one, its name."""
    return KINDS[evaluation].title if evaluation in KINDS else evaluation


@dataclass(frozen=True)
class Result:
    """A record of evaluations.json."""

    evaluation: str
    network: str
    checkpoint: str
    step: int | None
    data: str
    figures: dict[str, float | None]
    """Values in percent."""
    circumstances: dict[str, str]
    """Settings, images, data and weights by dotted key: everything else that a figure may depend on."""
    when: str
    notes: list[str]
    files: list[str]
    """Paths relative to the run's folder."""

    @property
    def title(self) -> str:
        """The title of the evaluation."""
        return title(self.evaluation)

    @property
    def subject(self) -> str:
        """What was evaluated: teacher, last checkpoint, step 900"""
        checkpoint = f"{self.checkpoint} checkpoint" if self.checkpoint else ""
        step = "" if self.step is None else f"step {self.step:,}"
        return ", ".join(part for part in (self.network, checkpoint, step) if part) or "–"


def read_evaluations(folder: Path, problems: list[str]) -> list[Result]:
    """Return the results in a run's folder, oldest first; none if the file is missing.

    Broken records are skipped, with a line in `problems`.
    """
    file, nothing = folder / FILE, list[Result | None]()
    results = if_readable(
        lambda: read_file(file, problems, lambda path: _results(path, problems), nothing), nothing, problems
    )
    if broken := results.count(None):
        problems.append(f"{FILE}: skipped {broken} of {len(results)} records, which name no evaluation.")
    return [result for result in results if result is not None]


def _results(path: Path, problems: list[str]) -> list[Result | None]:
    """Return the records of a list, None for broken ones."""
    content = parse_json(read_bytes(path))
    if not isinstance(content, list):
        problems.append(f"{FILE} is not a JSON list.")
        return []
    return [_result(record) for record in content]


def _result(record: Any) -> Result | None:
    if not isinstance(record, dict):
        return None
    record = former_names.TABLE.present_evaluation(record)
    if not _text(record.get("evaluation")):
        return None
    weights, data, settings, images, figures = (
        part if isinstance(part := record.get(key), dict) else {}
        for key in ("weights", "data", "settings", "images", "figures")
    )
    step = number(weights.get("step"))
    set_here = {key: value for key, value in settings.items() if value is not None or key not in images}
    circumstances = {**images, **set_here}  # an evaluation's own image_size overrides the common one
    circumstances |= {f"data.{key}": value for key, value in data.items() if key != "name"}
    circumstances["weights"] = _text(weights.get("sha256"))[:12] or _text(weights.get("file"))
    return Result(
        evaluation=_text(record.get("evaluation")),
        network=_text(weights.get("network")) or _text(weights.get("name")),
        checkpoint=_text(weights.get("checkpoint")),
        step=None if step is None else int(step),
        data=_text(data.get("name")) or "–",
        figures={name: number(value) for name, value in figures.items()},
        circumstances={key: value_text(as_value(value)) for key, value in circumstances.items()},
        when=_time(_text(record.get("when"))),
        notes=_texts(record.get("notes")),
        files=_texts(record.get("files")),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _texts(value: Any) -> list[str]:
    return [text for text in value if text and isinstance(text, str)] if isinstance(value, list) else []


def _time(text: str) -> str:
    """Return an ISO time in UTC, to the minute; other text unchanged."""
    try:
        time = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return f"{time.astimezone(timezone.utc) if time.tzinfo else time:%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError):
        return text
