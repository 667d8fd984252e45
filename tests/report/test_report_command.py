"""`report.py` as a person types it."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from synthetic import CONFIG, changed, record, temps_momenta, write_json, write_lines, write_run, write_sweep

from dino_exp.report import command
from dino_exp.report.command import main

ROOT = Path(__file__).parents[2]


def test_a_line_per_file_and_exit_code_2_for_what_is_neither(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", config=changed(CONFIG, {"name": "none_such"}))
    (run / "plots").mkdir()
    Image.new("RGB", (90, 60), "red").save(run / "plots" / "attention.png")
    words = [sys.executable, str(ROOT / "report.py")]
    done = subprocess.run([*words, str(run), "--out", str(tmp_path / "out")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert paths[0] == tmp_path / "out" / "index.html"
    assert {path.suffix for path in paths} == {".html", ".png", ".svg"}
    assert all(path.stat().st_size > 500 for path in paths)
    with Image.open(tmp_path / "out" / "loss.png") as picture:
        assert picture.width > 800
    page = paths[0].read_text()
    for wanted in (
        "Verdict: healthy",
        "Evidence: teacher entropy",
        "data:image/png",
        "41_0",
        "There is no plots/crops.png",
    ):
        assert wanted in page
    wrong = subprocess.run([*words, str(tmp_path / "nowhere")], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1


def test_bad_folders_have_a_page_that_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main([str(empty)]) == 0
    assert "There are no runs in this folder." in (empty / "report" / "index.html").read_text()
    assert main([str(empty)]) == 0  # its own report does not make it something else

    bare = tmp_path / "bare"
    write_lines(bare / "metrics.jsonl", [{"step": 1, "loss": 4.0}, {"step": 2, "loss": None}])
    assert main([str(bare)]) == 0
    page = (bare / "report" / "index.html").read_text()
    assert "No k-NN of the trained network was measured." in page
    assert "There is no readable config.yaml to compare." in page
    assert "loss is not a number at step 2." in page

    sweep = write_sweep(
        tmp_path / "lists", [{"values": {"crops.global_scale": [a, 1.0]}} for a in (0.1, 0.4)]
    )
    (sweep / "hidden_0000000b").mkdir()
    assert main([str(sweep)]) == 0
    page = (sweep / "report" / "index.html").read_text()
    assert "[0.1, 1.0]" in page
    assert "hidden_0000000b" in page


def test_what_a_run_says_cannot_become_part_of_the_page(tmp_path: Path) -> None:
    runs = temps_momenta()[:3]
    runs[0] |= {"verdict": "</script><script>alert(1)</script>"}
    sweep = write_sweep(tmp_path / "sweep", runs)
    assert main([str(sweep)]) == 0
    page = (sweep / "report" / "index.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_watching_goes_on_until_the_run_ends(
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

    monkeypatch.setattr(command.time, "sleep", wait)
    assert main([str(path), "--watch", "7"]) == 0
    assert seen == [(True, 7.0), (True, 7.0)]
    assert "data-refresh" not in page.read_text()
    assert capsys.readouterr().out.count("index.html") == 2  # nothing had changed at the second look


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
