"""The table of former names is complete: each leads to a present name, and none of before is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

from dino_exp.config.compose import check
from dino_exp.config.data_schema import ProbeConfig
from dino_exp.config.evaluate_config import EvaluateConfig
from dino_exp.config.evaluation_schema import EVALUATIONS
from dino_exp.config.hydra_loader import EVALUATE, loader
from dino_exp.config.identity import GROUPS, run_ids
from dino_exp.config.launcher_settings import SETTINGS
from dino_exp.config.schema import SCHEMAS, Config, ExpectedConfig
from dino_exp.config.searches import SEARCHES
from dino_exp.config.targets import KNOWN, targets_of
from dino_exp.dino.verdict import WORDS
from dino_exp.metrics import in_words
from dino_exp.runs.former_names import TABLE

FORMER = json.loads(
    (Path(__file__).parents[1] / "data_of_former_versions" / "9aa5416" / "names.json").read_text()
)


def schemas() -> Iterator[tuple[str, type]]:
    """Yield all classes of the schema, each with the prefix of its keys."""
    yield "", Config
    yield "", EvaluateConfig
    for group, classes in (*SCHEMAS.items(), *((name, {"": kind}) for name, kind in EVALUATIONS.items())):
        yield from ((f"{group}.", kind) for kind in classes.values())
    yield from (("hydra.launcher.", kind) for kind in SETTINGS.values())
    yield from (("hydra.sweeper.", kind) for kind in SEARCHES.values())
    yield "data.probe.", ProbeConfig
    yield "expected.", ExpectedConfig


KEYS = {f"{prefix}{field.name}" for prefix, kind in schemas() for field in fields(kind)}
TARGETS = KNOWN | {target for kind in (*SETTINGS.values(), *SEARCHES.values()) for target in targets_of(kind)}
GROUPS_OF_KEYS = {key.rpartition(".")[0] for key in KEYS} - {""}


@cache
def options(group: str) -> list[str]:
    """Return the options of a group of `train.py` or `evaluate.py`."""
    return [*loader().options(group), *loader(None, EVALUATE).options(group)]


@cache
def words(key: str) -> set[str]:
    """Return the choices of a key, or the words that a field in a run's files may have."""
    known = {
        word
        for prefix, kind in schemas()
        for field in fields(kind)
        if f"{prefix}{field.name}" == key and "choices" in field.metadata
        for word in field.metadata["choices"].words
    }
    others = {"eval": set(EVALUATIONS), "evaluation": set(EVALUATIONS), "verdict": set(WORDS)}
    states = {"pending", "running", "preempted", "finished", "failed", "collapsed", "cancelled"}
    return known | (others | {"state": states}).get(key, set())


def is_group(name: str) -> bool:
    return name in GROUPS_OF_KEYS or bool(options(name))


def test_every_entry_points_to_a_present_name_and_no_former_name_is_reused() -> None:
    """With these two rules no entry is ambiguous, and there are no chains."""
    assert set(TABLE.targets.values()) <= TARGETS
    assert not TABLE.targets.keys() & TARGETS
    assert all(key in KEYS or is_group(key) for key in TABLE.keys.values())
    assert not [key for key in TABLE.keys if key in KEYS or is_group(key)]
    for former, present in TABLE.options.items():
        group, _, option = former.partition("=")
        assert present in options(group), former
        assert option not in options(group), former
    for former, present in TABLE.values.items():
        key, _, word = former.partition("=")
        known = words(key)
        assert not known or (present in known and word not in known), former
    assert not TABLE.metrics.keys() & set(TABLE.metrics.values())
    assert TABLE.later_keys.keys() <= KEYS


@pytest.mark.parametrize("program", FORMER["keys"])
def test_every_former_key_is_known(program: str) -> None:
    assert [key for key in FORMER["keys"][program] if TABLE.present_key(key) not in KEYS] == []


def test_every_former_target_option_and_word_is_known() -> None:
    targets = FORMER["targets"]
    assert [each for each in targets if TABLE.present_value("x._target_", each) not in TARGETS] == []
    for former, names in FORMER["options"].items():
        group = TABLE.present_key(former)
        assert [name for name in names if TABLE.present_value(group, name) not in options(group)] == [], group
    for former, names in FORMER["words"].items():
        key = TABLE.present_key(former)
        assert [name for name in names if TABLE.present_value(key, name) not in words(key)] == [], key


def test_every_former_figure_has_a_label() -> None:
    for evaluation_name, figures in FORMER["evaluation"]["figures"].items():
        unknown = [name for name in figures if in_words(present := TABLE.present_metric(name)) == present]
        assert [name for name in unknown if name not in ("mass", "area")] == [], evaluation_name


def test_groups_of_later_keys_are_no_part_of_records_of_before() -> None:
    node = {"root": "x", "probe": {"train": None, "val": None}}
    assert TABLE.first_node("data", node) == {"root": "x"}
    node["probe"] = {"train": "y", "val": None}
    assert TABLE.first_node("data", node) == {"root": "x", "probe": {"train": "y"}}


def test_every_later_key_is_in_the_table() -> None:
    """Otherwise the key would change the ids of all earlier runs."""
    former = {key for keys in FORMER["keys"].values() for key in keys}
    of_records = {*GROUPS, *EVALUATIONS}
    new = {key for key in KEYS - former if "." in key and key.partition(".")[0] in of_records}
    new -= GROUPS_OF_KEYS
    known = former | TABLE.later_keys.keys()
    assert [key for key in sorted(new) if TABLE.first_key(key) not in known and "_target_" not in key] == []


def test_former_command_lines_name_the_same_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    # names of what cannot be trained count too
    monkeypatch.setattr("dino_exp.config.compose.network_problems", lambda cfg: [])
    found: dict[str, tuple[str | None, list[list[str]]]] = {}
    for line in FORMER["runs"]:
        # the default was what is experiment=shapes now
        default = [] if "experiment=" in line else ["experiment=shapes"]
        checked = check([*default, *TABLE.present_words(line.split())[0]])
        assert checked.errors == [], line
        folder = checked.sweep_dir
        if checked.cfg is not None:
            folder = f"{checked.cfg.output_root}/{checked.cfg.name}"
        if default and folder is not None:
            folder = folder.replace("outputs/shapes", "outputs/demo")
        found[line] = folder, sorted(run_ids(run.cfg) for run in checked.runs)
    for line, former in FORMER["runs"].items():
        folder, ids = found[line]
        assert folder == former["folder"], line
        assert all(name in each for name, each in zip(former["runs"], ids, strict=True)), line
        # a tolerance, and where images are, counted for the id at that time
        changed = "data.max_corrupt" in line or "data.root" in line
        assert changed or [each[0] for each in ids] == former["runs"], line
