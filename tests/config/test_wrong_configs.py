"""Each mistake on the command line gives one line: key, value, and fix."""

from pathlib import Path

import pytest

from dino_exp.config.compose import check
from dino_exp.config.validate import keys_of

BACKBONES = (
    "convnext_tiny, resnet18, resnet18_cifar, resnet50, timm, torchvision, vit_base, vit_micro, vit_small, "
    "vit_tiny, xcit_small"
)

WRONG = [
    # Syntax.
    ("trainer.epochs", "trainer.epochs: overrides are written key=value, e.g. trainer.epochs=5."),
    ("backbone", f"backbone: write backbone=OPTION; options: {BACKBONES}."),
    (
        "data.root=/a(b",
        "data.root=/a(b: cannot be read; quote special characters for Hydra, e.g. data.root='\"/a(b\"'.",
    ),
    ("data.root=~/train", "data.root=~/train: ~ is not expanded; write $HOME/train."),
    (
        "--epochs 5",
        "unrecognized arguments: --epochs. Values are written key=value, e.g. trainer.epochs=5; "
        "see train.py --help.",
    ),
    ("--config-name x", "--config-name: not supported; --config-dir DIR adds options of your own."),
    ("--config-dir nowhere", "--config-dir nowhere: no such folder."),
    ("--cfg job -m", "--run, --multirun, --cfg and --info: give one of them."),
    ("--resolve", "--resolve: goes with --cfg, e.g. --cfg job --resolve."),
    (
        "~tracker",
        "~tracker: nothing can be removed; choose another option or value, e.g. tracker=none.",
    ),
    ("+experiment=demo", "+experiment=demo: experiment has an option already; write it without '+'."),
    ("+loss.teacher_temp=1", "+loss.teacher_temp=1: the key exists already; write it without '+'."),
    ("+loss.new=1", "loss.new: no such key; see train.py --help."),
    (
        "backbone@model=vit_tiny",
        "backbone@model=vit_tiny: packages (@) are not supported; write backbone=OPTION.",
    ),
    # Keys.
    ("loss.teacher_tmp=0.1", "loss.teacher_tmp: no such key; did you mean loss.teacher_temp?"),
    ("teacher_temp=0.1", "teacher_temp: no such key; did you mean loss.teacher_temp?"),
    ("teacher_tmp=0.1", "teacher_tmp: no such key; did you mean loss.teacher_temp?"),
    ("head.teacher_temp=0.1", "head.teacher_temp: no such key; did you mean loss.teacher_temp?"),
    ("lr=0.1", "lr: no such key; did you mean optimizer.lr?"),
    ("trainer.lr=0.1", "trainer.lr: no such key; did you mean optimizer.lr?"),
    ("batch_size=8", "batch_size: no such key; did you mean trainer.batch_size or eval.batch_size?"),
    ("optimzer.lr=1", "optimzer.lr: no such key; did you mean optimizer.lr?"),
    ("loss.teacher_temp.x=1", "loss.teacher_temp.x: no such key; did you mean loss.teacher_temp?"),
    ("crops.global_scale.5=1", "crops.global_scale.5: no such key; did you mean crops.global_scale?"),
    ("momentum_teacher=0.99", "momentum_teacher: no such key; did you mean ema.momentum?"),
    ("arch=vit_small", "arch: no such key; did you mean backbone?"),
    (
        "backbone=resnet50 backbone.patch_size=8",
        "backbone.patch_size: no such key with backbone=resnet50, which has name, stem; it belongs to "
        "the vit "
        "options of backbone.",
    ),
    ("hydra.run.dri=x", "hydra.run.dri=x: Key 'dri' not in 'RunDir'; did you mean hydra.run.dir?"),
    (
        "hydra.launcher=slurm",
        "hydra.launcher=slurm: a group; write hydra/launcher=OPTION; options: basic, local, slurm.",
    ),
    ("hydra.run.dir=${x}", "hydra.run.dir=${x}: Interpolation key 'x' not found."),
    (
        "hydra.searchpath=[x]",
        "hydra.searchpath=[x]: use --config-dir DIR, whose options are checked and completed as well.",
    ),
    # Groups and options.
    ("backbon=resnet50", "backbon: no such key; did you mean backbone?"),
    ("optimizers/x=1", "optimizers/x: no such group; did you mean optimizer?"),
    (
        "backbone=resnet5",
        f"backbone=resnet5: no such option; did you mean resnet50? Options: {BACKBONES}.",
    ),
    ("tracker=mlflow", "tracker=mlflow: no such option. Options: none, tensorboard, wandb."),
    (
        "loss={teacher_temp:1}",
        "loss={teacher_temp:1}: loss takes one option; options: dino, dino_warmup, micro.",
    ),
    ("loss=null", "loss=null: loss takes one option; options: dino, dino_warmup, micro."),
    ("head=dino head=micro", "head=micro: head is chosen twice; keep one."),
    (
        "hydra/launcher=slrm",
        "hydra/launcher=slrm: no such option; did you mean slurm? Options: basic, local, slurm.",
    ),
    # Types.
    ("trainer.epochs=abc", "trainer.epochs = abc: must be a whole number."),
    ("trainer.epochs=1.5", "trainer.epochs = 1.5: must be a whole number."),
    ("trainer.epochs=1e2", "trainer.epochs = 100.0: must be a whole number (write 100)."),
    ("trainer.batch_size=null", "trainer.batch_size = null: must be a whole number."),
    ("trainer.max_steps=[1]", "trainer.max_steps = [1]: must be a whole number or null."),
    ("loss.teacher_temp=", "loss.teacher_temp = '': must be a number."),
    ("loss.teacher_temp=true", "loss.teacher_temp = true: must be a number."),
    ("head.use_bn=maybe", "head.use_bn = maybe: must be true or false."),
    ("name=[a]", "name = [a]: must be text."),
    ("crops.global_scale=0.4", "crops.global_scale = 0.4: must be a list of 2 numbers, like [0.4, 1.0]."),
    (
        "crops.global_scale=[0.4,null]",
        "crops.global_scale = [0.4, null]: must be a list of 2 numbers, like [0.4, 1.0].",
    ),
    ("crops.global_scale.0=x", "crops.global_scale.0 = x: must be a number."),
    ("data.std=[[1]]", "data.std = [[1]]: must be a list of numbers, like [0.229, 0.224, 0.225]."),
    (
        "crops.global_scale=0.4,1",
        "crops.global_scale=0.4,1: several values; add -m to train once for each, or write the list as "
        "crops.global_scale=[0.4,1].",
    ),
    ("head=dino,micro", "head=dino,micro: several values; add -m to train once for each."),
    # Bounds and choices.
    (
        "loss.teacher_temp=-0.1",
        "loss.teacher_temp = -0.1: must be at least 0 (the paper uses 0.02–0.07; 0 is a hard argmax).",
    ),
    (
        "loss.center_momentum=1",
        "loss.center_momentum = 1.0: must be at least 0 and below 1 (the paper uses 0.9; 0.999 collapses).",
    ),
    ("loss.student_temp=nan", "loss.student_temp = nan: must be a finite number."),
    ("optimizer.lr=inf", "optimizer.lr = inf: must be a finite number."),
    ("trainer.batch_size=0", "trainer.batch_size = 0: must be at least 1."),
    (
        "crops.local_scale=[0,0.4]",
        "crops.local_scale = [0.0, 0.4]: every number must be above 0 and at most 1.",
    ),
    ("crops.global_scale=[0.4]", "crops.global_scale = [0.4]: must be 2 numbers, not 1."),
    ("augment.blur=[1,0.5]", "augment.blur = [1.0, 0.5]: must be 3 numbers, not 2."),
    ("augment.blur=[]", "augment.blur = []: must be a list of 3 numbers, like [1.0, 0.1, 0.5]."),
    (
        "tracker.mode=onlin",
        "tracker.mode = onlin: must be auto, online, offline or disabled; did you mean online?",
    ),
    ("trainer.precision=int8", "trainer.precision = int8: must be auto, fp32, bf16 or fp16."),
    (
        "optimizer._target_=os.system",
        "optimizer._target_ = os.system: must be dino_exp.dino.optimizer.adamw, "
        "dino_exp.dino.optimizer.sgd or "
        "dino_exp.dino.optimizer.lars; choose another optimizer with optimizer=OPTION.",
    ),
    (
        "loss._target_=dino_exp.data.crops.MultiCrop",
        "loss._target_ = dino_exp.data.crops.MultiCrop: must be dino_exp.dino.loss.DINOLoss; "
        "choose another loss with "
        "loss=OPTION.",
    ),
    # Not set.
    (
        "experiment=paper_vits16",
        "data.root: not set; give the training images, e.g. data.root=/path/to/train.",
    ),
    ("backbone=timm", "backbone.name: not set; give a model's name, e.g. backbone.name=convnext_tiny."),
    (
        "data=image_folder data.root=null",
        "data.root = null: give the training images, e.g. data.root=/path/to/train.",
    ),
    ("data=image_folder data.root=nowhere/x", "data.root = nowhere/x: no such folder or file."),
    (
        "data=webdataset data.root='nowhere/train-{000..146}.tar'",
        "data.root = nowhere/train-{000..146}.tar: no such folder or file.",
    ),
    ("data=huggingface", "data.root: not set; give the training images, e.g. data.root=/path/to/train."),
    (
        "data=image_folder data.root=. data.packed_side=256",
        "data.packed_side = 256: only packed images are made smaller; add data.packed=true.",
    ),
    # Interpolations.
    (
        "loss.teacher_temp=${los.student_temp}",
        "loss.teacher_temp = ${los.student_temp}: no such key, los.student_temp; did you mean "
        "${loss.student_temp}?",
    ),
    (
        "trainer.epochs=${trainer.precision}",
        "trainer.epochs = ${trainer.precision}: While dereferencing interpolation '${trainer.precision}': "
        "Value 'auto' of type 'str' could not be converted to Integer.",
    ),
    ("name=${oc.env:NOWHERE}", "name = ${oc.env:NOWHERE}: Environment variable 'NOWHERE' not found."),
    ("name=${name}", "name = ${name}: Recursive interpolation detected."),
    ("name='${'", "name = ${: not an interpolation, such as ${loss.student_temp}."),
    # Values against one another.
    (
        "crops.local_size=10",
        "crops.local_size = 10: not a multiple of backbone.patch_size = 4; nearest are 8 and 12.",
    ),
    (
        "backbone=vit_small crops.global_size=100 crops.local_size=96",
        "crops.global_size = 100: not a multiple of backbone.patch_size = 16; nearest are 96 and 112.",
    ),
    (
        "backbone=xcit_small crops.local_size=10",
        "crops.local_size = 10: not a multiple of the patch of xcit_small_12_p16_224 = 16; the smallest "
        "is 16.",
    ),
    (
        "backbone.num_heads=5",
        "backbone.num_heads = 5: must divide backbone.embed_dim = 64; the nearest that does is 4.",
    ),
    (
        "backbone.patch_size=12 crops.global_size=48 crops.local_size=24",
        "backbone.patch_size = 12: backbone.stem = conv halves the image step by step and needs a power of "
        "two; nearest are 8 and 16.",
    ),
    (
        "backbone=timm backbone.name=vit_smal_patch16_224",
        "backbone.name = vit_smal_patch16_224: timm has no such model; did you mean vit_small_patch16_224, "
        "deit_small_patch16_224 or vit_small_patch8_224?",
    ),
    (
        "backbone=torchvision backbone.name=resnet51",
        "backbone.name = resnet51: torchvision has no such model; did you mean resnet50, resnet18 or "
        "resnet152?",
    ),
    (
        "backbone=torchvision backbone.name=vgg11 backbone.stem=small",
        "backbone.stem = small: only ResNets have it, and backbone.name is vgg11; use "
        "backbone.stem=imagenet.",
    ),
    (
        "crops.global_scale=[1,0.4]",
        "crops.global_scale = [1.0, 0.4]: the first must not exceed the second; write [0.4, 1.0].",
    ),
    (
        "augment.blur_sigma=[2,0.1]",
        "augment.blur_sigma = [2.0, 0.1]: the first must not exceed the second; write [0.1, 2.0].",
    ),
    (
        "loss=dino_warmup trainer.epochs=7",
        "loss.warmup_teacher_temp_epochs = 30: more than trainer.epochs = 7; use at most 7.",
    ),
    (
        "optimizer.warmup_epochs=8 trainer.epochs=7",
        "optimizer.warmup_epochs = 8: more than trainer.epochs = 7; use at most 7.",
    ),
    (
        "optimizer.freeze_last_layer_epochs=8 trainer.epochs=7",
        "optimizer.freeze_last_layer_epochs = 8: more than trainer.epochs = 7; use at most 7.",
    ),
    (
        "optimizer.lr=1e-3 optimizer.min_lr=0.01 trainer.batch_size=32",
        "optimizer.min_lr = 0.01: more than the peak, optimizer.lr · batch / 256 = 0.001 · 32 / 256 = "
        "0.000125; "
        "lower it or raise optimizer.lr.",
    ),
    (
        "ema.momentum=0.99 ema.final_momentum=0.5",
        "ema.final_momentum = 0.5: less than ema.momentum = 0.99, and the teacher slows down over a "
        "run; raise "
        "it (the paper ends at 1) or use ema.schedule=constant.",
    ),
    (
        "data.backend=pil augment.rotation=10",
        "augment.rotation = 10: the released pipeline, data.backend = pil, does not rotate; use "
        "augment.rotation=0 or data.backend=fast.",
    ),
    (
        "data=image_folder data.root=/ data.backend=pil data.channels=2 data.mean=[0,0] data.std=[1,1]",
        "data.backend = pil: Pillow's images have 1 or 3 channels, and data.channels = 2; use "
        "data.backend=fast.",
    ),
    ("data.mean=[0.5]", "data.mean = [0.5]: give one number per channel; data.channels = 3."),
    (
        "data=fashion_mnist data.std=[1,1,1]",
        "data.std = [1.0, 1.0, 1.0]: give one number per channel; data.channels = 1.",
    ),
    (
        "trainer.batch_size=20000 data.train_size=12000",
        "trainer.batch_size = 20000: shapes has only 12000 training images, less than one batch; use "
        "at most "
        "12000, or raise data.train_size.",
    ),
    (
        "trainer.device=cpu trainer.precision=fp16",
        "trainer.precision = fp16: not on trainer.device = cpu; use trainer.precision=bf16 or fp32.",
    ),
    (
        "name=a/b",
        "name = a/b: it becomes a folder's name; use letters, digits, '.', '_', '+' and '-', and no '.' "
        "at the "
        "start.",
    ),
    ("output_root='~/runs'", "output_root = ~/runs: give a folder, e.g. outputs or $HOME/outputs."),
    # Sweeps: every run is checked.
    (
        "-m loss.teacher_temp=-1,0.02",
        "loss.teacher_temp = -1.0: must be at least 0 (the paper uses 0.02–0.07; 0 is a hard argmax). "
        "(run loss.teacher_temp=-1)",
    ),
    ("-m trainer.seed=1,x", "trainer.seed = x: must be a whole number. (run trainer.seed=x)"),
    (
        "-m crops.local_size=10,11,12 trainer.seed=0,1",
        "crops.local_size = 10: not a multiple of backbone.patch_size = 4; nearest are 8 and 12. (2 of "
        "6 runs, "
        "first crops.local_size=10 trainer.seed=0)",
    ),
    (
        "-m backbone=vit_micro,resnet18 backbone.patch_size=8",
        "backbone.patch_size: no such key with backbone=resnet18, which has name, stem; it belongs to "
        "the vit "
        "options of backbone. (run backbone=resnet18)",
    ),
    (
        "-m tracker=none,mlflow",
        "tracker=mlflow: no such option. Options: none, tensorboard, wandb.",
    ),
    (
        "-m eval.k=10,20",
        "eval.k=10 and eval.k=20: the same training, so they would share one folder; sweep over keys that "
        "change the training, each value once.",
    ),
    ("-m trainer.seed=range(3,1)", "-m: the sweep has no runs; one of its lists of values is empty."),
    (
        "-m loss.teacher_temp=interval(0,1)",
        "loss.teacher_temp=interval(0,1): Hydra's basic sweeper needs single values: "
        "loss.teacher_temp=0.1,0.2 "
        "or loss.teacher_temp=range(...).",
    ),
    ("-m hydra.job.num=1,2", "hydra.job.num=1,2: Hydra's own settings cannot be swept."),
]


