"""The typed configuration of each evaluation, by default the paper's protocol; and of those in training."""

# ruff: noqa: RUF009 - `number` and `choice` are dataclasses.field with bounds

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dino_exp.config.fields import choice, number


@dataclass(kw_only=True)
class KnnConfig:
    """Weighted k-NN on the held-out images, with all training images as bank (section 4.1)."""

    _target_: str = "dino_exp.eval.neighbors.NearestNeighbors"
    k: list[int] = number([10, 20, 100, 200], at_least=1)
    """Numbers of neighbors that vote; each gives its own figures."""
    temperature: float = number(0.07, above=0)
    """T in a neighbor's weight exp(similarity / T)."""


@dataclass(kw_only=True)
class LinearConfig:
    """Linear classifiers on frozen features; a validation split chooses the best of all settings."""

    _target_: str = "dino_exp.eval.linear.linear_probe.Linear"
    method: str = choice("sgd", ["sgd", "logistic"])
    """`sgd`: the paper's, for each learning rate. `logistic`: scikit-learn's optimum, for each of `cs`."""
    blocks: list[int] = number([1, 4], at_least=1)
    """Numbers of last blocks whose class tokens are concatenated as the feature; each is a setting to choose
    from. More than the network has means all."""
    patch_mean: list[bool] = field(default_factory=lambda: [False, True])
    """Whether to append the mean patch token of the last block; each is a setting to choose from."""
    lrs: list[float] = number(
        [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1, 5e-1, 1.0], above=0
    )
    """Learning rates for a batch of 256, scaled linearly with `batch_size`."""
    cs: list[float] = number([0.01, 0.1, 1.0, 10.0, 100.0], above=0)
    """Inverse strengths of the L2 penalty of `logistic`."""
    epochs: int | None = number(None, at_least=1)
    """Passes over the training features; null gives about 12,500 steps, within 10 to 100 passes."""
    batch_size: int = number(1024, at_least=1)
    """Images per step."""
    standardize: bool = True
    """Shift and scale each feature to mean 0 and standard deviation 1 over the training images. The released
    code does not; without it, SGD hardly learns from features with a common mean."""
    momentum: float = number(0.9, at_least=0, below=1)
    """Momentum of SGD."""
    weight_decay: float = number(0.0, at_least=0)
    """Weight decay of SGD."""
    val_share: float = number(0.1, at_least=0, below=1)
    """Share of the training images that chooses the setting; 0 needs a single setting."""
    augment: bool = False
    """Random crops and flips of the training images in each epoch (the released protocol), which take a
    forward pass over them per epoch. The chosen setting is then not trained again on all images."""


@dataclass(kw_only=True)
class LowShotConfig:
    """Logistic regression on the features of few labeled images (the paper's appendix)."""

    _target_: str = "dino_exp.eval.linear.low_shot.LowShot"
    shares: list[float] = number([0.01, 0.1], above=0, at_most=1)
    """Shares of the training images that keep their labels, equal in all classes; at least one of each."""
    draws: int = number(3, at_least=1)
    """Number of random choices of these images; figures are means over them."""
    cs: list[float] = number([0.01, 0.1, 1.0, 10.0, 100.0], above=0)
    """Inverse strengths of the L2 penalty, chosen by cross-validation if there are enough images."""


@dataclass(kw_only=True)
class FinetuneConfig:
    """The entire network fine-tuned with labels."""

    _target_: str = "dino_exp.eval.finetune.finetuning.Finetune"
    epochs: int = number(30, at_least=1)
    """Passes over the training images."""
    batch_size: int = number(256, at_least=1)
    """Images per step over all processes; at most the number of training images."""
    lr: float = number(5e-4, above=0)
    """Peak learning rate of AdamW for a batch of 256, scaled linearly."""
    layer_decay: float = number(0.75, above=0, at_most=1)
    """Learning rate of each block as a factor of that of the next block; transformers with blocks only."""
    weight_decay: float = number(0.05, at_least=0)
    """Weight decay of AdamW; biases and one-dimensional tensors have none."""
    warmup_epochs: float = number(5.0, at_least=0)
    """Epochs of linear warm-up, at most `epochs`, before a cosine to 0."""
    label_smoothing: float = number(0.1, at_least=0, below=1)
    """Share of the target that is spread evenly over all classes."""
    crop_scale: list[float] = number([0.2, 1.0], above=0, at_most=1, length=2)
    """Least and greatest share of the image's area in a training crop."""


@dataclass(kw_only=True)
class AttentionConfig:
    """Attention maps of the class token, and their overlap with masks (figures 1 and 4)."""

    _target_: str = "dino_exp.eval.attention.attention_maps.AttentionMaps"
    source: str | None = None
    """An image, a folder of images, or a video (GIF, WebP); null is the held-out images of `data`."""
    masks: str | None = None
    """Folder of PNG masks with the names and sizes of the images of `source`; null uses those of `data`.
    0 is background, 255 is void, other values are the object; in grayscale images the object is white."""
    mass: float = number(0.6, above=0, below=1)
    """Share of the attention that the thresholded map keeps."""
    image_size: int | None = number(None, at_least=1, at_most=4096)
    """Shorter side of the images of `source`, which keep their shape (480 in the paper's figures), or side of
    the square images of `data`; null is the general `image_size`."""
    images: int = number(8, at_least=1)
    """Images on the sheet. The overlap with masks is over all images of a folder, and 1,000 of `data`."""


