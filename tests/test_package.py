"""The wheel: its files, its programs, and the version, which is the same in all files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from email import message_from_string
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml
from hatchling.build import build_wheel

import dino_exp
from dino_exp.installation import CONF, ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return zipfile.ZipFile(folder / build_wheel(str(folder)))


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(f"dino_exp-{dino_exp.__version__}.dist-info/{name}").decode()


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_wheel_has_all_configuration_and_templates_and_no_stray_files(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    own = {name.removeprefix("dino_exp/conf/") for name in names if name.startswith("dino_exp/conf/")}
    assert own == files(CONF)
    templates = files(ROOT / "dino_exp/plots/templates")
    assert {f"dino_exp/plots/templates/{name}" for name in templates} <= names
    assert {"dino_exp/py.typed", "launchers/py.typed", "hydra_plugins/dino_exp_launchers.py"} <= names
    assert "hydra_plugins/__init__.py" not in names  # or no other project's plugins would be found
    folders = {"dino_exp", "launchers", "hydra_plugins", f"dino_exp-{dino_exp.__version__}.dist-info"}
    assert {name.partition("/")[0] for name in names} == folders
    assert "Copyright 2026 the dino-exp authors" in metadata(wheel, "licenses/LICENSE")


def test_each_program_answers_by_its_own_name(
    wheel: zipfile.ZipFile, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = ConfigParser()
    parser.read_string(metadata(wheel, "entry_points.txt"))
    programs = dict(parser["console_scripts"])
    assert programs.keys() == {
        "dino-train",
        "dino-evaluate",
        "dino-report",
        "dino-export",
        "dino-sweep",
        "dino-exp",
    }
    for name, target in programs.items():
        monkeypatch.setattr(sys, "argv", [f"/usr/bin/{name}"])
        main = EntryPoint(name, target, "console_scripts").load()
        try:
            code = main(["--help"])
        except SystemExit as end:  # argparse's
            code = end.code
        said = capsys.readouterr().out
        assert code == 0
        assert name in said
        assert not re.search(r"python |\.py\b", said), name


@pytest.mark.spawn
def test_an_installed_sweep_needs_no_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    sweep = ["-m", "experiment=debug", "trainer.seed=0,1"]
    launcher = ["hydra/launcher=slurm", "hydra.launcher.dry_run=true"]
    done = subprocess.run(
        [sys.executable, "-m", "dino_exp", *sweep, *launcher],
        cwd=tmp_path / "empty",
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 of 2 runs would be submitted" in done.stdout
    # site-packages as a path would come before Python's own library
    assert "export PYTHONSAFEPATH=1" in done.stdout
    assert "PYTHONPATH=" not in done.stdout
    assert list((tmp_path / "empty").iterdir()) == []


def test_the_version_is_the_same_everywhere(wheel: zipfile.ZipFile) -> None:
    version = message_from_string(metadata(wheel, "METADATA"))["Version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert {citation["version"], newest[1], dino_exp.__version__} == {version}


@pytest.mark.parametrize(
    ("policy", "spins"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, None)],
)
def test_threads_spin_briefly_unless_the_user_has_a_policy(policy: dict[str, str], spins: str | None) -> None:
    code = "import dino_exp, os, sys; print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))"
    others = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", *policy)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=others | policy, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", str(spins)]
