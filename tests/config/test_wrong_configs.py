"""Each mistake on the command line gives one line: key, value, and fix."""

import re
import subprocess
from pathlib import Path

import pytest

from dino_exp.config.compose import check
from dino_exp.config.compose_evaluation import check as check_evaluation
from dino_exp.config.validate import keys_of

BACKBONES = (
    "convnext_tiny, resnet18, resnet18_cifar, resnet50, resnet_micro, timm, torchvision, vit_base, "
    "vit_micro, vit_micro_gn, vit_small, vit_tiny, xcit_small"
)
MISTAKES = Path(__file__).with_name("mistakes.txt").read_text().replace("@BACKBONES@", BACKBONES)
WRONG = re.findall(r"^\$ train\.py (.*)\n((?:[^$#\n].*\n)+)", MISTAKES, re.MULTILINE)
"""Pairs of a command line and its errors, one per line."""


@pytest.mark.parametrize(("line", "errors"), WRONG, ids=[line for line, _ in WRONG])
def test_error_text(line: str, errors: str) -> None:
    assert check(line.split()).errors == errors.splitlines()


def test_each_mistake_is_read_and_stands_there_once() -> None:
    assert len({line for line, _ in WRONG}) == len(WRONG) == MISTAKES.count("$ train.py ")


def test_every_problem_is_named_at_once() -> None:
    assert check(["trainer.epochs=abc", "loss.teacher_tmp=1", "loss.center_momentum=2"]).errors == [
        "trainer.epochs = abc: must be a whole number.",
        "loss.teacher_tmp: no such key; did you mean loss.teacher_temp?",
        "loss.center_momentum = 2.0: must be at least 0 and below 1 (the paper uses 0.9; 0.999 collapses).",
    ]
    assert check(["crops.local_size=10", "data.mean=[1]", "backbone.num_heads=5"]).errors == [
        "backbone.num_heads = 5: must divide backbone.embed_dim = 64; the nearest that does is 4.",
        "crops.local_size = 10: not a multiple of backbone.patch_size = 4; nearest are 8 and 12.",
        "data.mean = [1.0]: give one number per channel; data.channels = 3.",
    ]


NASTY = [
    "a,b",
    "it's",
    "a=b",
    "with blank",
    "[a]",
    "{a: b}",
    "a(b",
    "a#b",
    "a$b",
    '"',
    "'",
    "a\\",
    "a\\'b",
    "a${b",
    "~a",
    "&;|<>*?!",
]


@pytest.mark.parametrize("name", NASTY)
def test_the_proposed_quotes_work_when_they_are_pasted(tmp_path: Path, name: str) -> None:
    """Every path can be given: as it is, or as the error proposes."""
    (tmp_path / name).mkdir()
    path = str(tmp_path / name)

    def read(word: str) -> tuple[str, list[str]]:
        checked = check(["data=image_folder", "data.val_root=null", word])
        return str(checked.cfg.data.root if checked.cfg is not None else None), checked.errors

    typed = f"data.root={path}"
    advice = [error[len(typed) :] for error in read(typed)[1]]
    proposed = [re.sub(r"^.*?(\S*data\.root=)", r"\1", text) for text in advice]
    pasted = [subprocess.check_output(["bash", "-c", f"printf %s {text}"], text=True) for text in proposed]
    assert read([typed, *pasted][-1]) == (path, [])


def test_evaluate_proposes_quotes_too() -> None:
    proposal = "weights takes one; quote it as one text: 'weights=\"/a,b\"'"
    assert check_evaluation(["weights=/a,b"]).problems[0] == f"weights=/a,b: several values; {proposal}"
    assert check_evaluation(["run=/a'b"]).problems[0].endswith("""Hydra: 'run="/a'"'"'b"'""")


def test_no_key_takes_a_group_of_keys() -> None:
    checked = check([])
    assert checked.cfg is not None
    for key in keys_of(checked.cfg):
        (error,) = check([f"{key}={{a:1}}"]).errors
        assert error.startswith(f"{key} = ")
        assert ": must be " in error


def test_an_unknown_option_raises_no_false_alarm_about_its_keys() -> None:
    errors = check(["backbone=resnt50", "backbone.stem=small", "backbone.patch_size=8"]).errors
    assert errors == [f"backbone=resnt50: no such option; did you mean resnet50? Options: {BACKBONES}."]


def test_mistakes_in_a_users_file_are_named(tmp_path: Path) -> None:
    experiments = tmp_path / "experiment"
    experiments.mkdir()
    header = "# @package _global_\n"
    (experiments / "key.yaml").write_text(header + "loss:\n  teacher_tmp: 0.1\n")
    (experiments / "type.yaml").write_text(header + "trainer:\n  epochs: many\n")
    (experiments / "option.yaml").write_text(header + "defaults:\n  - override /head: dinno\n")
    (experiments / "good.yaml").write_text(header + "name: mine\n")

    def errors(name: str) -> list[str]:
        return check(["--config-dir", str(tmp_path), f"experiment={name}"]).errors

    assert errors("good") == []
    assert errors("key") == [
        "experiment/key.yaml: loss.teacher_tmp: no such key; did you mean loss.teacher_temp?"
    ]
    assert errors("type") == [
        "experiment/type.yaml: trainer.epochs: Value 'many' of type 'str' could not be converted to Integer."
    ]
    assert errors("option") == [
        "head=dinno: no such option; did you mean dino? Options: cifar, cifar_small, dino, dino_bn, "
        "dino_free_gain, micro, micro_centered, small. "
        "A configuration file asks for it."
    ]


WARNED = [
    ("loss.teacher_temp=0.2", "loss.teacher_temp = 0.2: not below loss.student_temp = 0.1, so the teacher"),
    (
        "experiment=shapes loss.teacher_temp=0.08",
        "loss.teacher_temp = 0.08: constant values above 0.06 collapsed in the paper",
    ),
    ("loss.center_momentum=0.999", "loss.center_momentum = 0.999: the center is too slow; collapsed in the"),
    ("loss.centering=none", "loss.centering = none: collapses on purpose"),
    ("loss.sharpening=false", "loss.sharpening = false: collapses on purpose"),
    ("ema.momentum=0", "ema.momentum = 0: the teacher is the student"),
    ("crops.local_number=0", "crops.local_number = 0: without local crops the released code advises a wider"),
    ("backbone=resnet18", "backbone.name = resnet18: its stem is made for images of 224 pixels"),
    (
        "data=image_folder data.root=. data.packed=true data.packed_side=20",
        "data.packed_side = 20: less than crops.global_size = 24",
    ),
    ("backbone=vit_tiny crops=small", "crops: 16 pixels are 1 patch of 16"),
]


@pytest.mark.parametrize(("line", "start"), WARNED, ids=[line for line, _ in WARNED])
def test_warnings(line: str, start: str) -> None:
    checked = check(line.split())
    assert not checked.errors
    assert [warning for warning in checked.warnings if warning.startswith(start)]


def test_recipes_that_work_raise_no_warning() -> None:
    assert check([]).warnings == []
    warmed_up = ["loss=dino_warmup", "trainer.epochs=100", "head=dino", "crops=small"]
    assert check(warmed_up).warnings == []
