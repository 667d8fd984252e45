"""The typed configuration: one dataclass per component, in the order of `conf/config.yaml`.

The string below each field gives its meaning and unit; `train.py --help` prints it.
Defaults are the released code's (ViT-S/16 on ImageNet); the YAML files in `conf/` choose others.
"""

# ruff: noqa: RUF009 - `number` and `choice` are dataclasses.field with bounds

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING, OmegaConf

from dino_exp.config.data_schema import (
    Cifar10Config,
    DataConfig,
    FashionMnistConfig,
    GivenDataConfig,
    HuggingfaceConfig,
    ImageFolderConfig,
    ShapesConfig,
    WebdatasetConfig,
)
from dino_exp.config.evaluation_schema import EvalConfig
from dino_exp.config.fields import choice, number
from dino_exp.config.network_schema import (
    BackboneConfig,
    GivenBackboneConfig,
    HeadConfig,
    SmallResnetConfig,
    TimmConfig,
    TorchvisionConfig,
    VitConfig,
)
from dino_exp.config.tracker_schema import MlflowConfig, TensorboardConfig, TrackerConfig, WandbConfig


@dataclass(kw_only=True)
class CropsConfig:
    """Multi-crop: two global crops for both networks, more small ones for the student alone."""

    _target_: str = "dino_exp.data.crops.MultiCrop"
    global_size: int = number(224, at_least=1)
    """Side of a global crop in pixels."""
    global_scale: list[float] = number([0.4, 1.0], above=0, at_most=1, length=2)
    """Least and greatest share of the image's area in a global crop."""
    local_size: int = number(96, at_least=1)
    """Side of a local crop in pixels."""
    local_number: int = number(8, at_least=0)
    """Local crops per image."""
    local_scale: list[float] = number([0.05, 0.4], above=0, at_most=1, length=2)
    """Least and greatest share of the image's area in a local crop."""


@dataclass(kw_only=True)
class AugmentConfig:
    """Augmentation of each crop, in order: vertical flip, quarter turn, flip, rotation, channel drop, jitter,
    grayscale, blur, solarize, normalize."""

    _target_: str = "dino_exp.data.augment.Augment"
    vertical_flip: float = number(0.0, at_least=0, at_most=1, hint="0.5 for images without an up direction")
    """Probability of a vertical flip."""
    quarter_turns: float = number(0.0, at_least=0, at_most=1, hint="1 for images without an up direction")
    """Probability of a turn by 0, 90, 180 or 270 degrees, each as likely; with 1 all four directions are."""
    flip: float = number(0.5, at_least=0, at_most=1)
    """Probability of a horizontal flip."""
    rotation: float = number(0.0, at_least=0, at_most=180, hint="the released code does not rotate")
    """Greatest rotation in degrees, either way."""
    channel_drop: float = number(0.0, at_least=0, below=1, hint="about 0.1 for multiplexed images")
    """Probability that a channel is set to 0, for each channel on its own; one always stays."""
    jitter: float = number(0.8, at_least=0, at_most=1)
    """Probability of color jitter: brightness, contrast, saturation and hue in random order."""
    brightness: float = number(0.4, at_least=0, at_most=1)
    """Brightness factor in 1 ± this."""
    contrast: float = number(0.4, at_least=0, at_most=1)
    """Contrast factor in 1 ± this."""
    saturation: float = number(0.2, at_least=0, at_most=1)
    """Saturation factor in 1 ± this (RGB only)."""
    hue: float = number(0.1, at_least=0, at_most=0.5)
    """Hue shift in ± this share of the color circle; 0.5 is every hue (RGB only)."""
    per_channel: bool = False
    """Draw brightness and contrast factors for each channel on its own, with its own mean for the contrast:
    stains vary separately. False has one factor, and the mean luminance, for all."""
    gray: float = number(0.2, at_least=0, at_most=1)
    """Probability of grayscale."""
    gray_method: str = choice("luminance", ["luminance", "average"])
    """`luminance`: as in PIL (RGB only). `average`: the mean of all channels, whatever they are."""
    blur: list[float] = number([1.0, 0.1, 0.5], at_least=0, at_most=1, length=3)
    """Probability of a Gaussian blur for the first global, the second global, and each local crop."""
    blur_sigma: list[float] = number([0.1, 2.0], above=0, length=2)
    """Least and greatest standard deviation of the blur in pixels."""
    solarize: float = number(0.2, at_least=0, at_most=1)
    """Probability of solarization (second global crop only)."""


