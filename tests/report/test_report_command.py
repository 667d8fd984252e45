"""The command line of `report.py`."""

from __future__ import annotations

import builtins
import json
import os
import re
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dino_exp.report import report_command
from dino_exp.report.report_command import main
from launchers.one_search import alone
from tests.programs import run_program
from tests.report.synthetic import record, temps_momenta, write_json, write_lines, write_run, write_sweep

ROOT = Path(__file__).parents[2]


def test_a_report_prints_its_files_and_a_wrong_folder_exits_with_2(tmp_path: Path) -> None:
    run_folder = write_run(tmp_path / "run", values={"name": "none_such"})
    (run_folder / "plots").mkdir()
    Image.new("RGB", (90, 60), "red").save(run_folder / "plots" / "attention.png")
    done = run_program("report.py", str(run_folder), "--out", str(tmp_path / "out"), folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert paths[0] == tmp_path / "out" / "index.html"
    assert {path.suffix for path in paths} == {".html", ".png", ".svg"}
    assert all(path.stat().st_size > 500 for path in paths)
    with Image.open(tmp_path / "out" / "loss.png") as image:
        assert image.width > 800
    page = paths[0].read_text()
    for wanted in ("Verdict: healthy", "Evidence: teacher entropy", "data:image/png", "41_0"):
        assert wanted in page
    assert "plots/crops.png is missing" in page
    wrong = run_program("report.py", str(tmp_path / "nowhere"), folder=tmp_path)
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1


def test_a_page_shows_nothing_that_a_link_points_to(tmp_path: Path) -> None:
    private = tmp_path / "private"
    (private / "secret_0000aaaa").mkdir(parents=True)
    (private / "secret.txt").write_text("my password")
    Image.new("RGB", (90, 60), "red").save(private / "secret.png")
    (private / "secret_0000aaaa" / "log.txt").write_text("my password")
    write_json(private / "secret.yaml", {"password": "my password"})
    sweep = tmp_path / "sweep"
    linked = sweep / "run_1111bbbb"
    (linked / "plots").mkdir(parents=True)
    (sweep / "linked_2222cccc").symlink_to(private / "secret_0000aaaa")
    (linked / "plots" / "attention.png").symlink_to(private / "secret.png")
    for name in ("traceback.txt", "log.txt"):
        (linked / name).symlink_to(private / "secret.txt")
    for name in ("config.yaml", "summary.json", "evaluations.json"):
        (linked / name).symlink_to(private / "secret.yaml")
    os.mkfifo(linked / "metrics.jsonl")
    write_json(linked / "status.json", {"state": "failed"})
    other = write_run(sweep / "run_3333dddd")
    (other / "report").symlink_to(private)
    names: dict[str, Any] = {"run_1111bbbb": {}, "linked_2222cccc": {}, "../private/secret_0000aaaa": {}}
    write_json(sweep / "manifest.json", {"launcher": "local", "runs": names})
    for folder in (linked, sweep):
        assert main([str(folder)]) == 0
        page = (folder / "report" / "index.html").read_text()
        assert "password" not in page
        assert "data:image" not in page
    assert "linked_2222cccc is a link to elsewhere, and not shown" in page
    assert "manifest.json: &#39;../private/secret_0000aaaa&#39; is not the name of a run" in page
    page = (linked / "report" / "index.html").read_text()
    assert "plots/attention.png is a link to elsewhere, and not shown" in page
    assert "config.yaml cannot be read: a link to another folder, which is not followed" in page
    assert "metrics.jsonl cannot be read: a pipe, socket, device or folder" in page
    assert sorted(path.name for path in private.iterdir()) == [
        "secret.png",
        "secret.txt",
        "secret.yaml",
        "secret_0000aaaa",
    ]
    assert main([str(other)]) == 2


def test_pages_of_incomplete_folders_say_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main([str(empty)]) == 0
    assert "There are no runs in this folder." in (empty / "report" / "index.html").read_text()
    assert main([str(empty)]) == 0  # with a report in it, it is still an empty sweep

    bare = tmp_path / "bare"
    write_lines(bare / "metrics.jsonl", [{"step": 1, "loss": 4.0}, {"step": 2, "loss": None}])
    assert main([str(bare)]) == 0
    page = (bare / "report" / "index.html").read_text()
    assert "No k-NN of the trained network was measured." in page
    assert "config.yaml is missing or not readable." in page
    assert "loss is not a number at step 2." in page

    runs = [{"values": {"crops.global_scale": [least, 1.0]}} for least in (0.1, 0.4)]
    sweep = write_sweep(tmp_path / "lists", runs)
    (sweep / "hidden_0000000b").mkdir()
    assert main([str(sweep)]) == 0
    page = (sweep / "report" / "index.html").read_text()
    assert "[0.1, 1.0]" in page
    assert "hidden_0000000b" in page


def test_a_sweep_says_which_steps_its_collapses_saved(tmp_path: Path) -> None:
    ends = (("finished", 900), ("collapsed", 100), ("collapsed", 225))
    runs = [
        {"values": {"trainer.seed": seed}, "state": state, "steps": steps}
        for seed, (state, steps) in enumerate(ends)
    ]
    sweep = write_sweep(tmp_path / "sweep", runs)
    for run in sweep.glob("vit_micro_run*"):
        status = json.loads((run / "status.json").read_text())
        write_json(run / "status.json", status | {"total_steps": 900})
    assert main([str(sweep)]) == 0
    page = (sweep / "report" / "index.html").read_text()
    assert "2 runs ended at their collapse, which saved 55% of the steps." in page


def test_text_of_a_run_is_escaped(tmp_path: Path) -> None:
    runs = temps_momenta()[:3]
    runs[0] |= {"verdict": "</script><script>alert(1)</script>"}
    sweep = write_sweep(tmp_path / "sweep", runs)
    assert main([str(sweep)]) == 0
    page = (sweep / "report" / "index.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_watch_ends_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path / "run", state="running")
    status = json.loads((path / "status.json").read_text()) | {"heartbeat": time.time()}
    write_json(path / "status.json", status)
    page, seen = path / "report" / "index.html", []

    def wait(seconds: float) -> None:
        seen.append(('data-refresh="7.0"' in page.read_text(), seconds))
        if len(seen) == 2:
            write_lines(path / "metrics.jsonl", [record(1, 1, "slow")])
            write_json(path / "status.json", status | {"state": "finished"})

    monkeypatch.setattr(report_command.time, "sleep", wait)
    assert main([str(path), "--watch", "7"]) == 0
    assert seen == [(True, 7.0), (True, 7.0)]
    assert "data-refresh" not in page.read_text()
    assert capsys.readouterr().out.count("index.html") == 2  # nothing had changed at the second look


def test_watch_does_not_end_while_a_search_proposes_its_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, held = tmp_path / "search", []
    write_run(path / "vit_micro_00000001")
    with ExitStack() as search:
        search.enter_context(alone(path))

        def wait(seconds: float) -> None:
            held.append("data-refresh" in (path / "report" / "index.html").read_text())
            if len(held) == 2:
                search.close()

        monkeypatch.setattr(report_command.time, "sleep", wait)
        assert main([str(path), "--watch"]) == 0
    assert held == [True, True]
    assert "data-refresh" not in (path / "report" / "index.html").read_text()


def test_watch_waits_for_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, seen = tmp_path / "later", []

    def wait(seconds: float) -> None:
        seen.append(path.exists())
        if len(seen) == 2:
            path.mkdir()
        if len(seen) == 4:
            write_run(path / "vit_micro_00000001")

    monkeypatch.setattr(report_command.time, "sleep", wait)
    assert main([str(path), "--watch"]) == 0
    assert seen == [False, False, True, True]
    first, second, *files = capsys.readouterr().out.splitlines()
    assert first == f"{path}: no run yet; waiting for the first one."
    page = re.escape(str(path / "report" / "index.html"))
    assert re.fullmatch(page + r", \d\d:\d\d:\d\d: 1 run: 1 \w+", second)
    assert files
    assert {line.rpartition(".")[2] for line in files} == {"png", "svg"}

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report_command.time, "sleep", interrupt)
    assert main([str(tmp_path / "never"), "--watch"]) == 130


def test_wrong_arguments_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error_of(*words: str | Path) -> str:
        try:
            code: object = main([str(word) for word in words])
        except SystemExit as end:
            code = end.code
        assert code == 2
        return capsys.readouterr().err.splitlines()[-1]

    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    assert error_of("--watch", "outputs/x").endswith(
        "outputs/x is not a number of seconds; type python report.py outputs/x --watch, or --watch 15"
    )
    assert error_of(a, "--watch", "0").endswith("0 is not from 1 to 86400 seconds")
    words: tuple[str | Path, ...]
    for words in (("--compare", a, b, "--watch", "5"), (a, "--compare", a, b)):
        assert error_of(*words).endswith("--compare A B cannot be combined with FOLDER or --watch")
    log = a / "metrics.jsonl"
    for words in ((log,), (log, "--watch"), ("--compare", a, log)):
        assert error_of(*words) == (
            f"{log}: a file; give the folder of a run or of a sweep, e.g. {a}. "
            f"For a log, use python report.py doctor {log}."
        )
    advice = "give another folder with --out DIR."
    assert error_of(a, "--out", log) == f"{log}: something else has this name; {advice}"
    below = log / "deeper"
    assert error_of(a, "--out", below) == f"{below}: a part of the path is a file; {advice}"
    page = tmp_path / "out" / "index.html"
    page.mkdir(parents=True)
    for words in ((a,), ("--compare", a, b)):
        assert error_of(*words, "--out", page.parent) == f"{page}: it is a folder; {advice}"


def test_a_missing_library_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    really = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name.startswith("altair"):
            raise ModuleNotFoundError("No module named 'altair'", name="altair")
        return really(name, *arguments, **more)

    for name in [name for name in sys.modules if name.startswith("dino_exp.report.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("drawing", "page"):
        monkeypatch.delattr(sys.modules["dino_exp.report"], name, raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    assert main([str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "pip install 'dino-exp[report]'" in message
    assert message.count("\n") == 1
