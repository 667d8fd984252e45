"""Networks of timm and torchvision that cannot be trained are refused before any data are opened."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from dino_exp import cli
from dino_exp.backbone import library
from dino_exp.config import library_networks
from dino_exp.config.compose import check


def errors(name: str, *overrides: str, option: str = "timm") -> list[str]:
    return check(["experiment=debug", f"backbone={option}", f"backbone.name={name}", *overrides]).errors


def test_a_size_that_the_network_cannot_take_is_refused_only_if_there_are_such_crops() -> None:
    (refusal,) = errors("cait_xxs24_224")
    assert refusal.startswith(
        "backbone.name = cait_xxs24_224: cannot take images of 16x16 pixels (Input height"
    )
    assert errors("cait_xxs24_224", "crops.local_number=0") == []
    (refusal,) = errors("vit_b_16", "crops.global_size=64", "crops.local_size=32", option="torchvision")
    assert "take a single image size" in refusal


def test_each_run_of_a_sweep_is_checked_and_each_network_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    attempt = library_networks._try

    def counted(backbone: Any, channels: int, built_for: int, sizes: tuple[int, ...]) -> None:
        tried.append(built_for)
        attempt(backbone, channels, built_for, sizes)

    monkeypatch.setattr(library_networks, "_try", counted)
    library_networks._problem.cache_clear()
    words = ["experiment=debug", "backbone=timm", "backbone.name=resnet10t", "crops.global_size=16,24"]
    checked = check(["-m", *words, "loss.teacher_temp=0.04,0.05,0.06", "backbone.drop_path_rate=0.1"])
    assert checked.errors == []
    assert len(checked.runs) == 6
    assert sorted(tried) == [16, 24]


def test_networks_that_stay_random_and_those_without_stochastic_depth_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library_networks._problem.cache_clear()
    (refusal,) = errors("densenet121", "backbone.drop_path_rate=0.1", "crops.global_size=64")
    assert "densenet121 has no stochastic depth" in refusal
    monkeypatch.setattr(library, "switch_off_dropout", lambda model, keep_depth: None)
    (refusal,) = errors("ghostnet_050", "crops.global_size=48")
    assert refusal.startswith(
        "backbone.name = ghostnet_050: draws random numbers that cannot be switched off ("
    )
    library_networks._problem.cache_clear()


def test_the_network_is_refused_before_the_data_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    (tmp_path / "no_images").mkdir()
    words = ["experiment=debug", "data=image_folder", "data.root=no_images", "data.val_root=null"]
    assert cli.main([*words, "backbone=timm", "backbone.name=vgg11", "crops.local_size=8"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("backbone.name = vgg11: cannot take images of 8x8 pixels")
    assert printed.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["no_images"]
