"""Former names: identities use first names, and readers present ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from dino_exp import cli
from dino_exp.config import compose_evaluation
from dino_exp.config.compose import check, compose
from dino_exp.config.hydra_loader import loader
from dino_exp.config.identity import differing_keys, identity, run_id
from dino_exp.config.search_space import Choices, Numbers
from dino_exp.config.stored import parse, read_config, read_plain
from dino_exp.errors import UserError
from dino_exp.eval import records
from dino_exp.runs import former_names
from dino_exp.runs.former_names import Names
from dino_exp.runs.manifest import Manifest
from dino_exp.runs.run_directory import RunDirectory, read_metrics
from launchers.search_study import in_first_names

# Present names are those of this revision; the former names are invented.
RENAMED = Names(
    targets={
        "oldest.Loss": "dino_exp.dino.loss.DINOLoss",
        "older.Loss": "dino_exp.dino.loss.DINOLoss",
        "older.vit": "dino_exp.backbone.vit.VisionTransformer",
    },
    keys={
        "loss.centre_momentum": "loss.center_momentum",
        "criterion": "loss",
        "criterion.tau": "loss.teacher_temp",
        "hydra.launcher.queue": "hydra.launcher.partition",
        "attention.photos": "attention.images",
    },
    options={"ablation=sans_ema": "no_ema", "ema=thesis": "paper", "hydra/launcher=cluster": "slurm"},
    values={"loss.centering=moyenne": "mean", "verdict=well": "healthy", "loss.center_init=null": "zeros"},
    metrics={"centre_norm": "center_norm", "knn": "knn_top1", "images_seen": "images"},
    later_keys={"loss.sharpening": True, "backbone.stem": "patch"},
)


@pytest.fixture
def renamed(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Use a table of invented former names."""
    monkeypatch.setattr(former_names, "TABLE", RENAMED)
    return RENAMED


def former_config() -> dict[str, Any]:
    """Return a configuration as it was written before the renames, and before two later keys."""
    cfg: Any = OmegaConf.to_container(compose(["experiment=debug", "backbone.stem=patch"]), resolve=True)
    cfg["criterion"] = {
        {"center_momentum": "centre_momentum", "teacher_temp": "tau"}.get(key, key): value
        for key, value in cfg.pop("loss").items()
        if key != "sharpening"
    }
    cfg["criterion"] |= {"_target_": "older.Loss", "centering": "moyenne"}
    cfg["backbone"] |= {"_target_": "older.vit"}
    del cfg["backbone"]["stem"]
    return cfg


def test_an_identity_uses_first_names(renamed: Names) -> None:
    values = identity(compose(["experiment=debug", "backbone.stem=patch", "loss.sharpening=true"]))
    assert values["criterion._target_"] == "oldest.Loss"
    assert values["criterion.centre_momentum"] == 0.5
    assert values["criterion.tau"] == 0.02
    assert values["criterion.centering"] == "moyenne"
    assert not values.keys() & {"loss.center_momentum", "loss.sharpening", "criterion.sharpening"}
    other = identity(compose(["experiment=debug", "loss.sharpening=false"]))
    assert other["criterion.sharpening"] is False
    assert other["backbone.stem"] == "conv"


def test_a_configuration_in_former_names_is_the_same_run(renamed: Names, tmp_path: Path) -> None:
    cfg = compose(["experiment=debug", "backbone.stem=patch"])
    directory = RunDirectory(tmp_path)
    directory.config_file.write_text(OmegaConf.to_yaml(OmegaConf.create(former_config())))
    assert differing_keys(read_plain(directory), cfg) == {}
    stored = read_config(directory)
    assert run_id(stored) == run_id(cfg)
    assert stored == cfg
    assert OmegaConf.get_type(stored.loss) is OmegaConf.get_type(cfg.loss)


def test_a_missing_later_key_gets_the_value_from_the_table(renamed: Names) -> None:
    """This holds only where the class has the key; the default may be another value."""
    text = OmegaConf.to_yaml(OmegaConf.create(former_config() | {"backbone": {"_target_": "x", "name": "y"}}))
    config = parse(text.encode())
    assert config["loss"]["sharpening"] is True
    assert "stem" not in config["backbone"]


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    cfg: Any = OmegaConf.to_container(compose(["experiment=debug"]), resolve=True)
    cfg["loss"]["centre_momentum"] = 0.5
    directory.config_file.write_text(OmegaConf.to_yaml(OmegaConf.create(cfg)))
    with pytest.raises(UserError, match=r"loss\.centre_momentum: no such key; did you mean loss\.center_mom"):
        read_config(directory)
    cfg["loss"].pop("centre_momentum")
    cfg["data"]["_target_"] = "os.system"
    directory.config_file.write_text(OmegaConf.to_yaml(OmegaConf.create(cfg)))
    with pytest.raises(UserError, match=r"data\._target_ = os\.system: no component of this project"):
        read_config(directory)


