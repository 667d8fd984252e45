"""`python -m dino_exp.export`: the model card, the defaults, and errors that write nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from dino_exp.export import to_onnx
from dino_exp.export.card import rows, stored
from dino_exp.export.export_command import main
from dino_exp.runs.run_directory import RunDirectory
from tests.programs import run_program


def test_values_in_the_card_are_text() -> None:
    hostile = rows({"data": "x | <script>\n\n# New [a](b) `c`", "seed": "0"})
    assert hostile == "| data | x \\| \\<script> # New \\[a\\](b) \\`c\\` |\n| seed | 0 |"


def test_the_card_says_how_stored_values_became_bytes() -> None:
    assert stored({"channels": 3}) == ""
    text = stored({"bands": [3, 2, 1], "range": [[0, 4095], ["p1", "p99"], ["mean-2sd", 9]]})
    assert "(bands [3, 2, 1] of the files)".replace("[", "\\[").replace("]", "\\]") in text
    assert "4095" in text
    assert "'p99'" in text


def test_the_card_describes_data_training_result_and_license(patch_run: Path) -> None:
    words = [f"run={patch_run}", "format=timm", "license=apache-2.0"]
    done = run_program("-m", "dino_exp.export", *words, folder=patch_run.parent)
    out = patch_run / "export" / "timm_teacher_last"
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{out}\n", "")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "model.safetensors"]
    card = (out / "README.md").read_text()
    summary, status = RunDirectory(patch_run).read_summary(), RunDirectory(patch_run).read_status()
    for line in (
        "license: apache-2.0",
        "The teacher's backbone of the run `run`",
        "after step 2.",
        "Images: 32 x 32 pixels, 3 channels",
        "minus the mean [0.5, 0.5, 0.5]",
        "| data | shapes |",
        "| prototypes | 64 |",
        f"| verdict | {summary['verdict']}: {summary['evidence']} |",
        f"| k-NN top-1 of the teacher on held-out images | {summary['knn_top1']:.1f} % |",
        f"revision {status['git_revision'] or 'unknown'}",
        "License: apache-2.0.",
    ):
        assert line in card
    assert list(out.parent.iterdir()) == [out]
    before = card, (out / "model.safetensors").read_bytes()
    assert main([f"run={patch_run}", "format=timm"]) == 2
    assert ((out / "README.md").read_text(), (out / "model.safetensors").read_bytes()) == before


def test_the_best_checkpoint_is_exported_with_its_own_step_and_accuracy(
    patch_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "best"
    assert main([f"run={patch_run}", "format=dino", "checkpoint=best", f"out={out}"]) == 0
    best = torch.load(patch_run / "checkpoints" / "best.pt", weights_only=True)
    card = (out / "README.md").read_text()
    assert f"after step {best['step']}." in card
    assert f"| {best['best_knn']:.1f} % |" in card
    assert "license: unknown" in card
    assert "Student and teacher of the run" in card


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["run=nowhere", "format=timm"], "run = nowhere: not a run, it has no config.yaml"),
        (["run=folder", "format=timm"], "run = folder: not a run, it has no config.yaml"),
        (["run=begun", "format=timm"], "run = begun: no checkpoints/last.pt; nothing has been saved yet."),
        (["run=cut", "format=timm"], "cut/checkpoints/last.pt: not a complete file of weights"),
        (["run=foreign", "format=timm"], "foreign/checkpoints/last.pt: not a checkpoint of this project"),
        (["run=PATCH", "format=gguf"], "format = gguf: must be timm, transformers, dino, torchhub or onnx."),
        (["run=PATCH", "fromat=timm"], "fromat=timm: no such key; did you mean format=...?"),
        (["run=PATCH"], "format: not set; use e.g. format=timm."),
        (["format=timm"], "run: not set"),
        (["run=PATCH", "format=timm", "out=folder"], "out = folder: already exists"),
        (["run=CONV", "format=timm", "out=new/folder"], "backbone.stem = conv: timm has no transformer"),
    ],
)
def test_an_export_that_fails_prints_one_line_and_writes_nothing(
    patch_run: Path,
    conv_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    error: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    content = (patch_run / "checkpoints" / "last.pt").read_bytes()
    for name in ("begun", "cut", "foreign"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_bytes((patch_run / "config.yaml").read_bytes())
    (tmp_path / "cut" / "checkpoints" / "last.pt").write_bytes(content[: len(content) // 2])
    torch.save({"state_dict": {"x": torch.ones(1)}}, tmp_path / "foreign" / "checkpoints" / "last.pt")
    before = sorted(tmp_path.rglob("*"))
    for name, run in {"PATCH": patch_run, "CONV": conv_run}.items():
        words = [word.replace(name, str(run)) for word in words]
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(error)
    assert (printed.err.count("\n"), printed.out) == (1, "")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_of_another_network_is_refused(
    patch_run: Path, conv_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_bytes((conv_run / "config.yaml").read_bytes())
    (tmp_path / "checkpoints" / "last.pt").write_bytes((patch_run / "checkpoints" / "last.pt").read_bytes())
    assert main([f"run={tmp_path}", "format=torchhub"]) == 2
    assert "backbone.patch_embed.proj.weight has shape (64, 3, 4, 4)" in capsys.readouterr().err


def test_a_missing_library_is_named(
    conv_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, to_onnx.LIBRARIES[-1], None)
    assert main([f"run={conv_run}", "format=onnx", f"out={tmp_path / 'out'}"]) == 2
    error = "format = onnx: onnxruntime is missing; install it with pip install 'dino-exp[export]'."
    assert error in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
