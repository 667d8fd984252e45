"""Runs of a former revision are found, read, resumed and evaluated, also after further renames.

`data_of_former_versions/README.md` says where they come from.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest
import torch

from dino_exp import cli
from dino_exp.config.schema import LossConfig
from dino_exp.eval import evaluate_command as evaluate
from dino_exp.eval import records
from dino_exp.export import export_command as export
from dino_exp.report import report_command as report
from dino_exp.runs.former_names import TABLE
from dino_exp.runs.run_directory import FORMAT, RunDirectory, read_metrics
from dino_exp.training import checkpoint
from launchers import __main__ as launchers
from launchers import local
from tests.launchers.doubles import dino

PROJECT = Path(__file__).parents[2]
FORMER = Path(__file__).parents[1] / "data_of_former_versions" / "9aa5416"
NAMES = json.loads((FORMER / "names.json").read_text())
TINY = ["experiment=debug", "backbone.embed_dim=8", "backbone.depth=1", "backbone.num_heads=2"]
TINY += ["backbone.mlp_ratio=1", "backbone.stem=patch", "backbone.drop_path_rate=0.2", "head.layers=2"]
TINY += ["head.hidden_dim=8", "head.bottleneck_dim=4", "head.out_dim=16", "data.train_size=64"]
TINY += ["data.test_size=32", "trainer.batch_size=16", "trainer.device=cpu"]
FINISHED = [*TINY, "name=finished", "trainer.epochs=3"]
INTERRUPTED = [*TINY, "name=interrupted", "trainer.epochs=15"]
SWEEP = ["-m", *TINY, "name=sweep", "trainer.epochs=40", "loss.teacher_temp=0.02,0.04"]
SWEEP += ["hydra/launcher=local", "hydra.launcher.detach=true"]
EVALUATE = ["eval=knn", "knn.k=[5,10]", "device=cpu"]
SOON, IN_THE_END = 1e-4, 0.03
"""Relative tolerances of the first five losses after the resume, and of the weights' norms 50 steps later.
Another CPU rounds differently by 1e-7, and training amplifies this: noise of 1e-6 in all weights of step 10
changes these losses by less than 1e-6 and the norms by up to 2e-3; noise of 1e-5, by 5e-6 and 9e-3."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with the former runs in its `outputs`."""
    shutil.copytree(FORMER / "outputs", tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path


def the_run(name: str) -> Path:
    """Return the only run of an experiment; a second one would mean that the first was not found."""
    (run,) = Path("outputs", name).iterdir()
    return run


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def weights(run: Path) -> dict[str, torch.Tensor]:
    state = checkpoint.load(run / "checkpoints" / "last.pt")
    return {f"{part}.{key}": value for part in ("student", "teacher") for key, value in state[part].items()}


def present(former: Iterable[str]) -> set[str]:
    """Return the present names of fields in a run's files."""
    return set(map(TABLE.present_metric, former))


def keys_in(lines: Iterable[str]) -> set[str]:
    return {key for line in lines for key in json.loads(line)}


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_finished_run_is_shown_and_not_changed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(here / "outputs")
    assert cli.main(FINISHED) == 0
    assert "finished" in capsys.readouterr().out
    assert content(here / "outputs") == before


@pytest.mark.plots
def test_an_interrupted_run_is_resumed(here: Path) -> None:
    assert cli.main(INTERRUPTED) == 0
    run = the_run("interrupted")
    status, ends = RunDirectory(run).read_status(), json.loads((FORMER / "interrupted_ends.json").read_text())
    assert (status["state"], status["step"], status["attempt"]) == ("finished", ends["step"], 2)
    assert (status["format"], status["tracker_id"]) == (FORMAT, "3xljuvd7aowe")
    assert steps(run) == list(range(61))
    found = {key: float(value.float().norm()) for key, value in weights(run).items()}
    assert found == pytest.approx(ends["norms"], rel=IN_THE_END)
    losses = {str(line["step"]): line.get("loss") for line in read_metrics(run / "metrics.jsonl")}
    assert {step: losses[step] for step in ends["losses"]} == pytest.approx(ends["losses"], rel=SOON)
    summary = RunDirectory(run).read_summary()
    # fields of a present run, so that every former name is known to have a present one
    logged = keys_in((run / "metrics.jsonl").read_text().splitlines())
    assert present(NAMES["metrics"]) - {"init_from"} <= logged
    assert present(NAMES["summary"]) - {present(["initial_knn_top1"]).pop()} <= summary.keys()
    assert present(NAMES["attention"]) <= summary[present(["attention"]).pop()].keys()


def test_an_evaluation_replaces_the_former_one_of_the_same_kind(here: Path) -> None:
    run = the_run("finished")
    before = records.read(run)
    folders = ["evaluations/knn_5947c060", "evaluations/attention_1e960e75"]
    assert [str(records.folder_of(each)) for each in before] == folders
    assert evaluate.main([f"run={run}", *EVALUATE]) == 0
    after = records.read(run)
    assert [each["evaluation"] for each in after] == ["attention", "knn"]
    assert after[1]["figures"].keys() == before[0]["figures"].keys()
    assert after[1].keys() == present(NAMES["evaluation"]["fields"])
    assert after[1][present(["pictures"]).pop()].keys() == present(NAMES["evaluation"]["pictures"])


def test_reports_and_exports_read_them(here: Path) -> None:
    run = the_run("finished")
    for folder in (run, Path("outputs/sweep")):
        assert report.main([str(folder), "--out", str(here / "page" / folder.name)]) == 0
    page = (here / "page" / "sweep" / "index.html").read_text()
    assert "loss.teacher_temp" in page
    assert "newer" not in page
    assert export.main([f"run={run}", "format=timm", f"out={here / 'timm'}"]) == 0


def test_init_from_reads_their_weights(here: Path) -> None:
    words = [*TINY, "name=next", "trainer.max_steps=1", "eval.bank_size=8", "eval.query_size=8"]
    assert cli.main([*words, f"init_from={the_run('finished')}"]) == 0
    assert RunDirectory(the_run("next")).read_summary()["initial_knn_top1"] is not None


def test_a_sweep_is_shown_collected_and_resumed(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = "outputs/sweep"
    monkeypatch.setattr(local, "start_queue", lambda folder: None)
    assert launchers.main(["status", folder]) == 0
    assert "2 runs: 1 finished, 1 cancelled" in capsys.readouterr().out
    assert launchers.main(["collect", folder]) == 0
    with Path(folder, "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    states = {row["loss.teacher_temp"]: row["state"] for row in rows}
    assert (len(rows), states) == (2, {"0.02": "finished", "0.04": "cancelled"})
    assert rows[0]["final.loss"]
    untouched = content(next(Path(folder).glob("*tt0.02*")))
    capsys.readouterr()
    assert launchers.main(["resume", folder]) == 0
    said = capsys.readouterr().out
    assert "submitted 1 run." in said
    assert "Skipped: 1 finished." in said
    assert dino(*SWEEP) == 0
    assert "submitted 1 run." in capsys.readouterr().out  # it has not started
    assert content(next(Path(folder).glob("*tt0.02*"))) == untouched
    assert len(list(Path(folder).glob("*/config.yaml"))) == 2


# ---- runs of a newer version -------------------------------------------------------------------------------

RUN = "outputs/interrupted"
REFUSED: dict[str, tuple[str, Callable[[], int]]] = {
    "resume": ("status.json", lambda: cli.main(INTERRUPTED)),
    "evaluate": ("status.json", lambda: evaluate.main([f"run={the_run('interrupted')}", *EVALUATE])),
    "export": ("status.json", lambda: export.main([f"run={the_run('interrupted')}", "format=timm"])),
    "init_from": ("status.json", lambda: cli.main([*TINY, f"init_from={the_run('interrupted')}"])),
    "its checkpoint": (
        "status.json",
        lambda: cli.main([*TINY, f"init_from={the_run('interrupted')}/checkpoints/last.pt"]),
    ),
    "doctor": ("status.json", lambda: report.main(["doctor", str(the_run("interrupted"))])),
    "sweep": ("manifest.json", lambda: dino(*SWEEP)),
    "search": ("manifest.json", lambda: dino(*SWEEP[:-2], "hydra/sweeper=optuna")),
    **{
        f"launchers {command}": ("manifest.json", partial(launchers.main, [command, "outputs/sweep"]))
        for command in ("status", "wait", "collect", "resume", "cancel", "logs")
    },
}


@pytest.mark.parametrize("program", REFUSED)
def test_files_of_a_newer_version_are_refused_and_not_changed(
    here: Path, capsys: pytest.CaptureFixture[str], program: str
) -> None:
    name, run = REFUSED[program]
    (newer,) = [*Path("outputs/sweep").glob(name), *Path(RUN).glob(f"*/{name}")]
    newer.write_text(json.dumps(json.loads(newer.read_text()) | {"format": FORMAT + 1}))
    (newer.parent / ".half-written.1").write_text("")
    before = content(here)
    assert run() == 2
    said = capsys.readouterr().err
    assert f"{newer.name}: format {FORMAT + 1} is newer than this program's {FORMAT}" in said
    assert said.count("\n") == 1
    assert content(here) == before


def test_a_sweep_with_a_run_of_a_newer_version_is_not_changed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (newer,) = Path("outputs/sweep").glob("*tt0.04*/status.json")
    newer.write_text(json.dumps(json.loads(newer.read_text()) | {"format": FORMAT + 1}))
    before = content(here)
    assert dino(*SWEEP) == 2
    assert launchers.main(["resume", "outputs/sweep"]) == 2
    assert content(here) == before


def test_a_report_names_files_of_a_newer_version(here: Path) -> None:
    for newer in (Path("outputs/sweep/manifest.json"), the_run("interrupted") / "status.json"):
        newer.write_text(json.dumps(json.loads(newer.read_text()) | {"format": FORMAT + 1}))
        assert report.main([str(newer.parent), "--out", "page"]) == 0
        assert f"{newer.name}: format {FORMAT + 1} is newer" in Path("page/index.html").read_text()


# ---- after a move and renames ------------------------------------------------------------------------------

MOVED = {
    r"\bclip_grad\b": "clip_gradients",  # a key
    r"\bno_ema\b": "without_ema",  # an option
    r"\bfirst_batch\b": "from_first_batch",  # a word
    r"\bkl_share\b": "kl_part",  # a metric, in checkpoints too
    r"\bknn_top1\b": "knn_accuracy",  # a metric that reports search for in large files
    r"\bjaccard_even\b": "jaccard_everywhere",  # a figure of an evaluation
}
MOVED_TABLE = """
TARGETS["{loss}.DINOLoss"] = "dino_exp.moved_loss.DINOLoss"
KEYS["optimizer.clip_grad"] = "optimizer.clip_gradients"
OPTIONS["ablation=no_ema"] = "without_ema"
VALUES["loss.center_init=first_batch"] = "from_first_batch"
METRICS["kl_share"] = "kl_part"
METRICS["knn_top1"] = "knn_accuracy"
METRICS["jaccard_even"] = "jaccard_everywhere"
"""
PROGRAMS = """
import sys
from pathlib import Path
from dino_exp import cli
from dino_exp.eval import evaluate_command as evaluate
from dino_exp.report.loading import load
from launchers import __main__ as launchers, local

finished, interrupted, evaluation = (line.split() for line in sys.argv.pop().splitlines())
local.start_queue = lambda folder: None
(run,) = Path("outputs/finished").iterdir()
print("codes:", cli.main(finished), cli.main(interrupted), evaluate.main([f"run={run}", *evaluation]),
      launchers.main(["collect", "outputs/sweep"]),
      launchers.main(["resume", "outputs/sweep"]),
      cli.main([*finished, "ablation=no_ema", "optimizer.clip_grad=1", "--cfg", "job"]))
sweep = load(Path("outputs/sweep"))
print("report:", *sweep.axes, *(bool(each.series("kl_part")) for each in sweep.runs), sweep.runs[0].knn)
"""


def moved_project(folder: Path) -> None:
    """Copy the project with a module moved and all of `MOVED` renamed, and the table written for it."""
    module = str(LossConfig._target_).rpartition(".")[0]
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("dino_exp", "launchers", "hydra_plugins", "conf"):
        shutil.copytree(PROJECT / name, folder / name, ignore=ignored)
    old = folder / f"{module.replace('.', '/')}.py"
    old.rename(folder / "dino_exp" / "moved_loss.py")
    names = {rf"\b{re.escape(module)}\b": "dino_exp.moved_loss", **MOVED}
    found = dict.fromkeys(names, 0)
    for file in [*folder.rglob("*.py"), *folder.rglob("*.yaml"), *folder.rglob("*.html")]:
        text = file.read_text()
        for pattern, new in names.items():
            text, count = re.subn(pattern, new, text)
            found[pattern] += count
        file.write_text(text)
        file.rename(file.with_name(file.name.replace("no_ema.yaml", "without_ema.yaml")))
    assert all(found.values()), found
    with (folder / "dino_exp/runs/former_names.py").open("a") as table:
        table.write(MOVED_TABLE.format(loss=module))


@pytest.mark.spawn
def test_former_runs_work_after_a_move_and_renames(here: Path) -> None:
    """The project here is a copy with a moved module and renamed keys, options, words and metrics."""
    moved_project(here / "moved")
    lines = "\n".join(" ".join(words) for words in (FINISHED, INTERRUPTED, EVALUATE))
    environment = os.environ | {"PYTHONPATH": str(here / "moved")}
    before = content(the_run("finished"))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAMS, lines], capture_output=True, text=True, env=environment, timeout=300
    )
    assert "codes: 0 0 0 0 0 0\n" in done.stdout, done.stdout + done.stderr

    assert "ablation=no_ema: now called ablation=without_ema." in done.stderr
    assert "optimizer.clip_grad=1: now called optimizer.clip_gradients=1." in done.stderr
    assert "\n  clip_gradients: 1.0\n" in done.stdout

    after = content(the_run("finished"))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {str(the_run("finished") / "evaluations.json")}
    evaluated = {each["evaluation"]: each for each in json.loads(after[changed.pop()])}
    assert len(evaluated) == 2
    assert "jaccard_everywhere" in evaluated["attention"]["figures"]
    assert evaluated["knn"]["when"] > evaluated["attention"]["when"]
    assert "report: loss.teacher_temp True True 6.25\n" in done.stdout

    moved = the_run("interrupted")
    assert steps(moved) == list(range(61))
    keys = keys_in((moved / "metrics.jsonl").read_text().splitlines())
    assert {"kl_part", "knn_accuracy"} <= keys
    assert not keys & {"kl_share", "knn_top1"}
    config = (moved / "config.yaml").read_text()
    assert "_target_: dino_exp.moved_loss.DINOLoss" in config
    assert "clip_gradients: 3.0" in config
    assert "center_init: from_first_batch" in config
    assert "submitted 1 run." in done.stdout
    assert "knn_accuracy" in Path("outputs/sweep/runs.csv").read_text()
    manifest = json.loads(Path("outputs/sweep/manifest.json").read_text())
    former = json.loads((FORMER / "outputs/sweep/manifest.json").read_text())
    for name, entry in manifest["runs"].items():
        assert entry["config_hash"] == former["runs"][name]["config_hash"]

    ended = weights(moved)
    shutil.rmtree(moved)
    shutil.copytree(FORMER / moved, moved)
    assert cli.main(INTERRUPTED) == 0
    own = weights(the_run("interrupted"))
    assert own.keys() == ended.keys()
    assert [key for key in own if not torch.equal(own[key], ended[key])] == []