def test_a_key_under_two_names_is_refused(renamed: Names) -> None:
    with pytest.raises(ValueError, match=r"given twice; it is now called loss\.teacher_temp"):
        renamed.present_config({"loss": {"teacher_temp": 1}, "criterion": {"tau": 2}})


def test_typed_former_names_are_translated(renamed: Names, capsys: pytest.CaptureFixture[str]) -> None:
    typed = {
        "criterion.tau=0.02,0.04": "loss.teacher_temp=0.02,0.04",
        "ablation=sans_ema,no_sharpening": "ablation=no_ema,no_sharpening",
        "loss.centering=choice(moyenne,'none')": "loss.centering=choice(mean,'none')",
        "criterion=dino": "loss=dino",
        "+hydra.launcher.queue=long": "+hydra.launcher.partition=long",
        "loss.student_temp=${criterion.tau}": "loss.student_temp=${loss.teacher_temp}",
        "data.root=/a/moyenne": "data.root=/a/moyenne",
        "hydra/launcher=cluster": "hydra/launcher=slurm",
    }
    assert renamed.present_words(list(typed))[0] == list(typed.values())
    words = ["-m", "criterion.tau=0.02,0.04", "ablation=sans_ema,no_sharpening", "trainer.seed=x"]
    assert cli.main(words) == 2
    assert capsys.readouterr().err.splitlines()[:2] == [
        "warning: criterion.tau=0.02,0.04: now called loss.teacher_temp=0.02,0.04.",
        "warning: ablation=sans_ema,no_sharpening: now called ablation=no_ema,no_sharpening.",
    ]
    assert compose(["criterion.tau=0.03"]).loss.teacher_temp == 0.03
    checked = compose_evaluation.check(["run=nowhere", "attention.photos=3"])
    assert checked.warnings == ["attention.photos=3: now called attention.images=3."]


def test_former_names_in_a_users_file_are_refused(renamed: Names, tmp_path: Path) -> None:
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    for content, error in (
        ("loss: {centre_momentum: 0.5}", "loss.centre_momentum: now called loss.center_momentum."),
        ("loss: {centering: moyenne}", "loss.centering = moyenne: now called mean."),
        (
            "loss: {_target_: older.Loss}",
            "loss._target_ = older.Loss: now called dino_exp.dino.loss.DINOLoss.",
        ),
        (
            "defaults: [{override /ema: thesis}]",
            "ema=thesis: now called ema=paper. A configuration file asks for it.",
        ),
    ):
        file.write_text(f"# @package _global_\n{content}\n")
        loader.cache_clear()
        (found,) = check(["--config-dir", str(tmp_path), "experiment=mine"]).errors
        assert found.endswith(error)