@dataclass(kw_only=True)
class LossConfig:
    """Cross-entropy between teacher and student over crops, with centering and sharpening (section 3.1)."""

    _target_: str = "dino_exp.dino.loss.DINOLoss"
    student_temp: float = number(0.1, above=0, hint="the paper uses 0.1")
    """τ_s, the student's temperature."""
    teacher_temp: float = number(0.04, at_least=0, hint="the paper uses 0.02–0.07; 0 is a hard argmax")
    """τ_t, the teacher's temperature after warm-up. Lower is sharper; constant values above 0.06 collapsed
    in the paper's table."""
    warmup_teacher_temp: float = number(0.04, at_least=0)
    """τ_t in the first epoch of the warm-up."""
    warmup_teacher_temp_epochs: int = number(0, at_least=0)
    """Epochs over which τ_t goes from warmup_teacher_temp to teacher_temp; with 0 it is constant."""
    center_momentum: float = number(0.9, at_least=0, below=1, hint="the paper uses 0.9; 0.999 collapses")
    """m in center ← m·center + (1 − m)·batch mean. 0 follows each batch; 0.999 is too slow and collapses."""
    center_init: str = choice("zeros", ["zeros", "first_batch"])
    """Where the center starts: `zeros` (released code) or the first batch's mean, which helps short runs."""
    centering: str = choice("mean", ["mean", "sinkhorn", "none"])
    """`mean` subtracts the center; `sinkhorn` balances the batch by Sinkhorn-Knopp; `none` does neither."""
    sharpening: bool = True
    """False makes the teacher no sharper than the student (τ_t = τ_s): the collapse study of section 5.3."""


@dataclass(kw_only=True)
class EmaConfig:
    """The teacher's momentum λ: teacher ← λ·teacher + (1 − λ)·student after each step."""

    _target_: str = "dino_exp.dino.ema.momentum_schedule"
    schedule: str = choice("cosine", ["cosine", "constant", "linear"])
    """How λ goes from momentum to final_momentum over the run, per step."""
    momentum: float = number(
        0.996, at_least=0, at_most=1, hint="0.99 for small data sets, 0.996 in the paper"
    )
    """λ at the first step."""
    final_momentum: float = number(1.0, at_least=0, at_most=1)
    """λ towards the end; unused by `constant`."""


@dataclass(kw_only=True)
class OptimizerConfig:
    """The optimizer and the schedules of its learning rate and weight decay."""

    _target_: str = choice(
        "dino_exp.dino.optimizer.adamw",
        ["dino_exp.dino.optimizer.adamw", "dino_exp.dino.optimizer.sgd", "dino_exp.dino.optimizer.lars"],
    )
    lr: float = number(5e-4, at_least=0, hint="the peak is lr · batch_size / 256")
    """Learning rate for a batch of 256, from which `lr_rule` makes the peak of another batch."""
    lr_rule: str = choice("linear", ["linear", "sqrt", "none"])
    """The peak grows with the global batch (`linear`, the released code), with its square root (`sqrt`, for
    AdamW), or not (`none`). The latter two are relative to trainer.reference_batch, or else to 256."""
    min_lr: float = number(1e-6, at_least=0)
    """Learning rate at the end of the cosine; not scaled."""
    warmup_epochs: float = number(10.0, at_least=0)
    """Epochs of linear warm-up from 0 to the peak."""
    weight_decay: float = number(0.04, at_least=0)
    """Weight decay at the first step; biases and one-dimensional tensors have none."""
    final_weight_decay: float = number(0.4, at_least=0)
    """Weight decay at the end of its cosine."""
    clip_grad: float = number(3.0, at_least=0, hint="0 switches clipping off")
    """Greatest gradient norm of each single parameter tensor."""
    freeze_last_layer_epochs: float = number(1.0, at_least=0)
    """Epochs at the start in which the prototypes do not move."""


