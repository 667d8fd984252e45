"""The typed configuration of `evaluate.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from dino_exp.config.data_schema import DataConfig
from dino_exp.config.evaluation_schema import (
    AttentionConfig,
    CopyDetectionConfig,
    EmbedConfig,
    FinetuneConfig,
    KnnConfig,
    LinearConfig,
    LowShotConfig,
    RetrievalConfig,
    VideoSegmentationConfig,
)
from dino_exp.config.fields import choice, number
from dino_exp.config.network_schema import BackboneConfig
from dino_exp.config.tracker_schema import TrackerConfig


@dataclass(kw_only=True)
class EvaluateConfig:
    """A network, the evaluations to run on it, and their images."""

    run: str | None = None
    """Folder of a run, which gives the network, the images and the size of a global crop."""
    weights: str | None = None
    """A file of weights for `backbone`, instead of a run."""
    plugins: list[str] = field(default_factory=list)
    """Python modules that register options of your own, e.g. [my_package.components]. Those of a run are
    named again."""
    eval: list[str] = field(default_factory=lambda: ["knn"])
    """One evaluation or several, e.g. knn or [knn,linear]."""
    network: str = choice("teacher", ["teacher", "student"])
    """Which network of the run or of a full checkpoint: teacher or student."""
    checkpoint: str = choice("last", ["last", "best"])
    """Which checkpoint of the run: last, or best by k-NN."""
    image_size: int | None = number(None, at_least=1, at_most=4096)
    """Side of the images; null is the run's crops.global_size, and 224 for weights."""
    crop_ratio: float | None = number(None, at_least=0.1, at_most=1)
    """Share of the resized image's side that the central crop keeps; null is the run's, 0.875 for weights."""
    batch_size: int = number(256, at_least=1)
    """Images per forward pass."""
    precision: str = choice("fp32", ["fp32", "bf16", "fp16", "auto"])
    """Autocast type of the forward pass: fp32, bf16, fp16, or auto: bf16 on a GPU that supports it."""
    device: str = choice("auto", ["auto", "cpu", "cuda", "mps"])
    """Where to compute; `auto` is the first of cuda, mps and cpu that is available."""
    num_workers: int | None = number(None, at_least=0)
    """Threads that prepare images; null depends on the available cores."""
    seed: int = number(0, at_least=0, at_most=2**32 - 1)
    """Seed of classifier weights, splits, and the choice of labeled images."""
    output_root: str = "outputs"
    """Folder for the results of `weights`, and of a run that cannot be written:
    <output_root>/evaluations/<name of the file or run>_<digest>."""
    backbone: BackboneConfig = MISSING
    data: DataConfig = MISSING
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    knn: KnnConfig = field(default_factory=KnnConfig)
    linear: LinearConfig = field(default_factory=LinearConfig)
    low_shot: LowShotConfig = field(default_factory=LowShotConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    copy_detection: CopyDetectionConfig = field(default_factory=CopyDetectionConfig)
    video_segmentation: VideoSegmentationConfig = field(default_factory=VideoSegmentationConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