@dataclass(kw_only=True)
class RetrievalConfig:
    """Image retrieval on revisited Oxford and Paris (Radenovic et al. 2018), as in the paper's Table 3."""

    _target_: str = "dino_exp.eval.ranking.retrieval.Retrieval"
    root: str | None = None
    """Folder with roxford5k/ and rparis6k/, each with jpg/ and gnd_<name>.pkl."""
    datasets: list[str] = field(default_factory=lambda: ["roxford5k", "rparis6k"])
    """Which of the two data sets to evaluate."""
    image_size: int = number(224, at_least=1, at_most=4096)
    """Longer side of the images in pixels; images keep their shape, and smaller ones are not enlarged."""
    multiscale: bool = False
    """Average the features over the scales 1, 1/sqrt(2) and 1/2."""
    crop_queries: bool = False
    """Crop queries to their boxes, as the data sets' authors do; the released code does not."""


@dataclass(kw_only=True)
class CopyDetectionConfig:
    """Copy detection on INRIA Copydays, the strong subset (Douze et al. 2009), as in the paper's Table 4."""

    _target_: str = "dino_exp.eval.ranking.copy_detection.CopyDetection"
    root: str | None = None
    """Folder with original/ and strong/."""
    image_size: int = number(320, at_least=1, at_most=4096)
    """Side of the square images."""
    whitening: str | None = None
    """Folder of other images for the whitening (the paper: 20,000 of YFCC100M); null does not whiten."""
    distractors: str | None = None
    """Folder of images to add to the database (the paper: 10,000 of YFCC100M); null adds none."""


@dataclass(kw_only=True)
class VideoSegmentationConfig:
    """Masks propagated through videos by patch similarity on DAVIS 2017 (Jabri et al. 2020), Table 5."""

    _target_: str = "dino_exp.eval.davis.video_segmentation.VideoSegmentation"
    root: str | None = None
    """Folder of DAVIS 2017 with JPEGImages/480p, Annotations/480p and ImageSets/2017."""
    split: str = "val"
    """File in ImageSets/2017 that lists the videos."""
    image_size: int = number(480, at_least=64, at_most=4096)
    """Shorter side of the frames, a multiple of the patch; the longer one is cropped to a multiple of 64."""
    frames: int = number(7, at_least=1)
    """Previous frames that masks are propagated from, in addition to the first frame."""
    neighborhood: int = number(12, at_least=0)
    """Largest distance, in patches, at which a patch looks for neighbors; 0 is everywhere."""
    neighbors: int = number(5, at_least=1)
    """Number of most similar patches that a patch takes its mask from, plus ties with the last one."""
    temperature: float = number(0.1, above=0)
    """T in a patch's weight exp(similarity / T)."""


@dataclass(kw_only=True)
class EmbedConfig:
    """Features in a file, a map of them, and nearest neighbors."""

    _target_: str = "dino_exp.eval.embed.embedding.Embed"
    source: str | None = None
    """Folder of images, with or without classes, or a list of paths; null is `data`'s held-out images."""
    format: str = choice("parquet", ["parquet", "npz"])
    """Format of the file of names and features: parquet or npz."""
    map: str = choice("tsne", ["tsne", "umap", "none"])
    """Method of the two-dimensional map: tsne, umap (which needs umap-learn), or none."""
    map_size: int = number(2000, at_least=4)
    """Images on the map, evenly spread over all; their neighbors are searched among all images."""


EVALUATIONS: dict[str, type] = {
    "knn": KnnConfig,
    "linear": LinearConfig,
    "low_shot": LowShotConfig,
    "finetune": FinetuneConfig,
    "attention": AttentionConfig,
    "retrieval": RetrievalConfig,
    "copy_detection": CopyDetectionConfig,
    "video_segmentation": VideoSegmentationConfig,
    "embed": EmbedConfig,
}
"""The evaluations, by their name in `eval=`; those in `EvalConfig` also run during training."""


@dataclass(kw_only=True)
class EvalConfig:
    """Evaluations during training, of the run's own images: `eval=knn`, or several as `eval=[knn,linear]`."""

    _target_: str = "dino_exp.eval.periodic.PeriodicEvaluations"
    k: int | None = number(None, at_least=1)
    """Neighbors that vote in k-NN; more than bank images are cut to the bank. Null is no k-NN."""
    temperature: float = number(0.07, above=0)
    """T in a neighbor's weight exp(similarity / T)."""
    every_epochs: int = number(10, at_least=1)
    """Epochs between two evaluations; the untrained and the final network are always evaluated."""
    bank_size: int | None = number(None, at_least=1)
    """Training images that features are taken of (the bank of k-NN); null is all."""
    query_size: int | None = number(None, at_least=1)
    """Held-out images that are classified; null is all."""
    batch_size: int = number(256, at_least=1)
    """Images per forward pass."""
    crop_ratio: float = number(0.875, above=0, at_most=1)
    """The central share of the resized image's side that is seen; 224 / 256 in the released code."""
    linear: LinearConfig | None = None
    """Keys of the evaluation `linear`; null does not run it."""
    low_shot: LowShotConfig | None = None
    """Keys of the evaluation `low_shot`; null does not run it."""
    attention: AttentionConfig | None = None
    """Keys of the evaluation `attention`; null does not run it."""

    def nodes(self) -> dict[str, Any]:
        """Return the configuration of each evaluation to run, by its name in `EVALUATIONS`, in that order."""
        knn = None if self.k is None else KnnConfig(k=[self.k], temperature=self.temperature)
        found = {"knn": knn, **{name: getattr(self, name, None) for name in EVALUATIONS if name != "knn"}}
        return {name: node for name, node in found.items() if node is not None}
