"""The files of `conf/`: all options compose, experiments match published recipes, typed values win."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from dino_exp.config.compose import Checked, check, compose
from dino_exp.config.compose_evaluation import check as check_evaluation
from dino_exp.config.evaluation_schema import LinearConfig
from dino_exp.config.identity import run_id
from dino_exp.config.schema import SCHEMAS, schema_of
from dino_exp.installation import CONF

OPTIONS = sorted(
    f"{path.parent.name}={path.stem}"
    for path in CONF.glob("*/*.yaml")
    if path.parent.name in (*SCHEMAS, "experiment") and path.stem != "given"  # for Python code alone
)
CHANGES = sorted(
    f"{group}={path.stem}"
    for group in ("temperature", "ablation", "sweep")
    for path in CONF.glob(f"{group}/*.yaml")
)
"""Groups whose options change values in other groups."""
SWEEPS = sorted(path.stem for path in CONF.glob("sweep/*.yaml"))
EXPERIMENTS = sorted(path.stem for path in CONF.glob("experiment/*.yaml"))
NEEDED = {
    **{f"backbone={name}": ["crops=small"] for name in ("vit_tiny", "vit_small", "vit_base", "xcit_small")},
    "backbone=timm": ["backbone.name=vit_tiny_patch16_224", "crops=small"],
    "backbone=torchvision": ["backbone.name=resnet34"],
    "backbone=convnext_tiny": ["crops.global_size=64", "crops.local_size=32"],
}


@pytest.mark.parametrize("option", [option for option in OPTIONS if not option.startswith("experiment=")])
def test_every_option_composes_into_its_schema_and_is_valid(option: str, tmp_path: Path) -> None:
    stored = option in ("data=image_folder", "data=webdataset", "data=huggingface")
    root = [f"data.root={tmp_path}"] if stored else []
    cfg = compose([option, "trainer.epochs=100", *root, *NEEDED.get(option, [])])
    group = option.partition("=")[0]
    assert schema_of(getattr(cfg, group)) in SCHEMAS[group].values()


@pytest.mark.parametrize("option", sorted(path.stem for path in CONF.glob("linear/*.yaml")))
def test_every_way_to_train_linear_classifiers_is_valid(option: str, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"any")
    checked = check_evaluation(
        [f"weights={weights}", "eval=linear", f"linear={option}", f"data.root={tmp_path}"]
    )
    assert checked.problems == []
    assert checked.cfg is not None
    assert schema_of(checked.cfg.linear) is LinearConfig


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_valid_and_warns_of_nothing(experiment: str, tmp_path: Path) -> None:
    root = [f"data.root={tmp_path}"] if experiment.startswith(("paper", "cifar10_folder")) else []
    checked = check([f"experiment={experiment}", *root])
    assert (checked.errors, checked.warnings) == ([], [])
    assert checked.cfg is not None
    assert checked.cfg.name == experiment


@pytest.mark.parametrize("sweep", SWEEPS)
@pytest.mark.parametrize("experiment", ["demo", "debug", "cifar10_resnet18", "paper_vits16"])
def test_every_sweep_is_valid_over_experiments(sweep: str, experiment: str, tmp_path: Path) -> None:
    root = [f"data.root={tmp_path}"] if experiment == "paper_vits16" else []
    checked = check(["-m", f"sweep={sweep}", f"experiment={experiment}", *root])
    assert checked.errors == []
    assert len(checked.runs) > 1
    assert checked.sweep_dir == f"outputs/{experiment}_{sweep}"


def swept(*overrides: str) -> tuple[list[tuple[str, ...]], str | None]:
    """Return the runs of a sweep, and its folder."""
    checked = check(["-m", *overrides])
    assert checked.errors == []
    return [run.overrides for run in checked.runs], checked.sweep_dir


def values(checked: Checked, *keys: str) -> list[tuple[Any, ...]]:
    """Return the values of some keys in each run of a sweep."""
    return [tuple(OmegaConf.select(run.cfg, key) for key in keys) for run in checked.runs]


@pytest.mark.parametrize(("experiment", "epochs"), [("debug", 1), ("demo", 4), ("paper_vits16", 30)])
def test_the_papers_row_of_temperatures_has_the_warm_up_as_a_cell(
    experiment: str, epochs: int, tmp_path: Path
) -> None:
    checked = check(["-m", "sweep=teacher_temp", f"experiment={experiment}", f"data.root={tmp_path}"])
    row = values(checked, "loss.teacher_temp", "loss.warmup_teacher_temp_epochs")
    assert row == [(0, 0), (0.02, 0), (0.04, 0), (0.06, 0), (0.08, 0), (0.07, epochs)]
    assert values(checked, "loss.warmup_teacher_temp")[-1] == (0.04,)
    assert checked.runs[-1].overrides == ("temperature=warmup_0.04_0.07",)


def test_the_collapse_study_removes_one_part_at_a_time() -> None:
    checked = check(["-m", "sweep=collapse_study", "experiment=cifar10_resnet18"])
    keys = ("loss.centering", "loss.sharpening", "ema.schedule", "ema.momentum")
    assert dict(zip([run.overrides[0] for run in checked.runs], values(checked, *keys), strict=True)) == {
        "ablation=sound": ("mean", True, "constant", 0.99),
        "ablation=no_centering": ("none", True, "constant", 0.99),
        "ablation=no_sharpening": ("mean", False, "constant", 0.99),
        "ablation=neither": ("none", False, "constant", 0.99),
        "ablation=no_ema": ("mean", True, "constant", 0.0),
    }
    assert run_id(checked.runs[0].cfg) == run_id(compose(["experiment=cifar10_resnet18"]))


def test_typed_keys_change_and_extend_a_preset() -> None:
    runs, folder = swept("sweep=seeds", "trainer.seed=range(0,5)")
    assert (runs, folder) == ([(f"trainer.seed={seed}",) for seed in range(5)], "outputs/demo_seeds")
    runs, folder = swept("sweep=collapse_study", "trainer.seed=0,1")
    assert (len(runs), folder) == (10, "outputs/demo_collapse_study_seed")
    runs, folder = swept("sweep=center_momentum", "experiment=demo,debug")
    assert (len(runs), folder) == (8, "outputs/center_momentum_experiment")
    assert swept("sweep=seeds", "name=mine")[1] == "outputs/mine"


@pytest.mark.parametrize("change", CHANGES)
def test_options_that_change_other_groups_have_a_comment(change: str) -> None:
    group, _, name = change.partition("=")
    first, second, *_ = (CONF / group / f"{name}.yaml").read_text().splitlines()
    assert first == ("# @package loss" if group == "temperature" else "# @package _global_")
    assert second.startswith("# ")


def test_demo_is_the_default() -> None:
    assert compose() == compose(["experiment=demo"])


@pytest.mark.parametrize("option", OPTIONS)
def test_files_have_a_comment_and_name_their_component(option: str) -> None:
    group, _, name = option.partition("=")
    text = (CONF / group / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    extends = [entry for entry in yaml.safe_load(text)["defaults"] if isinstance(entry, str)]
    from_scratch = all(entry.startswith("/schema/") for entry in extends)
    names_it = "\n_target_: dino_exp." in text
    assert names_it == (from_scratch and group not in ("experiment", "trainer"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments_set_values_only_where_no_other_option_could_be_typed(experiment: str) -> None:
    """Else `experiment=x optimizer=sgd` would be sgd with some of the experiment's values for AdamW."""
    content = yaml.safe_load((CONF / "experiment" / f"{experiment}.yaml").read_text())
    groups = content.keys() - {"defaults", "name", "expected"}
    assert [group for group in groups if len(list((CONF / group).glob("*.yaml"))) != 1] == []


