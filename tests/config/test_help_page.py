"""`train.py --help` lists groups, options and keys with their current values."""

import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from dino_exp import cli
from dino_exp.config.compose import check, compose
from dino_exp.config.help import EXAMPLES, KEYS, docstrings
from dino_exp.config.schema import TrainerConfig
from dino_exp.eval.evaluate_command import main as evaluate
from dino_exp.installation import CONF


def page(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert cli.main([*argv, "--help"]) == 0
    return capsys.readouterr().out


def test_the_page_lists_every_group_and_option_but_not_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    words = page(capsys).replace("*", "").split()
    assert evaluate(["--help"]) == 0
    of_evaluate = capsys.readouterr().out.replace("*", "").split()
    for path in CONF.glob("*/*.yaml"):
        where = of_evaluate if path.parent.name == "linear" else words
        assert path.parent.name in where
        assert (path.stem in where) == (path.stem != "given")  # which Python code alone can choose
    assert "schema" not in words
    assert "released_vit_small" not in words


def test_keys_come_with_value_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    lines = page(capsys).splitlines()
    key = next(line for line in lines if line.strip().startswith("head.out_dim"))
    out_dim = str(compose().head.out_dim)
    assert key.split() == ["head.out_dim", out_dim, "K,", "the", "number", "of", "prototypes."]
    assert 20 <= len(KEYS) <= 30
    assert docstrings()["TrainerConfig"].keys() == {field.name for field in fields(TrainerConfig)}


def test_values_are_those_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    text = page(capsys, "experiment=paper_vits16", "trainer.epochs=300")
    words = text.split()
    assert words[words.index("data.root") + 1 : words.index("data.root") + 3] == ["(not", "set)"]
    assert words[words.index("trainer.epochs") + 1] == "300"
    assert "paper_vits16*" in words


def test_a_launcher_has_its_keys_on_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    text = page(capsys, "-m", "hydra/launcher=slurm")
    assert "Keys of slurm: hydra.launcher.key=value" in text
    assert "Cores of each process" in text


def test_the_keys_of_evaluate_come_with_their_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(["--help"]) == 0
    assert "A file of weights for `backbone`, instead of a run." in capsys.readouterr().out


def test_examples_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sbatch").touch(mode=0o755)  # which a launcher for SLURM looks for
    monkeypatch.setenv("PATH", str(tmp_path))
    for line, _ in EXAMPLES:
        argv = [word for word in shlex.split(line)[1:] if not word.startswith("data.root=")]
        unmet = [error for error in check(argv).errors if not error.startswith("data.root: not set")]
        assert unmet == []


def test_the_page_has_a_maximum_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert max(len(line.rstrip()) for line in page(capsys).splitlines()) <= 120
