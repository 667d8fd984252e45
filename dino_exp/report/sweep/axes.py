"""The axes of a sweep: keys in which its runs differ, and their values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dino_exp.config.identity import GROUPS, WITHOUT_EFFECT, settings
from dino_exp.config.stored import read_if_possible
from dino_exp.report.values import UNKNOWN, Value, as_value, sorted_values, value_text

if TYPE_CHECKING:
    from dino_exp.report.run_data import RunData, SweepData

LEADERS = (
    "loss.teacher_temp",
    "loss.center_momentum",
    "ema.momentum",
    "head.out_dim",
    "optimizer.lr",
    "trainer.batch_size",
    "trainer.seed",
    "data.name",
    "backbone.name",
)
"""Keys that come first among axes, and among keys that change together."""


def find_axes(sweep: SweepData) -> None:
    """Set the sweep's axes and the runs' values, from overrides or else from configurations."""
    swept = [_assignments(run.overrides) for run in sweep.runs]
    keys = list(dict.fromkeys(key for values in swept for key in values))
    keys = [key for key in keys if len({values.get(key) for values in swept}) > 1]
    if keys:
        for run, values in zip(sweep.runs, swept, strict=True):
            run.values = {key: values[key] if key in values else configured(run, key) for key in keys}
    elif len(sweep.runs) > 1:
        keys = _compare_configs(sweep)
    for key in _leading(sweep, keys):
        sweep.axes[key] = sorted_values({run.values[key] for run in sweep.runs})
    for run in sweep.runs:
        run.values = {key: run.values[key] for key in sweep.axes}


def _assignments(overrides: Sequence[str]) -> dict[str, Value]:
    pairs = (override.lstrip("+~").partition("=") for override in overrides)
    return {key: as_value(text) for key, _, text in pairs}


def configured(run: RunData, key: str) -> Value:
    """Return the value of a key in a run's configuration."""
    node: Any = run.config or read_if_possible(run.path / "config.yaml", [])
    for name in ("name" if key == "experiment" else key).split("."):
        if not isinstance(node, dict) or name not in node:
            return UNKNOWN
        node = node[name]
    if isinstance(node, dict):  # a group: its option has the name of what it builds
        node = node.get("name") or node.get("schedule") or UNKNOWN
    return as_value(node)


def _compare_configs(sweep: SweepData) -> list[str]:
    """Set the runs' values of keys that differ between configurations, and return these keys."""
    flat = []
    for run in sweep.runs:
        run.config = read_if_possible(run.path / "config.yaml", run.problems)
        flat.append(_identity(run.config))
    keys, partly = [], []
    for key in dict.fromkeys(key for values in flat for key in values):
        seen = {value_text(as_value(values[key])) for values in flat if key in values}
        if len(seen) > 1:
            keys.append(key)
        elif any(values and key not in values for values in flat):
            partly.append(key)
    if partly:
        sweep.problems.append(f"The runs are of different versions: not all have {', '.join(partly[:6])}.")
    for run, values in zip(sweep.runs, flat, strict=True):
        run.values = {key: as_value(values[key]) if key in values else UNKNOWN for key in keys}
    return keys


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    content = {key: config[key] for key in ("data_content",) if config.get(key)}
    try:
        return settings(config, by_place=True) | content  # the place, which a person knows, comes first
    except (KeyError, TypeError, ValueError):  # of another version, or incomplete
        groups = {group: config[group] for group in GROUPS if isinstance(config.get(group), dict)}
        return {key: value for key, value in _flat(groups, "") if key not in WITHOUT_EFFECT}


def _flat(node: dict[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _leading(sweep: SweepData, keys: Sequence[str]) -> list[str]:
    """Return one key of each set of keys that always change together; the others go to `tied_keys`."""
    leaders: list[str] = []
    for key in _in_order(keys):
        leader = next((each for each in leaders if _tied(sweep, each, key)), None)
        if leader:
            sweep.tied_keys.setdefault(leader, []).append(key)
        else:
            leaders.append(key)
    return leaders


def _tied(sweep: SweepData, one: str, other: str) -> bool:
    """Return whether each value of a key has its own value of the other; of numbers, in the same order.

    Without the order, all keys of a search would be tied, as each of its runs has values of its own.
    """
    found = {(run.values[one], run.values[other]) for run in sweep.runs}
    firsts, seconds = zip(*found, strict=True)
    if not len(found) == len(set(firsts)) == len(set(seconds)):
        return False
    if not all(isinstance(value, float) for value in (*firsts, *seconds)):
        return True
    ordered = [second for _, second in sorted(found)]
    return ordered in (sorted(seconds), sorted(seconds, reverse=True))


def _in_order(keys: Iterable[str]) -> list[str]:
    return sorted(keys, key=lambda key: LEADERS.index(key) if key in LEADERS else len(LEADERS))
