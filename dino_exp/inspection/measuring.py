"""Measuring a set of images: which of them are decoded, and what all of it comes to."""

from __future__ import annotations

import math
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dino_exp.console import Console
from dino_exp.data import kinds
from dino_exp.data.content import ImagesWithContent
from dino_exp.data.decoding import Decoding
from dino_exp.data.digests import HASH
from dino_exp.data.file_sets import absolute_path, held_out_siblings
from dino_exp.data.folder import FolderSource
from dino_exp.data.image_scan import is_image
from dino_exp.data.source import CorruptImageError, decode_image
from dino_exp.data.stored_values import UndecodableError, stored_values
from dino_exp.data.subset import evenly_spread
from dino_exp.errors import UserError
from dino_exp.inspection import duplicates
from dino_exp.inspection.looking import Decoded, Looking, Part, Task, parts_of, reason_of
from dino_exp.inspection.measured import SIDES, Channel, Measured

Key = TypeVar("Key", bound=Hashable)

VALUES = 70_000_000_000
"""Values that are decoded at most: all of 100,000 photographs of 0.2 megapixels, which takes two cores some
four minutes, and 1,900 photographs of 12 megapixels."""
OVERHEAD = 60_000
"""Values that take as long as everything else that is done for an image."""
FEW = 32
"""Images that are decoded to see how large they are, and how long it takes."""
AT_ONCE = 64
"""Most images of a task."""
VALUES_AT_ONCE = 10_000_000
"""Values after which a task is long enough, about a second, because Ctrl-C may have to wait for it."""
EXAMPLES = 6
"""Images to show."""
ASPECTS = (50.0, 95.0, 100.0)
CHANNELS_FIRST = 16
"""An array whose first axis is at most so long, and its last one longer, may have its channels first."""


class Inspection:
    """A set of images with what was measured of it.

    examples: indices of images of the usual form, evenly spread.
    """

    def __init__(self, source: ImagesWithContent, measured: Measured, examples: Sequence[int]) -> None:
        self.source, self.measured, self.examples = source, measured, examples


def inspect(place: str, most: int | None, console: Console) -> Inspection:
    """Look at the images at a path.

    Args:
        place: as for `kinds.open_images`, or one image file.
        most: images to decode; None is as many as take minutes.

    Raises UserError if there are no images that can be read.
    """
    kind, source = _opened(place)
    few = _first_look(source)
    cost = few.values + OVERHEAD
    wanted = evenly_spread(len(source), most or max(1, int(VALUES / cost)))
    found = _looked_at(source, wanted, cost, console)
    if not found.images:
        index, reason = found.unreadable[0]
        raise UserError(
            f"{place}: none of its images can be read ({len(wanted):,} were tried), as {source.name(index)}: "
            f"{reason}."
        )
    usual = usual_form(found.images)
    alike = [image.position for image in found.images if (image.shape[2], image.kind) == usual]
    measured = _measured(place, kind, source, found, usual, few)
    return Inspection(source, measured, [alike[i] for i in evenly_spread(len(alike), EXAMPLES)])


def usual_form(images: Sequence[Decoded]) -> tuple[int, str]:
    """Return the number of channels and the type of values that most images have."""
    forms = Counter((image.shape[2], image.kind) for image in images)
    return max(forms, key=lambda form: (forms[form], form))


def _opened(place: str) -> tuple[str, ImagesWithContent]:
    path, decoding = absolute_path(place), Decoding()
    if path.is_file() and is_image(path):
        source = FolderSource(path, path.parent, decoding)
        name = path.name.encode(errors="surrogateescape")
        source.fill(bytearray(name), array("q", [0, len(name)]), array("q"), None)
        return "image_folder", source
    return kinds.kind_of(place), kinds.open_images("PATH", place, decoding)


class FirstLook(NamedTuple):
    """What a few images say of the others."""

    values: float
    """Values per image."""
    read: float
    """Seconds of a core to read as many."""
    decode: float
    """Seconds of a core to read and decode as many, as a training does."""


