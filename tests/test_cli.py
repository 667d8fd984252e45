"""The command line: errors before anything is created, exit codes, the sweep's table."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dino_exp import cli
from dino_exp.cli import exit_code, sweep_table
from dino_exp.config.compose import check, compose
from dino_exp.config.hydra_loader import Loader
from dino_exp.console import Console
from dino_exp.training.attempt import Outcome, attempt
from tests.programs import ROOT, Program, run_program


def train(folder: Path, *argv: str, **environment: str) -> Program:
    return run_program("train.py", *argv, folder=folder, environment=environment)


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["loss.teacher_tmp=0.1"], "loss.teacher_tmp: no such key; did you mean loss.teacher_temp?"),
        (["experiment=paper_vits16"], "data.root: not set; give the training images"),
        (["-m", "trainer.seed=0,1,x"], "trainer.seed = x: must be a whole number. (run trainer.seed=x)"),
    ],
)
def test_errors_are_one_line_and_nothing_is_created(tmp_path: Path, argv: list[str], error: str) -> None:
    done = train(tmp_path, *argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(error)
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.spawn
def test_errors_and_help_do_not_import_torch() -> None:
    code = (
        "import sys; from dino_exp import cli; codes = [cli.main(argv.split()) for argv in "
        "('--help', 'lr=1', 'backbone=torchvision backbone.name=resnet51', '-m trainer.seed=x,y')]; "
        "print(codes, {'torch', 'timm', 'wandb', 'matplotlib'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "[0, 2, 2, 2] set()"


@pytest.mark.spawn
@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("dino_exp.training.run", {"timm", "torchvision", "wandb"}),
        ("dino_exp.inspection.inspect_command", {"torch", "matplotlib"}),
    ],
)
def test_starting_waits_for_no_library_that_is_not_needed(module: str, without: set[str]) -> None:
    code = f"import sys, {module}; print({without} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout == "set()\n"


def test_cfg_prints_the_configuration_even_where_it_cannot_run(tmp_path: Path) -> None:
    done = train(tmp_path, "trainer.epochs=9", "--cfg", "job", "experiment=paper_vits16")
    assert done.returncode == 0
    assert "name: paper_vits16\n" in done.stdout
    assert "  epochs: 9\n" in done.stdout
    assert done.stderr.startswith("warning: data.root: not set")
    assert list(tmp_path.iterdir()) == []


def test_shell_completion(tmp_path: Path) -> None:
    assert "hydra_bash_completion" in train(tmp_path, "-sc", "install=bash").stdout

    def complete(line: str) -> list[str]:
        return train(tmp_path, "-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line))).stdout.split()

    vits = ["vit_base", "vit_micro", "vit_micro_gn", "vit_small", "vit_tiny"]
    assert complete("python train.py backbone=vit_") == [f"backbone={vit}" for vit in vits]
    assert complete("python train.py backbone=vit_tiny trainer.e") == ["trainer.epochs="]


def test_info_shows_the_defaults_list(tmp_path: Path) -> None:
    done = train(tmp_path, "--info", "defaults")
    assert (done.returncode, done.stderr) == (0, "")
    assert "experiment/demo" in done.stdout


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    return tmp_path


def test_a_sweep_continues_after_a_failure_and_reports_it_at_the_end(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (here / name).mkdir()
        (here / name / "1.jpg").write_text(name)
    words = ["data=image_folder", "data.root=a,b", "data.val_root=null", "tracker=none"]
    assert cli.main(["-m", *words]) == 1
    out, err = capsys.readouterr()
    assert [line.partition(":")[0] for line in err.splitlines()] == ["trainer.batch_size = 16"] * 2
    table = out[out.index("Sweep outputs/demo_sweep_root") :]
    assert table.count("failed") == 2
    assert list((here / "outputs").rglob("*")) == []


def test_images_that_no_run_of_a_sweep_can_use_are_refused_before_any(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        (here / name).mkdir()
    (here / "c" / "1.jpg").write_text("any")
    assert cli.main(["-m", "data=image_folder", "data.root=a,b,c", "tracker=none"]) == 2
    out, err = capsys.readouterr()
    assert [line.partition(":")[0] for line in err.splitlines()] == [
        f"data.root = {here / 'a'}",
        f"data.root = {here / 'b'}",
    ]
    assert out == ""
    assert not (here / "outputs").exists()


def test_a_single_run_with_unusable_files_is_a_user_error(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "empty").mkdir()
    assert cli.main(["data=image_folder", "data.root=empty", "tracker=none"]) == 2
    assert capsys.readouterr().err.startswith(f"data.root = {here / 'empty'}: no images there")
    assert [path.name for path in here.iterdir()] == ["empty"]


def test_a_sweep_in_which_nothing_ran_fails_and_says_why(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra keeps what a run raises to itself."""
    words = ["-m", "experiment=debug", "trainer.seed=0,1"]

    def raises(*_: object) -> Outcome:
        raise RuntimeError("no [run]")

    monkeypatch.setattr(cli, "attempt", raises)
    assert cli.main(words) == 1
    table = capsys.readouterr().out
    assert table.count("failed") == table.count("RuntimeError: no [run]") == 2
    monkeypatch.setattr(Loader, "run", lambda *_: None)
    assert cli.main(words) == 1
    assert "Nothing was trained" in capsys.readouterr().err


