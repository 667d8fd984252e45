"""Other people's data as an `ImageSource`: a torch Dataset, an array, a tensor or a list of files."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from dino_exp.data.decoding import Decoding
from dino_exp.data.folder import FolderSource
from dino_exp.data.given_items import GivenSource
from dino_exp.data.given_labels import are_labels, label_of, set_labels, use_classes_of
from dino_exp.data.kinds import open_images
from dino_exp.data.labeled import LabeledSource
from dino_exp.data.source import ImageSource, Splits
from dino_exp.data.subset import evenly_spread
from dino_exp.errors import UserError

FILES_LOOKED_AT = 256
"""Files of a list that are looked for, evenly spread; on a network disk each takes a while."""
_offered: dict[tuple[str, int], Splits] = {}
"""Images that this process has now, by the digest in `data.content` and their channels."""
KINDS = (
    "a map-style torch Dataset, a uint8 array or tensor (N, C, H, W), (N, H, W, C) or (N, H, W), a list of "
    "images or of paths, or (images, labels)"
)


def as_source(
    data: Any, channels: int, title: str = "image", decoding: Decoding | None = None
) -> ImageSource:
    """Return an `ImageSource` of what somebody has, read item by item and checked.

    Args:
        data: an `ImageSource` (returned as it is); a map-style `torch.utils.data.Dataset` or any sequence
            whose items are an image or (image, label); a uint8 array or tensor (N, C, H, W), (N, H, W, C) or
            (N, H, W); a list of paths; a tuple (images, labels) of one of these and N whole numbers or texts;
            or the path of a folder, list or shards. An image is a PIL image, a uint8 array or tensor, or a
            path.
        channels: `data.channels`.
        title: what an image is called in messages, which add the index.
        decoding: how files are decoded; by default as `channels` alone says.

    Raises UserError for what cannot be images.
    """
    decoding = decoding or Decoding(channels)
    if _is_labeled(data):
        images, labels = data
        source = as_source(images, channels, title, decoding)
        if not isinstance(source, LabeledSource):
            raise UserError(f"{title}s: {type(images).__name__} has its own labels; give it alone.")
        if len(labels) != len(source):
            raise UserError(
                f"{title}s: {len(source):,} images and {len(labels):,} labels; give one for each."
            )
        set_labels(source, [label_of(label) for label in labels], source.classes)
        return source
    if isinstance(data, (str, os.PathLike)):
        return open_images(f"{title}s", os.fspath(data), decoding)
    if all(hasattr(data, name) for name in ("read", "name", "labels", "fingerprint", "__len__")):
        source = data
        return source
    _refuse_others(data, title)
    if _are_paths(data):
        return _of_files(list(data), title, decoding)
    return GivenSource(data, decoding, title)


def as_splits(data: Any, channels: int, decoding: Decoding | None = None) -> Splits:
    """Return `Splits` of what somebody's function returned: Splits, one set, or a tuple (train, held out).

    A tuple whose second part is N whole numbers or texts, and not images, is one set with its labels.
    """
    if isinstance(data, Splits):
        return data
    is_pair = isinstance(data, tuple) and len(data) == 2 and not _is_labeled(data)
    train, test = data if is_pair else (data, None)
    of_train = as_source(train, channels, "training image", decoding)
    if test is None:
        return Splits(of_train, None)
    of_test = as_source(test, channels, "held-out image", decoding)
    if isinstance(of_train, LabeledSource) and isinstance(of_test, LabeledSource):
        use_classes_of(of_train, of_test)
    return Splits(of_train, of_test)


@contextmanager
def offered(content: str, channels: int, splits: Splits) -> Iterator[None]:
    """Let configurations with this `data.content` use these images, within the context."""
    _offered[content, channels] = splits
    try:
        yield
    finally:
        _offered.pop((content, channels), None)


def given(*, content: str, channels: int) -> Splits:
    """Return the images that Python code has given. Raises UserError if this process does not have them."""
    if (content, channels) not in _offered:
        raise UserError(
            "data = given: these images were given from Python, dino_exp.train(data=...), and only code that "
            "gives them again has them. Give images in files, e.g. data=image_folder data.root=FOLDER."
        )
    return _offered[content, channels]


def _is_labeled(data: Any) -> bool:
    return isinstance(data, tuple) and len(data) == 2 and are_labels(data[1])


def _refuse_others(data: Any, title: str) -> None:
    """Raise UserError for what has no images by index."""
    what = type(data).__name__
    if isinstance(data, IterableDataset):
        raise UserError(
            f"{title}s: {what} is an IterableDataset, whose images have no index; give a map-style Dataset "
            "(with __len__ and __getitem__), or a list of files."
        )
    if isinstance(data, DataLoader):
        raise UserError(f"{title}s: a DataLoader; give its data set, loader.dataset.")
    try:
        count = len(data)
    except (TypeError, NotImplementedError):
        count = -1
    if count < 0 or not hasattr(data, "__getitem__") or isinstance(data, (dict, bytes)):
        raise UserError(f"{title}s: {what}; give {KINDS}.")
    if not count:
        raise UserError(f"{title}s: {what} of length 0; there are no images.")
    if isinstance(data, (np.ndarray, torch.Tensor)) and data.ndim not in (3, 4) and not _are_paths(data):
        raise UserError(
            f"{title}s: an array {tuple(data.shape)}; images are (N, C, H, W), (N, H, W, C) or (N, H, W)."
        )


def _are_paths(data: Any) -> bool:
    kinds = (str, os.PathLike)
    return isinstance(data, (list, tuple, np.ndarray)) and all(isinstance(each, kinds) for each in data)


def _of_files(paths: Sequence[str | os.PathLike[str]], title: str, decoding: Decoding) -> FolderSource:
    """Return the images in files, some of which are looked for."""
    names = [os.path.abspath(os.path.expanduser(os.fspath(path))) for path in paths]  # noqa: PTH100, PTH111
    for index in evenly_spread(len(names), FILES_LOOKED_AT):
        if not os.path.isfile(names[index]):  # noqa: PTH113
            raise UserError(f"{title} {index}: no such file: {names[index]}.")
    encoded = [os.fsencode(name) for name in names]
    ends = array("q", accumulate(map(len, encoded), initial=0))
    source = FolderSource(Path(f"{title}s"), Path(os.sep), decoding)
    source.fill(bytearray(b"".join(encoded)), ends, array("q"), None)
    return source
