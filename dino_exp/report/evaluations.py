"""What `evaluate.py` found, read from evaluations.json without trusting it, in tables and pictures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dino_exp.config import former_names
from dino_exp.eval.words import in_words
from dino_exp.report.axes import as_value, value_text
from dino_exp.report.files import number

if TYPE_CHECKING:
    from dino_exp.report.load import RunData

FILE = "evaluations.json"
MOST_PICTURES = 24
"""In a page; the others are linked to."""


class Kind(NamedTuple):
    """An evaluation as people know it."""

    title: str
    head: str
    """Of a column."""
    figure: str
    """The one to show where there is place for one."""


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
"""In the order of pages."""


def title(evaluation: str) -> str:
    """Of one that is not known, its name."""
    return KINDS[evaluation].title if evaluation in KINDS else evaluation


def percent(value: float | None) -> str:
    """86.8 %; – where there is none."""
    return "–" if value is None else f"{value:.1f}\N{NO-BREAK SPACE}%"


@dataclass(frozen=True)
class Result:
    """A record of evaluations.json, as far as it can be understood."""

    evaluation: str
    network: str
    checkpoint: str
    step: int | None
    data: str
    figures: dict[str, float | None]
    """In percent."""
    circumstances: dict[str, str]
    """Settings, pictures, data and weights by dotted key: all else that a figure may depend on."""
    when: str
    notes: list[str]
    files: list[str]
    """Relative to the run's folder."""

    @property
    def title(self) -> str:
        """The evaluation as people know it."""
        return title(self.evaluation)

    @property
    def of(self) -> str:
        """teacher, last checkpoint, step 900"""
        checkpoint = f"{self.checkpoint} checkpoint" if self.checkpoint else ""
        step = "" if self.step is None else f"step {self.step:,}"
        return ", ".join(part for part in (self.network, checkpoint, step) if part) or "–"


# ---- reading -----------------------------------------------------------------------------------------------


def read_evaluations(folder: Path, problems: list[str]) -> list[Result]:
    """The results in a run's folder, oldest first; none without the file.

    What is broken is left out, with a line in `problems`.
    """
    try:
        # All numbers as float: an integer may be too large for what is done with it later.
        content = json.loads((folder / FILE).read_bytes(), parse_int=float)
        if not isinstance(content, list):
            problems.append(f"{FILE} holds no JSON list.")
            return []
        results = [_result(record) for record in content]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{FILE} cannot be read: {' '.join(str(error).split())[:200]}.")
        return []
    broken = results.count(None)
    if broken:
        problems.append(f"{FILE}: {broken} of {len(results)} records name no evaluation, left out.")
    return [result for result in results if result is not None]


def _result(record: Any) -> Result | None:
    if not isinstance(record, dict):
        return None
    record = former_names.TABLE.present_evaluation(record)
    if not _text(record.get("evaluation")):
        return None
    weights, data, settings, pictures, figures = (
        part if isinstance(part := record.get(key), dict) else {}
        for key in ("weights", "data", "settings", "pictures", "figures")
    )
    step = number(weights.get("step"))
    set_here = {key: value for key, value in settings.items() if value is not None or key not in pictures}
    circumstances = {**pictures, **set_here}  # an evaluation's own image_size goes before that of all
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
    """An ISO time in UTC, to the minute; what is none, as it is."""
    try:
        time = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return f"{time.astimezone(timezone.utc) if time.tzinfo else time:%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError):
        return text


# ---- a run's page ------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A result in the table of a run's page."""

    title: str
    figures: list[str]
    """top-1, k = 20: 86.8 %"""
    of: str
    remark: str
    """Where the run has gone on since."""
    data: str
    differs: str
    """From the lines that would look the same."""
    when: str


def in_order(results: Iterable[Result]) -> list[Result]:
    """By evaluation, and the newest first."""
    kinds = list(KINDS)
    newest = list(results)[::-1]
    return sorted(newest, key=lambda each: kinds.index(each.evaluation) if each.evaluation in kinds else 99)