@dataclass(kw_only=True)
class TrainerConfig:
    """Length, batch, device, and how often metrics and checkpoints are written."""

    epochs: int = number(100, at_least=1)
    """Passes over the training images; all schedules span them."""
    max_steps: int | None = number(None, at_least=1)
    """Stop after this many steps; the schedules still span `epochs`, so it is a prefix of the full run."""
    batch_size: int = number(512, at_least=1)
    """Images per step over all processes."""
    reference_batch: int | None = number(None, at_least=1, hint="1024 for the paper's recipes")
    """Batch that the recipe was written for, if another: with κ = batch_size / reference_batch, ema.momentum,
    ema.final_momentum and loss.center_momentum become λ^κ and m^κ, so that teacher and center forget within
    as many images (Busbridge et al. 2023). null uses them per step, whatever the batch."""
    accumulate: int = number(1, at_least=1)
    """Micro-batches into which each process splits its share of the batch, to save memory. Only batch norm
    and stochastic depth, which see one micro-batch at a time, change the result."""
    checkpoint_blocks: bool = False
    """Compute the activations of the backbone's blocks again in the backward pass instead of keeping them:
    much less memory, about a third more time."""
    compile: str = choice("auto", ["auto", "true", "false"])
    """Compile backbone, head and loss with `torch.compile`: a minute at the start, and faster steps on a GPU.
    `auto` does so on a GPU, for a vit_* in a run of some thousand steps."""
    cuda_graph: bool = False
    """Launch the forward and backward passes as one CUDA graph (not of logged steps, nor in several
    processes): for small networks and batches, whose kernels take less time than launching them. Needs the
    memory of two steps. Not yet run on a GPU, and therefore off."""
    seed: int = number(0, at_least=0, at_most=2**32 - 1)
    """Seed of the weights, the order of the images, and their crops."""
    precision: str = choice("auto", ["auto", "fp32", "bf16", "fp16"])
    """Autocast type of the networks; `auto` is bf16 on a GPU that supports it and fp32 elsewhere."""
    device: str = choice("auto", ["auto", "cpu", "cuda", "mps"])
    """Device; `auto` takes the first available of cuda, mps, cpu."""
    num_workers: int | None = number(None, at_least=0)
    """Processes that prepare images; null chooses from the available cores. Never changes the result."""
    log_every: int = number(50, at_least=1)
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every: int = number(500, at_least=1)
    """Steps between two checkpoints: the most work that a kill can cost."""
    keep_checkpoints: str | None = None
    """Checkpoints to keep by step beside the last and the best, as checkpoints/step_500.pt: `every:500` keeps
    those of each 500 steps, `last:5` the 5 newest, one each checkpoint_every; null keeps none. Each takes as
    much of the disk as last.pt. A run can be forked from them (fork_from)."""
    on_collapse: str = choice("warn", ["warn", "stop"])
    """Action when the verdict is a collapse: warn and continue, or end the run with state `collapsed`, as the
    presets of sweeps and searches do. The same command with `warn` continues such a run."""
    on_healthy: str = choice("continue", ["continue", "stop"])
    """Action when the run has been healthy, after all warm-ups, for a fifth of its steps, at least 100 and at
    least 3 / (1 − m): continue, or end it with state `finished` and without a last evaluation, where only the
    verdict is asked for."""


@dataclass(kw_only=True)
class ExpectedConfig:
    """What an experiment reached, which its runs are compared with; no part of a run's identity."""

    experiment: str | None = None
    """The experiment that reached it. A run that differs from it in more than the seed is not compared."""
    knn_top1: list[Any] = field(default_factory=list)
    """Pairs of a share of the steps and k-NN top-1 in percent, e.g. [[0.5, 60], [1, 75]]."""
    spread: float = number(0.0, at_least=0, at_most=100)
    """Percentage points above and below, e.g. two standard deviations over seeds."""