def test_a_removed_working_folder_is_a_user_error(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here.rmdir()
    assert cli.main(["experiment=debug"]) == 2
    assert (
        capsys.readouterr().err == "The working folder has been removed or cannot be read; cd to another.\n"
    )


FINISHED = Outcome("a", "finished", 0, "healthy")
COLLAPSED = Outcome("b", "collapsed", 0, "uniform-collapse")
FAILED = Outcome("c", "failed", 2, "data.root: empty")
PREEMPTED = Outcome("d", "preempted", 143, "stopped at step 7")


def test_exit_codes() -> None:
    assert exit_code([FINISHED], multirun=False) == 0
    assert exit_code([FAILED], multirun=False) == 2
    assert exit_code([PREEMPTED], multirun=False) == 143
    assert exit_code([FINISHED, COLLAPSED], multirun=True) == 0
    assert exit_code([FINISHED, FAILED, FINISHED], multirun=True) == 1
    assert exit_code([FINISHED, PREEMPTED], multirun=True) == 143
    assert exit_code([FAILED, PREEMPTED], multirun=True) == 1


def test_the_table_has_every_run_even_if_it_never_started(capsys: pytest.CaptureFixture[str]) -> None:
    checked = check(["-m", "trainer.seed=0,1,2,3"])
    ends = [
        ("finished", 0, "healthy, k-NN 70.1 %"),
        ("failed", 1, "RuntimeError: no [memory]\nlast line"),
        ("preempted", 130, "stopped at step 7"),
    ]
    ended = [Outcome(run.run_id, *end) for run, end in zip(checked.runs, ends, strict=False)]
    Console(width=100).print(sweep_table(checked, ended))
    rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(run, rest.strip()) for run, _, rest in rows] == [
        ("trainer.seed=0", "finished     healthy, k-NN 70.1 %"),
        ("trainer.seed=1", "failed       last line"),
        ("trainer.seed=2", "preempted    stopped at step 7"),
        ("trainer.seed=3", "not started"),
    ]
    assert [folder for _, folder, _ in rows] == [f"…{run.run_id[-8:]}" for run in checked.runs]


def test_an_unexpected_error_shows_its_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dino_exp.training.run.train", None)
    outcome = attempt(compose(["experiment=debug"]), tmp_path / "run", None)
    assert (outcome.state, outcome.exit_code) == ("failed", 1)
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["-m", "trainer.seed=0,1"]])
def test_an_output_root_that_cannot_be_written_is_refused_in_one_line(
    here: Path, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "file").touch()
    assert cli.main([*argv, "experiment=debug", "tracker=none", "output_root=file/out"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("file/out/debug")
    assert error.endswith(": a part of the path is a file; choose another output_root.\n")
    assert [path.name for path in here.iterdir()] == ["file"]


def test_a_project_of_others_files_is_no_run_directory(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (".env.local", ".gitlab-ci.yml", "notes.txt", "checkpoints/.dvc.lock", "plots/.a.b"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text("precious")
    before = sorted(here.rglob("*"))
    assert cli.main(["experiment=debug", "tracker=none", "hydra.run.dir=."]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{here}: no run (it has no config.yaml), but it has checkpoints, plots, which")
    assert sorted(here.rglob("*")) == before


def test_a_refused_run_leaves_the_folders_that_were_there(here: Path) -> None:
    for name in ("empty", "runs"):
        (here / name).mkdir()
    assert cli.main(["data=image_folder", "data.root=empty", "tracker=none", "output_root=runs"]) == 2
    assert sorted(path.name for path in here.rglob("*")) == ["empty", "runs"]


@pytest.mark.spawn
@pytest.mark.parametrize(
    "program",
    [["train.py"], ["evaluate.py"], ["report.py"], ["-m", "launchers"], ["-m", "dino_exp.export"]],
    ids=" ".join,
)
def test_programs_print_where_the_encoding_is_ascii(program: list[str]) -> None:
    plain = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, *program, "--help"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | plain, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    assert len(done.stdout) > 300
