"""A run's id depends on everything that can change its result, and on nothing else."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dino_exp.config.compose import compose
from dino_exp.config.identity import differing_keys, identity, run_id

SMALL: dict[str, Any] = {
    "backbone": {"name": "vit_micro", "drop_path_rate": 0.0},
    "head": {"out_dim": 64},
    "crops": {"global_scale": [0.4, 1.0]},
    "augment": {"flip": 0.5},
    "loss": {"teacher_temp": 0.02, "center_momentum": 0.5},
    "ema": {"momentum": 0.99},
    "optimizer": {"lr": 0.008},
    "data": {"root": None},
    "trainer": {"batch_size": 32, "seed": 0},
}


def test_the_id_is_readable_and_never_changes() -> None:
    """Otherwise a run would restart from scratch after an update of this project."""
    assert run_id(SMALL) == "vit_micro_K64_tt0.02_m0.5_ema0.99_lr0.008_b32_s0_672befbc"


def test_the_id_ignores_order_and_spelling_of_numbers() -> None:
    turned = {group: dict(reversed(values.items())) for group, values in reversed(SMALL.items())}
    turned["backbone"]["drop_path_rate"] = 0
    turned["crops"]["global_scale"] = [0.4, 1]
    turned["head"]["out_dim"] = 64.0
    assert run_id(turned) == run_id(SMALL)
    pairs = [
        (["loss.student_temp=0.1"], ["loss.student_temp=1e-1"]),
        (["ema.final_momentum=1"], ["ema.final_momentum=1.0"]),
        (["trainer.seed=1", "loss.teacher_temp=0.04"], ["loss.teacher_temp=0.04", "trainer.seed=1"]),
        (["loss.teacher_temp=${loss.warmup_teacher_temp}"], []),
    ]
    for one, other in pairs:
        assert run_id(compose(one)) == run_id(compose(other))


def test_the_id_ignores_tracker_evaluation_names_and_folders() -> None:
    words = ["tracker=tensorboard", "output_root=elsewhere", "name=other", "resume=never"]
    words += ["trainer.device=cpu", "trainer.num_workers=3", "trainer.log_every=7"]
    words += ["trainer.checkpoint_every=7", "eval.k=5", "eval.every_epochs=3"]
    assert run_id(compose(words)) == run_id(compose())


def test_the_id_depends_on_every_other_key() -> None:
    cfg = compose()
    ids = {run_id(cfg)}
    keys = identity(cfg)
    for key, value in keys.items():
        plain = OmegaConf.create(OmegaConf.to_container(cfg))
        changed = "changed" if isinstance(value, (str, type(None), list)) else value + 0.125
        OmegaConf.update(plain, key, changed)
        ids.add(run_id(plain))
    assert len(ids) == len(keys) + 1
    assert keys.keys() >= {"data.train_size", "trainer.epochs", "trainer.precision", "loss._target_"}


def test_the_id_is_the_same_after_writing_and_reading_the_file(tmp_path: Path) -> None:
    cfg = compose(["optimizer=adamw", "trainer.epochs=20"])
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    back = OmegaConf.load(tmp_path / "config.yaml")
    assert isinstance(back, DictConfig)
    assert run_id(back) == run_id(cfg)
    assert differing_keys(back, cfg) == {}
    other = compose(["optimizer=adamw", "trainer.epochs=20", "backbone=resnet18", "trainer.device=cpu"])
    different = differing_keys(back, other)
    assert different["backbone.name"] == ("vit_micro", "resnet18")
    assert different["backbone.depth"] == (3, None)
    assert all(key.startswith("backbone.") for key in different)


def test_model_names_become_valid_folder_names() -> None:
    cfg = compose(["backbone=timm", "backbone.name=vit_tiny_patch16_224.augreg_in21k"])
    assert run_id(cfg).startswith("vit_tiny_patch16_224.augreg_in21k_K64_")
    assert run_id(SMALL | {"backbone": {"name": "hf-hub:a/b c"}}).startswith("hf-hub-a-b-c_K64_")