def _first_look(source: ImagesWithContent) -> FirstLook:
    sizes, read, decode = [], 0.0, 0.0
    few = evenly_spread(len(source), FEW)
    for turn, index in enumerate((few[0], *few)):  # the first one twice, because it may load libraries
        with suppress(CorruptImageError, UndecodableError):
            start = time.thread_time()
            content = source.encoded(index)
            has_read = time.thread_time()
            try:
                decode_image(content, "", Decoding())
            except CorruptImageError:  # deep, or of other channels: these need settings that are not known
                stored_values(content)
            has_decoded = time.thread_time()
            if turn:
                sizes.append(stored_values(content).values.size)
                read, decode = read + has_read - start, decode + has_decoded - start
    number = max(len(sizes), 1)
    return FirstLook(float(np.mean(sizes or [1])), read / number, decode / number)


def _looked_at(source: ImagesWithContent, wanted: Sequence[int], cost: float, console: Console) -> Part:
    """Return what is found in all images, of which those `wanted` are decoded."""
    decoded = np.zeros(len(source), dtype=bool)
    decoded[wanted] = True
    step = int(np.clip(VALUES_AT_ONCE / cost, 1, AT_ONCE))
    starts = range(0, len(source), step)
    tasks = [Task(start, decoded[start : start + step].tolist()) for start in starts]
    bar = Progress(
        TextColumn("looking at images"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_interactive,
    )
    total = Part()
    with bar, parts_of(Looking(source, len(wanted)), tasks) as parts:
        shown = bar.add_task("", total=len(source))
        for part in parts:
            bar.advance(shown, len(part.digests))
            total.add(part)
    return total


def _measured(
    place: str,
    kind: str,
    source: ImagesWithContent,
    found: Part,
    usual: tuple[int, str],
    few: FirstLook,
) -> Measured:
    images, digests = found.images, np.array(found.digests, dtype=np.uint64)
    exact = duplicates.exact_groups(digests, source.encoded)
    near = _near(found, exact)
    sides = np.array([image.shape[:2] for image in images])
    unreadable: dict[str, list[str]] = {}
    said: dict[str, str] = {}  # the first of the reasons that differ in numbers alone
    for index, reason in found.unreadable:
        reason = said.setdefault(reason_of(reason), reason)
        unreadable.setdefault(reason, []).append(_name(source, index))
    milliseconds = 1000 * np.mean([math.prod(image.shape) for image in images]) / few.values
    held_out, leak = _held_out(kind, place, digests)
    channels, usual_images = found.statistics[usual].results(), found.statistics[usual].images
    return Measured(
        place=place,
        kind=kind,
        images=len(source),
        decoded=len(images),
        unreadable=dict(sorted(unreadable.items(), key=lambda each: -len(each[1]))),
        formats=_counts(image.format for image in images),
        channel_counts=_counts(image.shape[2] for image in images),
        bits=_counts(image.bits for image in images),
        shorter_sides=_percentiles(sides.min(axis=1), SIDES),
        longer_sides=_percentiles(sides.max(axis=1), SIDES),
        channels=channels,
        exact_duplicates=_named(source, exact),
        near_duplicates=_named(source, near),
        classes=_classes(source),
        decode_milliseconds=float(few.decode * milliseconds),
        read_milliseconds=float(few.read * milliseconds),
        floating=usual[1].startswith("float"),
        notes=[
            *leak,
            *_across_classes(source, exact, "the same bytes"),
            *_across_classes(source, near, "near duplicates"),
            *_constant(channels, usual_images),
            *_mixed(source, images, usual),
            *_channels_first(source, images),
        ],
        value_type=usual[1],
        aspect_ratios={
            percentile: round(float(np.percentile(sides.max(axis=1) / sides.min(axis=1), percentile)), 3)
            for percentile in ASPECTS
        },
        held_out=held_out,
    )


def _counts(values: Iterable[Key]) -> dict[Key, int]:
    """Return how often each value occurs, the most frequent first."""
    return dict(Counter(values).most_common())


def _percentiles(values: np.ndarray, percentiles: Sequence[float]) -> dict[float, int]:
    return {each: int(np.percentile(values, each, method="nearest")) for each in percentiles}


def _near(found: Part, exact: duplicates.Groups) -> duplicates.Groups:
    """Return the groups of images that look alike; of each exact group only one image is compared."""
    copies = {index for group in exact for index in group[1:]}
    kept = [row for row, image in enumerate(found.images) if image.position not in copies]
    kept = [kept[i] for i in evenly_spread(len(kept), duplicates.MOST)]
    if len(kept) < 2:
        return []
    groups = duplicates.near_groups(np.stack([found.thumbnails[row] for row in kept]))
    return [[found.images[kept[row]].position for row in group] for group in groups]


def _named(source: ImagesWithContent, groups: duplicates.Groups) -> list[list[str]]:
    return [[_name(source, index) for index in group] for group in groups]


def _name(source: ImagesWithContent, index: int) -> str:
    """Return an image's name, without the path of the folder that it is in."""
    return source.name(index).removeprefix(f"{source.path}/")


def _classes(source: ImagesWithContent) -> dict[str, int] | None:
    if source.labels is None or source.classes is None:
        return None
    counts = np.bincount(source.labels, minlength=len(source.classes))
    return dict(zip(source.classes, counts.tolist(), strict=True))


def _across_classes(source: ImagesWithContent, groups: duplicates.Groups, what: str) -> list[str]:
    if source.labels is None:
        return []
    across = [group for group in groups if len({int(source.labels[index]) for index in group}) > 1]
    if not across:
        return []
    first = across[0]
    other = next(index for index in first if source.labels[index] != source.labels[first[0]])
    return [
        f"Images of different classes are {what} in {len(across):,} of the groups "
        f"({_name(source, first[0])} and {_name(source, other)}): their labels may be wrong."
    ]


def _constant(channels: Sequence[Channel], images: int) -> list[str]:
    numbers = [str(number) for number, each in enumerate(channels, 1) if each.constant == images > 1]
    if not numbers:
        return []
    return [f"Constant in every image, so that nothing can be learned from it: channel {', '.join(numbers)}."]


def _mixed(source: ImagesWithContent, images: Sequence[Decoded], usual: tuple[int, str]) -> list[str]:
    others: dict[tuple[int, str], list[int]] = defaultdict(list)
    for image in images:
        others[image.shape[2], image.kind].append(image.position)
    del others[usual]
    parts = [
        f"{len(indices):,} with {_form(*form)} ({_name(source, indices[0])})"
        for form, indices in sorted(others.items(), key=lambda each: -len(each[1]))[:3]
    ]
    if not parts:
        return []
    return [
        f"Images of several kinds: {', '.join(parts)}. The values are those of the images with "
        f"{_form(*usual)}."
    ]


def _form(channels: int, kind: str) -> str:
    return f"{channels} channel{'s' if channels > 1 else ''} in {kind}"


def _channels_first(source: ImagesWithContent, images: Sequence[Decoded]) -> list[str]:
    odd = [each for each in images if each.shape[0] <= CHANNELS_FIRST < each.shape[2]]
    if not odd:
        return []
    return [
        f"{_name(source, odd[0].position)} has the shape {odd[0].shape} ({len(odd):,} such): if its channels "
        "come first, write it as (height, width, channels)."
    ]


def _held_out(kind: str, place: str, digests: np.ndarray) -> tuple[str | None, list[str]]:
    """Return the held-out images beside a set named train, and whether they are also in the set, in words."""
    siblings = held_out_siblings(absolute_path(place)) if kind == "image_folder" else []
    for path in siblings:
        try:
            test = kinds.open_images("PATH", str(path), Decoding()).content()
        except UserError:
            continue
        both = np.flatnonzero((test.digests >> HASH > 0) & np.isin(test.digests, digests))
        if not len(both):
            return str(path), []
        return str(path), [
            f"{len(both):,} of the {len(test.digests):,} held-out images in {path} are also training images "
            f"({test.names[int(both[0])]}): k-NN and other evaluations will say too much."
        ]
    return None, []
