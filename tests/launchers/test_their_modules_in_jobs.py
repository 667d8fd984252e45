"""Modules of others in jobs: those that the user has named, and none that a sweep's files name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dino_exp.config import plugins
from dino_exp.config.compose import compose
from dino_exp.config.identity import run_id
from dino_exp.config.launcher_settings import with_changes
from dino_exp.errors import UserError
from dino_exp.runs.run_directory import RunDirectory
from launchers import submission
from launchers.__main__ import main as launchers
from launchers.approval import remember
from launchers.local import permitted
from launchers.submission import Wanted
from tests.launchers.doubles import SWEEP, Cluster
from tests.their_modules import forgotten, write_images, write_module


@pytest.fixture
def theirs(here: Path) -> Iterator[None]:
    """Forget what is registered."""
    with forgotten():
        yield


def submit(module: str) -> RunDirectory:
    """Submit a run with components of a module to SLURM, and return its directory."""
    root = write_images(Path("images"), 1, 1)
    cfg = compose(["experiment=debug", "data=garden", f"data.root={root}", f"plugins=[{module}]"])
    run = Wanted(run_id(cfg), (), cfg)
    submission.submit(SWEEP, "slurm", with_changes("slurm", {}, []), [run])
    return RunDirectory(SWEEP / run.name)


def plugins_of_job(job: str) -> object:
    """Return the modules that a job is told to import."""
    from submitit.core.utils import DelayedSubmission

    return DelayedSubmission.load(SWEEP / "jobs" / f"{job}_submitted.pkl").args[3]


def test_a_job_is_told_which_modules_the_user_has_named(theirs: None, cluster: Cluster, here: Path) -> None:
    write_module(here, "my_package.components")
    directory = submit("my_package.components")
    assert plugins_of_job("100") == {"my_package.components": str(here)}
    (about,) = directory.read_status()["plugins"].values()
    assert about["folder"] == str(here)


def test_resume_asks_about_modules_that_this_user_has_not_named(
    theirs: None, cluster: Cluster, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_module(here, "theirs")
    with forgotten():
        submit("theirs")
    file.write_text(f"from pathlib import Path\nPath('pwned').touch()\n{file.read_text()}")
    cluster.move({"100": "FAILED"})
    assert launchers(["resume", str(SWEEP)]) == 2
    out, err = capsys.readouterr()
    assert "its runs import modules that you have not named or approved before:" in out
    assert f'plugins: "theirs" of "{here}"' in out
    assert "not resumed" in err
    assert not Path("pwned").exists()
    assert "theirs" not in sys.modules
    assert launchers(["resume", str(SWEEP), "--yes"]) == 0
    assert Path("pwned").exists()
    assert plugins_of_job("101") == {"theirs": str(here)}


def test_the_queue_imports_no_module_that_only_a_file_names(theirs: None, here: Path) -> None:
    directory = RunDirectory(here / "run")
    directory.path.mkdir()
    directory.config_file.write_text("plugins: [hostile]\n")
    directory.mark(state="pending", plugins={"hostile": {"folder": str(here)}})
    with pytest.raises(UserError, match="you have not named this module; not imported"):
        permitted(directory)
    remember({}, {"hostile": "/another/folder"})
    with pytest.raises(UserError, match="you have not named this module"):
        permitted(directory)
    remember({}, {"hostile": str(here)})
    assert permitted(directory) == {"hostile": str(here)}


def test_components_of_a_script_are_refused_in_jobs(theirs: None, here: Path, cluster: Cluster) -> None:
    file = write_module(here, "script")
    exec(compile(file.read_text(), str(file), "exec"), {"__name__": "__main__"})
    cfg = compose(["experiment=debug", "backbone=two_layers"])
    with pytest.raises(UserError, match=r"backbone=two_layers .*: jobs import modules by name"):
        submission.submit(SWEEP, "slurm", with_changes("slurm", {}, []), [Wanted("x", (), cfg)])
    assert not SWEEP.exists()
    assert plugins.NAMED == {}
