"""The items of others' data sets as an `ImageSource`: each is an image, or an image and its label."""

from __future__ import annotations

import logging
import os
import pickle
import threading
import traceback
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dino_exp.data.content import Content
from dino_exp.data.decoding import Decoding
from dino_exp.data.digests import HASH, UNREADABLE
from dino_exp.data.given_labels import Label, classes_of, label_of, labels_of, set_labels
from dino_exp.data.image_values import ACCEPTED, NoImageError, image_bytes
from dino_exp.data.labeled import LabeledSource, NameTable, short_digest
from dino_exp.data.source import CorruptImageError, Shrink, read_image
from dino_exp.data.subset import evenly_spread
from dino_exp.errors import UserError

log = logging.getLogger(__name__)

LOOKED_AT = 5
"""Items that are read twice before anything else."""
MANY = 2000
"""Items above which a line says that all of them are read."""


class GivenSource(LabeledSource):
    """The items of a Dataset, an array or a list.

    Labels are those of its attribute `targets` or `labels`, where these agree with the items, or else those
    of the items, all of which are then read.

    Args:
        items: has `len` and an item for each index, always the same one: an image (a PIL image, a uint8
            array or tensor, or a path) or (image, label).
        decoding: of items that are paths; its channels are those of all.
        title: what an image is called in messages.

    Raises UserError if the items that are looked at are no images, or differ when they are read again.
    """

    def __init__(self, items: Any, decoding: Decoding, title: str) -> None:
        super().__init__(Path(f"{title}s"))
        self._items, self._decoding, self._title = items, decoding, title
        self._lock = threading.Lock()  # evaluations read in threads, which others' code need not expect
        self._content: Content | None = None
        seen = self._look()
        labels = labels_of(items, len(self))
        if labels is None or any(label not in (None, labels[index]) for index, label in seen.items()):
            labels = None
            if any(label is not None for label in seen.values()):
                self._content, labels = self._read_all()
        if labels is not None:
            set_labels(self, labels, classes_of(items))

    def __len__(self) -> int:
        return len(self._items)

    def __getstate__(self) -> dict[str, Any]:
        """Return what loader processes are sent where they are not forked."""
        if not isinstance(self._items, torch.Tensor):
            try:
                pickle.dumps(self._items)
            except Exception as error:  # whatever others' objects raise
                raise UserError(
                    f"{type(self._items).__name__} cannot be sent to loader processes "
                    f"({_first_line(error)}); set trainer.num_workers=0, or define it in a module."
                ) from error
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def read(self, index: int, shrink: Shrink | None = None) -> torch.Tensor:
        return self._item(index, shrink)[0]

    def name(self, index: int) -> str:
        return f"{self._title} {index}"

    def content(self) -> Content:
        """Return what all items are, each read once in this process, unless the data has a fingerprint."""
        if self._content is None:
            own = _own_fingerprint(self._items)
            self._content = self._read_all()[0] if own is None else self._named_by(own)
        return Content(self._content.names, self._content.digests, self.labels)

    def fingerprint(self) -> str:
        return short_digest(self.content().digests, *self._decoding.key)

    def _item(self, index: int, shrink: Shrink | None = None) -> tuple[torch.Tensor, Label | None]:
        """Return an item's image and its label. Raises CorruptImageError, whatever others' code raises."""
        try:
            with self._lock:
                item = self._items[index]
            image, label = _image_and_label(item)
            if isinstance(image, (str, os.PathLike)):
                return read_image(os.fspath(image), self._decoding, shrink=shrink), label
            return image_bytes(image, self._decoding.channels), label
        except CorruptImageError:
            raise
        except NoImageError as error:
            raise CorruptImageError(self.name(index), str(error)) from error
        except Exception as error:
            reason = f"{type(error).__name__}: {_first_line(error)}{_place(error)}"
            raise CorruptImageError(self.name(index), reason) from error

    def _look(self) -> dict[int, Label | None]:
        """Read some items twice; return their labels by index."""
        seen: dict[int, Label | None] = {}
        failed: list[CorruptImageError] = []
        for index in evenly_spread(len(self), LOOKED_AT):
            try:
                (image, label), (again, _) = self._item(index), self._item(index)
            except CorruptImageError as error:
                failed.append(error)
                continue
            if not torch.equal(image, again):
                raise UserError(
                    f"{self.name(index)}: differs each time it is read. Give the images without random "
                    "transforms; DINO makes its own crops."
                )
            seen[index] = label
        if not seen:
            raise UserError(f"{failed[0]}.") from failed[0].__cause__
        return seen

    def _read_all(self) -> tuple[Content, list[Label | None]]:
        """Return the content of all items, without labels, and their labels."""
        count = len(self)
        if count > MANY:
            log.info("Reading each %s of %s once: they are part of the run's id.", self._title, f"{count:,}")
        digests = np.full(count, UNREADABLE, dtype=np.uint64)
        labels: list[Label | None] = [None] * count
        failed: dict[int, CorruptImageError] = {}
        for index in range(count):
            try:
                image, labels[index] = self._item(index)
                digests[index] = _digest(image)
            except CorruptImageError as error:
                failed[index] = error
        if failed:
            first = next(iter(failed.values()))
            some = next((label for label in labels if label is not None), None)
            for index in failed:  # which nobody judges: any label keeps those of the others
                labels[index] = some
            log.warning(
                "%s of %s items cannot be read, and are skipped; the first is %s\n%s",
                f"{len(failed):,}",
                f"{count:,}",
                first,
                "".join(traceback.format_exception(first.__cause__ or first)).rstrip(),
            )
        return Content(_numbers(count), digests, None), labels

    def _named_by(self, fingerprint: str) -> Content:
        """Return the content of items that are known by the fingerprint of all of them."""
        count = len(self)
        texts = (f"{fingerprint}:{index}".encode() for index in range(count))
        hashes = np.fromiter((zlib.crc32(text) or 1 for text in texts), dtype=np.uint64, count=count)
        return Content(_numbers(count), hashes << HASH, None)


def _image_and_label(item: Any) -> tuple[Any, Label | None]:
    if isinstance(item, (tuple, list)) and len(item) in (1, 2):
        return item[0], label_of(item[1]) if len(item) == 2 else None
    if isinstance(item, (tuple, list, dict)):
        what = f"a {type(item).__name__} of {len(item)} values"
        raise NoImageError(f"{what}; an item is an image or (image, label), and an image is {ACCEPTED}")
    return item, None


def _own_fingerprint(items: Any) -> str | None:
    """Return the text that a Dataset says its images change with; None if it says none."""
    own = getattr(items, "fingerprint", None)
    own = own() if callable(own) else own
    return own if isinstance(own, str) else None


def _digest(image: torch.Tensor) -> int:
    """Return a digest of an image's pixels and size, as `digests.digest` makes them of files."""
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    hashed = zlib.crc32(pixels.data, zlib.crc32(repr(pixels.shape).encode()))
    return min(pixels.nbytes, UNREADABLE - 1) | (hashed or 1) << int(HASH)


def _numbers(count: int) -> NameTable:
    return NameTable.of([b"%d" % index for index in range(count)])


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _place(error: BaseException) -> str:
    """Return where others' code raised, the deepest place that is no library's: " (/my/data.py:12)"."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