@pytest.mark.parametrize(("line", "error"), WRONG, ids=[line for line, _ in WRONG])
def test_error_text(line: str, error: str) -> None:
    assert error in check(line.split()).errors


def test_the_table_has_enough_mistakes() -> None:
    assert len({line for line, _ in WRONG}) == len(WRONG) >= 60


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


def test_no_key_takes_a_group_of_keys() -> None:
    checked = check([])
    assert checked.cfg is not None
    for key in keys_of(checked.cfg):
        (error,) = check([f"{key}={{a:1}}"]).errors
        assert error.startswith(f"{key} = ")
        assert ": must be " in error


def test_an_unknown_option_raises_no_false_alarm_about_its_keys() -> None:
    errors = check(["backbone=resnt50", "backbone.stem=small", "backbone.patch_size=8"]).errors
    assert errors == [
        f"backbone=resnt50: no such option; did you mean resnet50? Options: {BACKBONES}.",
    ]


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
        "head=dinno: no such option; did you mean dino? Options: cifar, dino, dino_bn, "
        "dino_free_gain, micro, small. "
        "A configuration file asks for it."
    ]


WARNED = [
    ("loss.teacher_temp=0.2", "loss.teacher_temp = 0.2: not below loss.student_temp = 0.1, so the teacher"),
    ("loss.teacher_temp=0.08", "loss.teacher_temp = 0.08: constant values above 0.06 collapsed in the paper"),
    ("loss.center_momentum=0.999", "loss.center_momentum = 0.999: the center is too slow; collapsed in the"),
    ("loss.centering=none", "loss.centering = none: collapses on purpose"),
    ("loss.sharpening=false", "loss.sharpening = false: collapses on purpose"),
    ("ema.momentum=0", "ema.momentum = 0: the teacher is the student"),
    ("crops.local_number=0", "crops.local_number = 0: without local crops the released code advises a wider"),
    ("backbone=resnet18", "backbone.name = resnet18: its stem is made for images of 224 pixels"),
    (
        "data=image_folder data.root=. data.packed=true data.packed_side=20",
        "data.packed_side = 20: less than crops.global_size = 32",
    ),
    ("backbone=vit_tiny", "crops: 16 pixels are 1 patch of 16"),
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
