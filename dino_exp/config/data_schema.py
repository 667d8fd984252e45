"""The typed configuration of data sets: the group `data` of `schema`."""

# ruff: noqa: RUF009 - `number` and `choice` are dataclasses.field with bounds

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from dino_exp.config.fields import choice, number

PLUGIN = "plugin:"
"""How the `_target_` of a component begins whose code is others'."""


@dataclass(kw_only=True)
class DataConfig:
    """The source of the images."""

    _target_: str = MISSING
    name: str = MISSING
    root: str | None = MISSING
    """Folder of the images; for generated and downloaded sets the folder that stores them (null: a cache)."""
    channels: int = number(3, at_least=1)
    """Channels of an image."""
    mean: list[float] = number([0.485, 0.456, 0.406])
    """Mean per channel, of values in 0–1, subtracted after augmentation; the default is ImageNet's."""
    std: list[float] = number([0.229, 0.224, 0.225], above=0)
    """Standard deviation per channel, divided by after augmentation; the default is ImageNet's."""
    max_corrupt: float = number(0.01, at_least=0, at_most=1)
    """Largest share of unreadable images; above it the run ends with an error."""
    backend: str = choice("fast", ["fast", "pil"])
    """`fast` augments whole batches on the training device; `pil` is the released code's pipeline, image
    by image in the loader's processes: the reference, and several times slower."""


@dataclass(kw_only=True)
class ShapesConfig(DataConfig):
    """Procedural images of one textured object each, with class and mask; generated in seconds."""

    _target_: str = "dino_exp.data.shapes.load"
    name: str = "shapes"
    root: str | None = None
    image_size: int = number(32, at_least=16)
    """Side of an image in pixels."""
    train_size: int = number(12000, at_least=1)
    """Images to train on."""
    test_size: int = number(3000, at_least=1)
    """Held-out images."""
    seed: int = number(0, at_least=0, at_most=2**32 - 1)
    """Seed of the images themselves; another seed is another data set."""


@dataclass(kw_only=True)
class ProbeConfig:
    """Labeled images by which features are judged, while the training images need no labels."""

    train: str | None = None
    """Images whose features are the bank of k-NN and train probes: a folder, list, shards or Hugging Face
    set; null takes the training images."""
    val: str | None = None
    """Images that are classified, with the same classes; null takes the held-out images."""


@dataclass(kw_only=True)
class StoredConfig(DataConfig):
    """The settings of all data sets stored in files."""

    bands: list[int] | None = number(None, at_least=1)
    """Channels of the files that are read, counted from 1, in this order: [3,2,1]; null reads all of them."""
    range: list[Any] | None = None
    """Values that become 0 and 255, which images of more than 8 bits need: a pair [0,4095], or a pair per
    channel [[0,4095],[0,10000]]; others are clipped. A bound is a number in the units of the files, or is
    measured in each channel of each image: a percentile, p0.5, or a distance from the mean in standard
    deviations, mean-2sd. null leaves images of 8 bits as they are."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    val_root: str | None = "auto"
    """Held-out images for k-NN. `auto`: the folder `val` or `test` beside a root named `train`, or the
    shards, files or split so named in the root; null has none."""
    packed: bool = False
    """Decode each image once, into one file of pixels in ~/.cache/dino_exp (or $XDG_CACHE_HOME) that all
    processes and runs of the machine share: no decoding, and much disk."""
    packed_side: int | None = number(None, at_least=1)
    """With packed, the shorter side of larger images becomes this many pixels; null keeps all pixels."""


@dataclass(kw_only=True)
class ImageFolderConfig(StoredConfig):
    """Class folders, one flat folder, or a text file with one path per line; labels are optional."""

    _target_: str = "dino_exp.data.folder.load"
    name: str = "image_folder"


@dataclass(kw_only=True)
class WebdatasetConfig(StoredConfig):
    """Tar shards in the webdataset format: a folder, a quoted brace pattern, or a list of them."""

    _target_: str = "dino_exp.data.webdataset.load"
    name: str = "webdataset"


@dataclass(kw_only=True)
class HuggingfaceConfig(StoredConfig):
    """A Hugging Face data set on the disk: a folder of `save_to_disk`, or parquet files."""

    _target_: str = "dino_exp.data.huggingface.load"
    name: str = "huggingface"
    image_column: str | None = None
    """Column of the images; null is the one of the type Image, or else the only one that holds bytes."""
    label_column: str | None = None
    """Column of the classes, which are numbers or texts; null is the one of the type ClassLabel, or else
    one named `label`, `labels`, `class`, `cls` or `target`."""


@dataclass(kw_only=True)
class Cifar10Config(DataConfig):
    """CIFAR-10, read from data.root or downloaded there."""

    _target_: str = "dino_exp.data.torchvision_sets.cifar10"
    name: str = "cifar10"
    root: str | None = None


@dataclass(kw_only=True)
class FashionMnistConfig(DataConfig):
    """Fashion-MNIST (one channel), from data.root, Debian's dataset-fashion-mnist, or downloaded."""

    _target_: str = "dino_exp.data.torchvision_sets.fashion_mnist"
    name: str = "fashion_mnist"
    root: str | None = None


@dataclass(kw_only=True)
class GivenDataConfig(DataConfig):
    """Images that Python code gives to `dino_exp.train(data=...)`."""

    _target_: str = "dino_exp.data.adapted.given"
    name: str = "given"
    root: str | None = None
    content: str = MISSING
    """Digest of the images and labels; computed, not typed."""


@dataclass(kw_only=True)
class OthersDataConfig(DataConfig):
    """The settings of all data sets whose code is others' (`dino_exp.register`)."""

    root: str | None = None
    """Folder or file of the images, for sets that have one; what it is called is no part of the run."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
