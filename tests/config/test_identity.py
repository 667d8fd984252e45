"""A run's id depends on everything that can change its result, and on nothing else."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from dino_exp.config.compose import compose
from dino_exp.config.identity import differing_keys, identity, run_id, run_ids

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
        (["loss=small", "loss.teacher_temp=${loss.warmup_teacher_temp}"], ["loss=small"]),
    ]
    for one, other in pairs:
        assert run_id(compose(one)) == run_id(compose(other))


def test_the_id_ignores_tracker_evaluation_names_and_folders() -> None:
    words = ["tracker=tensorboard", "output_root=elsewhere", "name=other", "resume=never"]
    words += ["trainer.device=cpu", "trainer.num_workers=3", "trainer.log_every=7"]
    words += ["trainer.checkpoint_every=7", "eval.k=5", "eval.every_epochs=3"]
    assert run_id(compose(words)) == run_id(compose())
    assert run_id(compose(["trainer.cuda_graph=true"])) == run_id(compose())


def test_a_run_that_its_collapse_ends_is_the_one_that_goes_on_but_was_another_once() -> None:
    words = ["experiment=shapes"]
    ends, goes_on = run_ids(compose([*words, "trainer.on_collapse=stop"])), run_ids(compose(words))
    assert ends[0] == goes_on[0]
    assert "vit_micro_K64_tt0.02_m0.5_ema0.99_lr0.008_b32_s0_670f9a8c" in ends


def test_the_id_depends_on_every_other_key() -> None:
    cfg = compose()
    ids = {run_id(cfg)}
    keys = identity(cfg)
    # which the first ids had, as generated images have a cache
    for key in ("data.max_corrupt", "data.root", "trainer.on_collapse"):
        del keys[key]
    for key, value in keys.items():
        plain = OmegaConf.create(OmegaConf.to_container(cfg))
        changed = "changed" if isinstance(value, (str, type(None), list)) else value + 0.125
        OmegaConf.update(plain, key, changed)
        ids.add(run_id(plain))
    assert len(ids) == len(keys) + 1
    assert keys.keys() >= {"data.train_size", "trainer.epochs", "trainer.precision", "loss._target_"}


def stored(**data: Any) -> dict[str, Any]:
    """Return a run over images in files, whose content is known if it is given as `content`."""
    content = data.pop("content", None)
    node: dict[str, Any] = {"_target_": "dino_exp.data.folder.load", "name": "image_folder", "root": "train"}
    node |= {"val_root": "auto", "packed": False, "mean": [0.5], "max_corrupt": 0.01}
    return SMALL | {"data": node | data, "data_content": content}


def test_stored_images_are_their_content_if_it_is_known_and_else_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    known = run_id(stored(content="abc"))
    elsewhere = {"root": "/x.tar", "val_root": None, "_target_": "dino_exp.data.webdataset.load", "name": "x"}
    assert run_id(stored(content="abc", **elsewhere, max_corrupt=0.5)) == known
    assert run_id(stored(content="other")) != known
    assert run_id(stored(content="abc", packed=True)) != known
    assert run_id(stored(content="abc", mean=[0.4])) != known
    assert run_id(stored(content="abc", bands=None, range=None)) == known
    deep = run_id(stored(content="abc", range=[[0, 4095]]))
    assert deep != known
    assert run_id(stored(content="abc", range=[[0.0, 4095.0]])) == deep
    assert run_id(stored(content="abc", bands=[1])) != known
    unknown = run_id(stored())
    assert unknown != known
    for root in ("train/", "./train", str(tmp_path / "train"), "x/../train"):
        assert run_id(stored(root=root, max_corrupt=0.5)) == unknown
    assert run_id(stored(root="trains")) != unknown
    assert run_id(stored(probe={"train": None, "val": None})) == unknown
    assert run_id(stored(probe={"train": None, "val": "probe"})) != unknown
    assert (
        run_id(stored(content="abc", probe={"train": None, "val": "probe"})) == known
    )  # which is of all images
    assert run_ids(stored(content="abc"))[:2] == [known, unknown]
    monkeypatch.chdir("/")
    assert run_id(stored()) != unknown


def test_content_differs_in_words_and_the_place_only_where_there_is_no_content() -> None:
    old, new = stored(content="0123456789", root="/v1"), stored(content="9876543210", root="/v2")
    pair = ("image_folder /v1 (content 01234567)", "image_folder /v2 (content 98765432)")
    assert differing_keys(old, new) == {"data_content": pair}
    assert differing_keys(old, old | {"data": new["data"]}) == {}
    assert differing_keys(stored(root="/v1"), new) == {"data.root": ("/v1", "/v2")}
    assert differing_keys(stored(root="/v2/"), new) == {}


def test_the_cache_of_a_data_set_does_not_count_but_unchecked_files_do() -> None:
    for name, ids in (("cifar10", 1), ("fashion_mnist", 2)):
        words = [f"data={name}", "data.max_corrupt=0.2"]
        assert len({run_id(compose([*words, *root])) for root in ([], ["data.root=/cache"])}) == ids


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
    assert different["backbone.depth"] == (1, None)
    assert all(key.startswith("backbone.") for key in different)


def test_model_names_become_valid_folder_names() -> None:
    cfg = compose(["backbone=timm", "backbone.name=vit_tiny_patch16_224.augreg_in21k", "crops=small"])
    assert run_id(cfg).startswith("vit_tiny_patch16_224.augreg_in21k_K64_")
    assert run_id(SMALL | {"backbone": {"name": "hf-hub:a/b c"}}).startswith("hf-hub-a-b-c_K64_")