def test_former_names_in_a_users_sweep_are_translated(renamed: Names, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    content = "# @package _global_\nhydra: {sweeper: {params: {criterion.tau: '0.02,0.04'}}}\n"
    (tmp_path / "sweep" / "mine.yaml").write_text(content)
    checked = check(["-m", "--config-dir", str(tmp_path), "sweep=mine", "loss.center_momentum=0,0.9"])
    assert checked.errors == []
    assert checked.runs[0].overrides == ("loss.teacher_temp=0.02", "loss.center_momentum=0")
    assert checked.sweep_dir == "outputs/demo_mine_centre_momentum"


def test_metrics_are_read_in_present_names(renamed: Names, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    lines = [{"step": step, "centre_norm": 1.0, "verdict": "well"} for step in range(9)]
    lines[5]["knn"] = 50.0
    directory.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    present = {"step": 5, "center_norm": 1.0, "verdict": "healthy", "knn_top1": 50.0}
    assert read_metrics(directory.metrics_file)[5] == present
    directory.rewind_metrics(6)
    directory.append_metrics({"step": 7, "center_norm": 2.0})
    written = [json.loads(line) for line in directory.metrics_file.read_text().splitlines()]
    assert [line["step"] for line in written] == list(range(8))
    assert all("center_norm" in line and "centre_norm" not in line for line in written)
    former = {"knn": 1.0, "final": {"centre_norm": 2.0}, "environment": {"knn": 3}}
    directory.summary_file.write_text(json.dumps(former))
    summary = {"knn_top1": 1.0, "final": {"center_norm": 2.0}, "environment": {"knn": 3}}
    assert directory.read_summary() == summary


def test_a_knn_in_a_large_file_is_found_under_a_former_name(
    renamed: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dino_exp.runs.metrics_lines.COMPLETE_UP_TO", 1000)
    lines: list[dict[str, Any]] = [{"step": step, "centre_norm": 1.0} for step in range(5000)]
    lines[1234]["knn"] = 50.0
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_metrics(tmp_path / "metrics.jsonl", [], 24)
    assert {"step": 1234, "center_norm": 1.0, "knn_top1": 50.0} in found


def test_a_checkpoint_is_read_in_present_names(renamed: Names) -> None:
    former, present = (
        {"step": 3, "last_metrics": {norm: 1.0}, "judge": {"recent": [{norm: 2.0}], "word": "healthy"}}
        for norm in ("centre_norm", "center_norm")
    )
    assert renamed.present_state(former) == present


def test_evaluations_keep_their_keys(renamed: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    former = {
        "evaluation": "attention",
        "weights": {"sha256": "1", "network": "teacher", "step": 3},
        "backbone": {"_target_": "older.vit", "name": "vit_micro"},
        "data": None,
        "settings": {"photos": 8, "mass": 0.6},
        "images_seen": {"seed": 0},
        "figures": {"knn": 1.0},
    }
    monkeypatch.setattr(former_names, "TABLE", Names())
    key = records.key({**former, "images": former["images_seen"]})
    monkeypatch.setattr(former_names, "TABLE", renamed)
    present = renamed.present_evaluation(former)
    assert list(present) == [{"images_seen": "images"}.get(name, name) for name in former]
    assert present["backbone"]["_target_"] == "dino_exp.backbone.vit.VisionTransformer"
    assert present["settings"] == {"images": 8, "mass": 0.6}
    assert present["images"] == {"seed": 0}
    assert present["figures"] == {"knn_top1": 1.0}
    assert renamed.first_node("backbone", present["backbone"]) == former["backbone"]
    assert key != records.key(present)  # the field `images_seen` is part of it
    assert records.key(present) == records.key(renamed.present_evaluation(present))


def test_a_manifest_is_read_in_present_names(renamed: Names, tmp_path: Path) -> None:
    entry = {"overrides": ["criterion.tau=0.02", "ablation=sans_ema"], "config_hash": "1"}
    content = {"launcher": "cluster", "settings": {"queue": "long"}, "runs": {"a": entry}}
    Manifest.path(tmp_path).write_text(json.dumps(content))
    manifest = Manifest.load(tmp_path)
    assert (manifest.launcher, manifest.settings) == ("slurm", {"partition": "long"})
    assert manifest.runs["a"].overrides == ["loss.teacher_temp=0.02", "ablation=no_ema"]


def test_a_search_space_is_stored_in_first_names(renamed: Names) -> None:
    assert in_first_names(Numbers("loss.teacher_temp", 0.02, 0.2)) == Numbers("criterion.tau", 0.02, 0.2)
    space = in_first_names(Choices("ablation", ("no_ema", "sound")))
    assert space == Choices("ablation", ("sans_ema", "sound"))
    assert renamed.present_word(f"{space.key}={space.text('sans_ema')}") == "ablation=no_ema"


def test_a_group_and_its_keys_may_be_renamed_in_any_order() -> None:
    """The identity has the oldest name, whichever rename came first."""
    names = Names(keys={"augment": "augmentation", "augmentation.grey": "augmentation.gray"})
    assert names.present_key("augment.grey") == "augmentation.gray"
    assert names.first_key("augmentation.gray") == "augment.grey"
    assert names.first_key("augmentation.flip") == "augment.flip"
    names = Names(keys={"augment.grey": "augmentation.gray", "augment": "augmentation"})
    assert names.present_key("augment.gray") == "augmentation.gray"
    assert names.first_key("augmentation.gray") == "augment.grey"