def test_typed_values_override_the_experiment(tmp_path: Path) -> None:
    paper = ["experiment=paper_vits16", f"data.root={tmp_path}"]
    plain: Any = compose(paper)
    base: Any = compose(["backbone=vit_base", *paper])
    assert (base.backbone.name, base.backbone.embed_dim, base.backbone.depth) == ("vit_base", 768, 12)
    assert base.keys() == plain.keys()
    assert [key for key in base if base[key] != plain[key]] == ["backbone"]
    assert compose([*paper, "backbone=vit_base"]) == base
    resnet = "backbone=resnet50"
    assert compose([resnet]).backbone == compose(["experiment=debug", resnet]).backbone
    typed = compose([*paper, "loss.teacher_temp=0.05", "trainer.batch_size=64", "optimizer=lars"])
    assert (typed.loss.teacher_temp, typed.trainer.batch_size) == (0.05, 64)
    assert (typed.optimizer.lr, typed.optimizer.clip_grad) == (0.3, 0)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["temperature=warmup_0.04_0.07", "ablation=no_ema", "trainer.epochs=7"],
        ["experiment=cifar10_resnet18", "trainer.seed=3", "crops.global_scale=[0.2,1]", "name='a-b'"],
        [
            "backbone=timm",
            "backbone.name=resnet26",
            "loss.student_temp=${loss.teacher_temp}",
            "head.use_bn=yes",
        ],
    ],
)
def test_hydra_composes_the_same(overrides: list[str]) -> None:
    """The run's configuration comes from Hydra itself; what was checked must be what runs."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        of_hydra, ours = hydra_compose("config", overrides), compose(overrides)
    of_hydra.expected = ours.expected  # which is removed from a run that is not its experiment
    assert of_hydra == ours


def differences(cfg: Any, expected: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: OmegaConf.select(cfg, key) for key in expected}
    return {key: value for key, value in values.items() if value != expected[key]}


VANILLA = {
    "backbone.name": "vit_small",
    "backbone.patch_size": 16,
    "backbone.drop_path_rate": 0.1,
    "head.out_dim": 65536,
    "head.hidden_dim": 2048,
    "head.bottleneck_dim": 256,
    "head.use_bn": False,
    "head.norm_last_layer": True,
    "crops.global_size": 224,
    "crops.global_scale": [0.4, 1.0],
    "crops.local_size": 96,
    "crops.local_number": 8,
    "crops.local_scale": [0.05, 0.4],
    "augment.blur": [1.0, 0.1, 0.5],
    "augment.solarize": 0.2,
    "loss.student_temp": 0.1,
    "loss.teacher_temp": 0.04,
    "loss.warmup_teacher_temp_epochs": 0,
    "loss.center_momentum": 0.9,
    "loss.center_init": "zeros",
    "ema.momentum": 0.996,
    "ema.final_momentum": 1.0,
    "optimizer._target_": "dino_exp.dino.optimizer.adamw",
    "optimizer.lr": 0.0005,
    "optimizer.min_lr": 1e-6,
    "optimizer.warmup_epochs": 10,
    "optimizer.weight_decay": 0.04,
    "optimizer.final_weight_decay": 0.4,
    "optimizer.clip_grad": 3.0,
    "optimizer.freeze_last_layer_epochs": 1,
    "trainer.epochs": 100,
    "trainer.batch_size": 512,
}
"""Defaults of the released `main_dino.py`, and 8 GPUs x 64."""


def test_the_paper_experiments_are_the_released_commands(tmp_path: Path) -> None:
    root = f"data.root={tmp_path}"
    assert differences(compose(["experiment=paper_vits16", root]), VANILLA) == {}
    # --epochs 300 --teacher_temp 0.07 --warmup_teacher_temp_epochs 30 --norm_last_layer false, 16 GPUs
    assert differences(compose(["experiment=paper_vits16_boosted", root]), VANILLA) == {
        "head.norm_last_layer": False,
        "loss.teacher_temp": 0.07,
        "loss.warmup_teacher_temp_epochs": 30,
        "trainer.epochs": 300,
        "trainer.batch_size": 1024,
    }
    # --arch resnet50 --optimizer sgd --lr 0.03 --weight_decay 1e-4 --weight_decay_end 1e-4
    # --global_crops_scale 0.14 1 --local_crops_scale 0.05 0.14
    assert differences(compose(["experiment=paper_resnet50", root]), VANILLA) == {
        "backbone.name": "resnet50",
        "backbone.patch_size": None,
        "backbone.drop_path_rate": None,
        "crops.global_scale": [0.14, 1.0],
        "crops.local_scale": [0.05, 0.14],
        "optimizer._target_": "dino_exp.dino.optimizer.sgd",
        "optimizer.lr": 0.03,
        "optimizer.weight_decay": 1e-4,
        "optimizer.final_weight_decay": 1e-4,
    }


def test_sweeps_expand_to_all_runs_under_a_name_of_their_content() -> None:
    checked = check(
        ["-m", "loss.teacher_temp=0.02,0.04", "loss.center_momentum=0,0.9,0.99", "trainer.epochs=2"]
    )
    assert checked.errors == []
    assert [run.overrides for run in checked.runs] == [
        (f"loss.teacher_temp={temp}", f"loss.center_momentum={momentum}")
        for temp in (0.02, 0.04)
        for momentum in (0, 0.9, 0.99)
    ]
    assert len({run.run_id for run in checked.runs}) == 6
    assert checked.sweep_dir == "outputs/demo_sweep_teacher_temp_center_momentum"
    assert checked.extra_overrides == ["hydra.sweep.dir='outputs/demo_sweep_teacher_temp_center_momentum'"]
    named = check(["-m", "trainer.seed=range(0,3)", "name=seeds", "output_root=/runs"])
    assert (named.sweep_dir, len(named.runs)) == ("/runs/seeds", 3)
    own = check(["-m", "trainer.seed=0,1", "hydra.sweep.dir=elsewhere"])
    assert own.extra_overrides == []
    experiments = check(["-m", "experiment=demo,debug"])
    assert (experiments.sweep_dir, len(experiments.runs)) == ("outputs/sweep_experiment", 2)
    heads, _ = swept("head=glob(dino*)")
    assert heads == [("head=dino",), ("head=dino_bn",), ("head=dino_free_gain",)]
    by_mode = check(["hydra.mode=MULTIRUN", "trainer.seed=0,1"])
    assert by_mode.multirun
    assert len(by_mode.runs) == 2


def test_a_sweep_can_live_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "temps.yaml").write_text(
        "# @package _global_\nname: temps\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
        "      loss.teacher_temp: 0.02,0.04,-1\n"
    )
    checked = check(["--config-dir", str(tmp_path), "experiment=temps"])
    temps = [run.overrides for run in checked.runs]
    assert temps == [("loss.teacher_temp=0.02",), ("loss.teacher_temp=0.04",)]
    assert checked.errors == [
        "loss.teacher_temp = -1.0: must be at least 0 (the paper uses 0.02–0.07; 0 is a hard argmax). "
        "(run loss.teacher_temp=-1)"
    ]