def lines(run: RunData) -> list[Line]:
    """A line per result."""
    ordered = in_order(run.evaluations)
    return [
        Line(
            each.title,
            [f"{in_words(name)}: {percent(value)}" for name, value in each.figures.items()],
            each.of,
            remark(each, run),
            each.data,
            differs(each, ordered),
            each.when,
        )
        for each in ordered
    ]


def remark(result: Result, run: RunData) -> str:
    """Where the run is, if it is not where the result is of."""
    if result.step is None or run.step is None or result.step == run.step:
        return ""
    return f"the run's last step is {run.step:,}"


def differs(result: Result, among: Sequence[Result]) -> str:
    """What sets a result apart from those of the same evaluation, network and data."""
    alike = [
        each
        for each in among
        if (each.evaluation, each.of, each.data) == (result.evaluation, result.of, result.data)
    ]
    return ", ".join(
        f"{key} = {_short(result.circumstances[key])}"
        for key in differing_circumstances(alike)
        if key in result.circumstances
    )


def _short(text: str) -> str:
    """Of a long list the ends."""
    first, _, rest = text.partition(", ")
    return f"{first}, …, {rest.rpartition(', ')[2]}" if text.startswith("[") and len(text) > 30 else text


def differing_circumstances(results: Sequence[Result]) -> list[str]:
    """Keys that not all results have the same value of."""
    keys = dict.fromkeys(key for each in results for key in each.circumstances)
    return [key for key in keys if len({each.circumstances.get(key) for each in results}) > 1]


def remarks(run: RunData) -> list[tuple[str, str]]:
    """Whose notes, and the notes; each once."""
    found: dict[tuple[str, str], list[Result]] = {}
    for each in in_order(run.evaluations):
        for note in each.notes:
            found.setdefault((each.evaluation, note), []).append(each)
    counts = Counter(each.evaluation for each in run.evaluations)
    rows = []
    for (name, note), of in found.items():
        whose = [title(name)] if len(of) == counts[name] else [_whose(each, run.evaluations) for each in of]
        rows.append(("; ".join(whose), note))
    return rows


class File(NamedTuple):
    """Something that an evaluation wrote."""

    title: str
    name: str
    """Relative to the run's folder."""
    path: Path


def files(run: RunData, problems: list[str]) -> tuple[list[File], list[File]]:
    """The pictures to show, and the files to link to.

    A file that several results name is the newest one's. What is not there, or not in the run's folder, gets
    a line in `problems`.
    """
    pictures: list[File] = []
    others: list[File] = []
    absent = []
    seen: set[str] = set()
    among = [each for each in run.evaluations if each.files]
    for each in in_order(run.evaluations):
        for name in each.files:
            if name in seen:
                continue
            seen.add(name)
            path = run.path / name
            if not _is_inside(path, run.path):
                absent.append(name)
            elif path.suffix.lower() == ".png" and len(pictures) < MOST_PICTURES:
                pictures.append(File(f"{_whose(each, among)}: {path.stem.replace('_', ' ')}", name, path))
            else:
                others.append(File(_whose(each, among), name, path))
    if absent:
        more = f" and {len(absent) - 4} more" if len(absent) > 4 else ""
        problems.append(f"Named in {FILE}, but not in the run's folder: {', '.join(absent[:4])}{more}.")
    return pictures, others


def _whose(result: Result, among: Sequence[Result]) -> str:
    """Attention maps, and of what where there are others of the evaluation."""
    if sum(each.evaluation == result.evaluation for each in among) < 2:
        return result.title
    parts = (result.of, result.data, differs(result, among))
    return f"{result.title} ({', '.join(part for part in parts if part and part != '–')})"


def _is_inside(path: Path, folder: Path) -> bool:
    try:
        # first, because it answers for every text, with NUL in it too
        return path.exists() and path.resolve().is_relative_to(folder.resolve())
    except OSError:  # too long for a name, or nothing that may be looked at
        return False
