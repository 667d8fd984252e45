"""Text that looks like a number stays as it is written, on the command line and in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from dino_exp.config.compose import check, compose
from dino_exp.config.compose_evaluation import check as check_evaluation
from dino_exp.config.text_keys import typed_words
from dino_exp.installation import CONF

NAMES = [
    "12e4567",
    "1_000",
    "007",
    "1e5",
    "+1",
    ".5",
    "1.50",
    "true",
    "True",
    "NaN",
    "inf",
    "-1",
    "0",
    "10",
    "0x1f",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stays_as_it_is_typed(name: str) -> None:
    words, _ = typed_words([f"output_root={name}", "trainer.epochs=1_0", "optimizer.lr=1e-3"])
    cfg: Any = compose(words)
    assert (cfg.output_root, cfg.trainer.epochs, cfg.optimizer.lr) == (name, 10, 1e-3)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = hydra_compose("config", words)
    composed.expected = cfg.expected  # removed where epochs are not the experiment's
    assert composed == cfg  # what runs is what was checked


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("name=a,1e3", "name=a,'1e3'"),
        ("name=choice(1e3, b)", "name=choice('1e3', b)"),
        ("name='1e3'", "name='1e3'"),
        ('name="a,1e3"', 'name="a,1e3"'),
        ("name=a 1e3", "name=a 1e3"),
        ("name=null", "name=null"),
        ("name=${output_root}", "name=${output_root}"),
        ("data.root=range(0,3)", "data.root=range(0,3)"),
        ("experiment=1e3", "experiment='1e3'"),
        ("hydra.launcher.account=1_0", "hydra.launcher.account='1_0'"),
        ("+hydra.launcher.setup=[true]", "+hydra.launcher.setup=['true']"),
        ("trainer.seed=1e3", "trainer.seed=1e3"),
        ("head.use_bn=true", "head.use_bn=true"),
    ],
)
def test_only_the_text_of_text_keys_is_quoted(word: str, expected: str) -> None:
    assert typed_words([word])[0] == [expected]
    assert typed_words([expected])[0] == [expected]


def test_sweeps_and_evaluations_keep_text_too(tmp_path: Path) -> None:
    checked = check(["-m", *typed_words(["name=a,1e3", "trainer.seed=0"])[0]])
    assert [run.cfg.name for run in checked.runs] == ["a", "1e3"]
    (tmp_path / "1e3").write_bytes(b"any")
    evaluation = check_evaluation([f"weights={tmp_path}/1e3", "output_root=1e3", "eval=embed"])
    assert evaluation.cfg is not None
    assert evaluation.cfg.output_root == "1e3"


def test_text_in_a_file_stays_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "12e4.yaml").write_text(
        "# @package _global_\ndefaults: [debug]\nname: 12e4567\noutput_root: 0123\n"
        "optimizer: {lr: 1e-3}\ndata: {root: null}\nhydra: {launcher: {account: 007, time_limit: 8:00:00}}\n"
    )
    words, _ = typed_words(["experiment=12e4", "hydra/launcher=slurm", "hydra.launcher.dry_run=true"])
    checked = check(["--config-dir", str(tmp_path), "-m", *words, "trainer.seed=0,1"])
    assert checked.errors == []
    launcher: Any = checked.launcher
    assert (launcher.account, launcher.time_limit) == ("007", "8:00:00")
    cfg: Any = checked.runs[0].cfg
    assert (cfg.name, cfg.output_root, cfg.optimizer.lr, cfg.data.root) == ("12e4567", "0123", 1e-3, None)
