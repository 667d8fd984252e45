"""Files of `--config-dir`: data that make nothing happen, and errors that name file, line and fix."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore

from dino_exp import cli
from dino_exp.config.compose import check
from dino_exp.config.compose_evaluation import check as check_evaluation

HEADER = "# @package _global_\ndefaults: [debug, _self_]\nname: theirs\n"
CALLS = "{_target_: torch.hub.load, repo_or_dir: @FOLDER@, model: x, source: local}"
"""Runs @FOLDER@/hubconf.py; Hydra's own list of what must not be called does not have it."""


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("@FOLDER@", str(folder)))


def errors(folder: Path, *argv: str) -> list[str]:
    return check(["--config-dir", str(folder), *argv]).errors


REFUSED = {
    "hydra.callbacks.a._target_": f"hydra: {{callbacks: {{a: {CALLS}}}}}",
    "hydra.job_logging.handlers.h.()": "hydra: {job_logging: {handlers: {h: {(): torch.hub.load}}}}",
    "hydra.hydra_logging.version": "hydra: {hydra_logging: {version: 1}}",
    "hydra.job.env_set.PATH": "hydra: {job: {env_set: {PATH: /theirs}}}",
    "hydra.job.env_copy.0": "hydra: {job: {env_copy: [SECRET]}}",
    "hydra.job.name": "hydra: {job: {name: ../../x}}",
    "hydra.job.chdir": "hydra: {job: {chdir: true}}",
    "hydra.output_subdir": "hydra: {output_subdir: ../../..}",
    "hydra.help.template": "hydra: {help: {template: x}}",
    "hydra.launcher._target_": "hydra: {launcher: {_target_: torch.hub.load}}",
    "hydra.sweeper._target_": f"hydra: {{mode: MULTIRUN, sweeper: {CALLS}}}",
    "hydra.launcher.partition._target_": f"hydra: {{launcher: {{partition: {CALLS}}}}}",
    "hydra.sweeper.params.a._partial_": "hydra: {sweeper: {params: {a: {_partial_: true}}}}",
    "hydra.sweeper.params.+hydra.callbacks": "hydra: {sweeper: {params: {+hydra.callbacks: '{}'}}}",
    "hydra.launcher.setup.0": "hydra: {launcher: {setup: [touch pwned]}}",
    "hydra.launcher.python": "hydra: {launcher: {python: pwned}}",
    "hydra.launcher.sbatch.export": "hydra: {launcher: {sbatch: {export: LD_PRELOAD=x}}}",
    "hydra.launcher.other": "hydra: {launcher: {other: 1}}",
    "hydra.launcher.account": "hydra: {launcher: {account: '${oc.create:{_target_: torch.hub.load}}'}}",
    "hydra.sweep.dir": "hydra: {sweep: {dir: '${${name}:x}'}}",
    "hydra.launcher": "hydra: {launcher: '${tracker}'}",
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an experiment for each refused key; opening one takes longer than composing."""
    folder = tmp_path_factory.mktemp("theirs")
    write(folder, {f"experiment/a{number}": HEADER + text for number, text in enumerate(REFUSED.values())})
    return folder


@pytest.mark.parametrize(("number", "key"), [*enumerate(REFUSED)])
def test_what_hydra_would_act_on_is_refused_by_name(theirs: Path, number: int, key: str) -> None:
    (error,) = errors(theirs, f"experiment=a{number}")
    assert error.startswith(f"{theirs}/experiment/a{number}.yaml: {key} = ")


@pytest.mark.parametrize(
    "files",
    [
        {"experiment/theirs": f"{HEADER}hydra: {{callbacks: {{a: {CALLS}}}}}"},
        {"experiment/theirs": f"# @package hydra.callbacks.a\n{CALLS}"},
        {
            "experiment/theirs": "# @package _global_\ndefaults: [/backbone@hydra.callbacks.a: theirs]",
            "backbone/theirs": CALLS,
        },
        {
            "experiment/theirs": "# @package _global_\ndefaults: [debug, {override /hydra/launcher: theirs}]",
            "hydra/launcher/theirs": CALLS,
        },
        {
            "config": "defaults: [experiment: debug]\nhydra: {searchpath: ['file://@FOLDER@/x']}\n",
            "x/experiment/theirs": f"{HEADER}hydra: {{callbacks: {{a: {CALLS}}}}}",
        },
        {"experiment/theirs": f"{HEADER}backbone: {{name: {CALLS}}}"},
        {"experiment/theirs": f"{HEADER}data: {{root: {CALLS}}}"},
    ],
)
def test_nothing_of_another_persons_file_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    (tmp_path / "hubconf.py").write_text(f"open({str(tmp_path / 'called')!r}, 'w')\ndef x(): pass\n")
    write(tmp_path, files)
    before = sorted(tmp_path.rglob("*"))
    for flag in ("", "-m", "--cfg job", "-sc install=bash"):
        cli.main(["--config-dir", str(tmp_path), "experiment=theirs", *flag.split()])
        assert sorted(tmp_path.rglob("*")) == before


def test_evaluate_refuses_them_too(tmp_path: Path) -> None:
    write(tmp_path, {"backbone/theirs": f"# @package hydra.callbacks.a\n{CALLS}"})
    (problem,) = check_evaluation(["--config-dir", str(tmp_path), "weights=x", "backbone=theirs"]).problems
    assert "backbone/theirs.yaml: hydra.callbacks.a._target_ = torch.hub.load: Hydra would call it" in problem


def test_a_file_sets_what_experiments_and_sites_need(tmp_path: Path) -> None:
    experiment = (
        "hydra:\n  mode: MULTIRUN\n  run: {dir: '${oc.env:HOME}/${name}/${now:%Y}'}\n"
        "  sweep: {dir: sweeps, subdir: '${hydra.job.num}'}\n  sweeper: {params: {trainer.seed: '0,1'}}\n"
        "  launcher: {account: vision}\n"
    )
    launcher = "defaults: [slurm]\nsetup: [module load cuda]\npython: python3\nsbatch: {exclude: node7}\n"
    write(
        tmp_path,
        {"experiment/ours": HEADER + experiment, "hydra/launcher/ours": f"{launcher}dry_run: true\n"},
    )
    argv = ["--config-dir", str(tmp_path), "experiment=ours", "hydra/launcher=ours"]
    checked = check(argv)
    assert checked.errors == []
    assert len(checked.runs) == 2
    node: Any = checked.launcher
    assert (node.account, node.setup, node.python) == ("vision", ["module load cuda"], "python3")
    assert node.sbatch == {"exclude": "node7"}


def test_commands_come_only_from_a_launcher_that_the_user_names(tmp_path: Path) -> None:
    chooses = "# @package _global_\ndefaults: [debug, {override /hydra/launcher: theirs}]\n"
    write(
        tmp_path, {"experiment/theirs": chooses, "hydra/launcher/theirs": "defaults: [slurm]\nsetup: [x]\n"}
    )
    (error,) = errors(tmp_path, "-m", "experiment=theirs")
    assert "hydra/launcher/theirs.yaml: hydra.launcher.setup.0 = x: it runs commands in jobs" in error
    assert (
        errors(tmp_path, "-m", "experiment=theirs", "hydra/launcher=theirs", "hydra.launcher.dry_run=true")
        == []
    )


def test_the_users_words_and_installed_plugins_may_set_everything(tmp_path: Path) -> None:
    store = ConfigStore.instance()
    target = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
    store.store("installed", {"_target_": target, "extra": {"_target_": "a.b"}}, "hydra/launcher")
    words = ("hydra/launcher=installed", "+hydra.job.env_set.A=b", "hydra.verbose=true")
    try:
        assert errors(tmp_path, *words) == []
    finally:
        del store.repo["hydra"]["launcher"]["installed.yaml"]


def test_a_copy_of_our_configuration_may_be_a_users_own(tmp_path: Path) -> None:
    from shutil import copytree

    from dino_exp.installation import CONF

    copytree(CONF, tmp_path / "mine")
    for line in ("", "-m sweep=seeds", "-m hydra/launcher=local trainer.seed=0,1"):
        assert errors(tmp_path / "mine", "experiment=debug", *line.split()) == []


def test_the_value_of_a_secret_does_not_get_into_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    monkeypatch.setenv("SCRATCH", "scratch")
    write(tmp_path, {"experiment/theirs": f"{HEADER}output_root: ${{oc.env:WANDB_API_KEY}}\n"})
    write(tmp_path, {"experiment/fine": f"{HEADER}output_root: ${{oc.env:SCRATCH}}/${{oc.env:NOWHERE,x}}\n"})
    (error,) = errors(tmp_path, "experiment=theirs")
    assert error.startswith("output_root = ${oc.env:WANDB_API_KEY}: WANDB_API_KEY has KEY, TOKEN")
    checked = check(["--config-dir", str(tmp_path), "experiment=fine"])
    assert checked.cfg is not None
    assert checked.cfg.output_root == "scratch/x"


BODY = b"defaults: [debug, _self_]\nname: mine\n"
READ = {
    "no header": BODY,
    "byte order mark": b"\xef\xbb\xbf# @package _global_\n" + BODY,
    "a comment before the header": b"# mine\n# @package _global_\n" + BODY,
    "line ends of Windows": (b"# @package _global_\n" + BODY).replace(b"\n", b"\r\n"),
}


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with all of the files that can be read, and all that cannot."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "experiment").mkdir()
    for start, contents in {"good": READ.values(), "bad": UNREADABLE}.items():
        for number, content in enumerate(contents):
            (folder / "experiment" / f"{start}{number}.yaml").write_bytes(content)
    return folder


@pytest.mark.parametrize(("number", "name"), [*enumerate(READ)])
def test_files_that_are_understood(mine: Path, number: int, name: str) -> None:
    checked = check(["--config-dir", str(mine), f"experiment=good{number}"])
    assert checked.errors == []
    assert checked.cfg is not None
    assert (checked.cfg.name, checked.cfg.trainer.epochs) == ("mine", 2)


UNREADABLE = {
    b"name: a\ntrainer:\n\tepochs: 1\n": ", line 3: a tab; indent with spaces.",
    b"name: a\nname: b\n": ", line 2: name is there twice; keep one.",
    b"# caf\xe9\n": ", line 1: not UTF-8; save the file in that encoding.",
    "name: a\n".encode("utf-16"): ", line 1: not UTF-8; save the file in that encoding.",
    b"- name\n": ", line 1: a list; write KEY: VALUE, e.g. name: mine.",
    b"# mine\nname\n": ", line 2: text; write KEY: VALUE, e.g. name: mine.",
    b"name: a\n  loss: 1\n": ", line 2: mapping values are not allowed here; check the indentation, and",
    b"name: a: b\n": ", line 1: mapping values are not allowed here; check the indentation, and quote",
    b"name: !!python/object/apply:os.getcwd []\n": ", line 1: could not determine a constructor for the tag",
    b"name: ${\n": ": ",
    b"name: \x00\n": ", line 1: special characters are not allowed",
    b"# @package\nname: a\n": ", line 1: must be # @package and one word, e.g. _global_.",
    b"a: " + b"[" * 5000: ": ",
    b"trainer: {epochs: 1" + b"0" * 5000 + b"}\n": ": ",
}


@pytest.mark.parametrize("number", range(len(UNREADABLE)))
def test_a_file_that_cannot_be_read_is_one_line_with_file_line_and_fix(mine: Path, number: int) -> None:
    (error,) = errors(mine, f"experiment=bad{number}")
    assert error.startswith(f"{mine}/experiment/bad{number}.yaml{[*UNREADABLE.values()][number]}")
    assert "\n" not in error


def test_a_file_without_content_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, {"experiment/empty": "", "experiment/comment": "# nothing yet\n"})
    assert errors(tmp_path, "experiment=empty") == errors(tmp_path, "experiment=comment") == []