@dataclass(kw_only=True)
class Config:
    """A run."""

    name: str = "run"
    """First part of the output folder: outputs/<name>/<run id>."""
    plugins: list[str] = field(default_factory=list)
    """Python modules that register options of your own, e.g. [my_package.components]. Only the command line
    can name them."""
    output_root: str = "outputs"
    """Folder that holds all runs."""
    resume: str = choice("auto", ["auto", "never"])
    """`auto` resumes from the run's checkpoint and shows a finished run; `never` trains again beside it."""
    init_from: str | None = None
    """Initial weights: a file (.pth, .pt, .safetensors), or a run's folder, for its last checkpoint."""
    init_parts: str = choice("all", ["all", "backbone"])
    """`all` takes backbone, head and center, if the file has them; `backbone` takes the backbone alone."""
    init_adapt: list[str] | None = choice(None, ["channels", "patch"])
    """What to adapt of the backbone's input if the file's is another: `[channels]`, `[patch]`, or both.
    Channels are repeated and scaled (timm's rule), patches resized by the pseudo-inverse (FlexiViT)."""
    init_sha256: str | None = "${weights_digest:${init_from}}"
    """SHA-256 of the content of init_from, which is part of the run id; computed, not typed."""
    fork_from: str | None = None
    """A run to continue with some keys changed, RUN or RUN@STEP: its directory, and a step of which it has a
    checkpoint (trainer.keep_checkpoints); without a step its last. All other keys are those of that run."""
    fork_parent: str | None = None
    """Run id and step that the fork continues, which are part of its own run id; computed, not typed."""
    data_content: str | None = "${data_content:}"
    """Digest of the images and labels, which is part of the run id, wherever they lie; computed, not typed.
    null for generated and downloaded sets, and where the images are not on the machine that submits."""
    expected: ExpectedConfig = field(default_factory=ExpectedConfig)
    """What the experiment's own runs reached, in its file; removed from a run of any other configuration."""
    backbone: BackboneConfig = MISSING
    head: HeadConfig = field(default_factory=HeadConfig)
    crops: CropsConfig = field(default_factory=CropsConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


SCHEMAS: dict[str, dict[str, type]] = {
    "backbone": {
        "vit": VitConfig,
        "timm": TimmConfig,
        "torchvision": TorchvisionConfig,
        "small_resnet": SmallResnetConfig,
        "given": GivenBackboneConfig,
    },
    "head": {"": HeadConfig},
    "crops": {"": CropsConfig},
    "augment": {"": AugmentConfig},
    "loss": {"": LossConfig},
    "ema": {"": EmaConfig},
    "optimizer": {"": OptimizerConfig},
    "data": {
        "shapes": ShapesConfig,
        "image_folder": ImageFolderConfig,
        "webdataset": WebdatasetConfig,
        "huggingface": HuggingfaceConfig,
        "cifar10": Cifar10Config,
        "fashion_mnist": FashionMnistConfig,
        "given": GivenDataConfig,
    },
    "trainer": {"": TrainerConfig},
    "tracker": {
        "none": TrackerConfig,
        "wandb": WandbConfig,
        "tensorboard": TensorboardConfig,
        "mlflow": MlflowConfig,
    },
    "eval": {"": EvalConfig},
}
"""The classes of each group; `conf/` begins its files with `/schema/<group>` or `/schema/<group>/<name>`."""


def fields_of(schema: type) -> dict[str, Field[Any]]:
    """Return the fields of a schema class by name; none of a class that has no schema."""
    return {field.name: field for field in fields(schema)} if is_dataclass(schema) else {}


def schema_of(node: Any) -> type:
    """Return the class of a typed node; `object` if it has none."""
    return OmegaConf.get_type(node) or object
