"""Labels in tar shards: what they say, and which image each belongs to."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from dino_exp.errors import UserError

ENDINGS = (".cls", ".class", ".label", ".json")
KEYS = ("label", "cls", "class", "class_id", "class_name", "label_name")
"""Keys of a label in JSON; the first that is there and not null."""
GREATEST = 2**31 - 1
LONGEST = 255
"""Characters of the longest class name; longer texts are captions."""
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan", re.ASCII | re.IGNORECASE)
_NO_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]|^[\[(]?[+-]?[\d.]+(?:[\s,;]+[+-]?[\d.]+)*[\])]?$")
"""Several lines, what cannot be written as UTF-8, and several numbers."""

Label = int | str
"""A class by its number or its name."""


class NoClassError(Exception):
    """A text or value that is no class; the message says what would be one."""


def in_file(content: bytes) -> Label | None:
    """Return the label in a file that has nothing else; None for NaN and -1. Raises NoClassError."""
    try:
        return _in_text(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise _no_class(content[:20]) from None


def in_json(content: bytes) -> tuple[str | None, Label | None]:
    """Return the key of the label in a JSON object, and the label; None for what is not there.

    Raises NoClassError for a label that is no class, and ValueError or RecursionError for what is not JSON.
    """
    values = json.loads(content)
    if isinstance(values, dict):
        for key in KEYS:
            value = values.get(key)
            if isinstance(value, list) and len(value) == 1:
                (value,) = value
            if value is None:
                continue
            if isinstance(value, str):
                return key, _in_text(value)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return key, _in_number(value, value)
            raise _no_class(value)
    return None, None


def _in_text(text: str) -> Label | None:
    text = text.strip()
    if 0 < len(text) <= LONGEST:
        if _NUMBER.fullmatch(text):
            return _in_number(float(text), text)
        if not _NO_NAME.search(text):
            return text
    raise _no_class(text)


def _in_number(number: float, written: object) -> int | None:
    if number == -1 or (isinstance(number, float) and math.isnan(number)):
        return None
    if 0 <= number <= GREATEST and number == int(number):
        return int(number)
    raise _no_class(written)


def _no_class(value: object) -> NoClassError:
    shown = repr(value)
    return NoClassError(
        f"{shown if len(shown) <= 60 else shown[:60] + '...'} is not a label; a class number from 0 to "
        f"{GREATEST:,} or one class name is required"
    )


class ShardLabels:
    """The labels of one shard, by the names of their members."""

    def __init__(self) -> None:
        self._first: dict[str, Label] = {}
        self._again: dict[str, list[Label]] = {}  # all labels of a name that several have
        self._endings: list[str] = []

    def add(self, name: str, label: Label) -> None:
        """Take the label of the member `name`, whose ending is in lower case."""
        ending = name[name.rindex(".") :]
        if ending not in self._endings:
            self._endings.append(ending)
        if name in self._first:
            self._again.setdefault(name, [self._first[name]]).append(label)
        else:
            self._first[name] = label

    def of(self, path: str, images: Sequence[str]) -> tuple[list[Label | None], list[str]]:
        """Return the label of each image of the shard, and the names of the labels that belong to none.

        A label belongs to every image whose name, or its part before any dot, is that of the label:
        `a.left.jpg` has those in `a.left.jpg.cls`, `a.left.cls` and `a.cls`. Where there are as many images
        as labels of one name, the first goes with the first.
        Raises UserError where the labels of an image disagree.
        """
        if not self._first:
            return [None] * len(images), []
        labels: list[Label | None] = []
        used: set[str] = set()
        count, seen = Counter(images if self._again else ()), Counter[str]()
        for image in images:
            found: dict[Label, str] = {}
            for name in self._names_for(image):
                again = self._again.get(name)
                if again is None:
                    found[self._first[name]] = name
                elif len(again) == count[image]:
                    found[again[seen[image]]] = name
                else:
                    found |= dict.fromkeys(again, name)
                used.add(name)
            if self._again:
                seen[image] += 1
            labels.append(_agreed(path, image, found) if found else None)
        return labels, [name for name in self._first if name not in used]

    def _names_for(self, image: str) -> Iterator[str]:
        start, end = image.rfind("/") + 1, len(image)
        while end >= 0:
            for ending in self._endings:
                name = image[:end] + ending
                if name in self._first:
                    yield name
            end = image.rfind(".", start, end)


def _agreed(path: str, image: str, found: dict[Label, str]) -> Label:
    """Return the one label of an image: a number, which may have a name beside it, or else a name."""
    numbers: list[Label] = [label for label in found if isinstance(label, int)]
    alike = numbers or list(found)
    if len(alike) > 1:
        raise UserError(
            f"{path}: {image} has two labels that disagree: {alike[0]!r} in {found[alike[0]]} and "
            f"{alike[1]!r} in {found[alike[1]]}. Leave the right one in the shard."
        )
    return alike[0]
