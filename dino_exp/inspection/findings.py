"""What was measured, printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from dino_exp.console import Console, table
from dino_exp.inspection.measured import PERCENTILES, SIDES, Measured
from dino_exp.machine import cores

MOST_CHANNELS = 16
"""Channels of which the values are printed."""
SHARES = {0.0: "smallest", 5.0: "5%", 50.0: "median", 95.0: "95%", 100.0: "largest"}


def print_findings(measured: Measured, console: Console) -> None:
    """Print what is known of a set of images."""
    rows = {
        "images": _images(measured),
        "formats": _counted(measured.formats),
        "channels": _counted(measured.channel_counts),
        "bits per value": _counted(measured.bits),
        "longer / shorter side": "median {:.2f}, 95 % below {:.2f}, largest {:.2f}".format(
            *measured.aspect_ratios.values()
        ),
        "unreadable": _unreadable(measured),
        "same bytes": _groups(measured.exact_duplicates),
        "near duplicates": _groups(measured.near_duplicates),
        "decoding": _decoding(measured),
    }
    console.print(table(f"{measured.place} ({measured.kind})", rows))
    for each in (_sides(measured), *_values(measured)):
        console.print()
        console.print(each)
    if len(measured.channels) > MOST_CHANNELS:
        console.print(f"... and {len(measured.channels) - MOST_CHANNELS} more channels")
    if measured.notes:
        console.print()
    for note in measured.notes:
        console.print(f"- {note}", soft_wrap=True)


def _images(measured: Measured) -> str:
    text = f"{measured.images:,}"
    if measured.classes:
        text += f" in {len(measured.classes):,} classes"
        smallest, largest = (pick(measured.classes.items(), key=lambda each: each[1]) for pick in (min, max))
        if smallest[1] < largest[1]:
            text += f", of {smallest[1]:,} ({smallest[0]}) to {largest[1]:,} ({largest[0]})"
        else:
            text += f" of {largest[1]:,} each"
    else:
        text += " without labels"
    if measured.held_out:
        text += f"; held-out images are beside them in {measured.held_out}"
    unread = sum(map(len, measured.unreadable.values()))
    if measured.decoded + unread < measured.images:
        text += f"; {measured.decoded:,} were decoded, evenly spread (all with --images {measured.images})"
    return text


def _counted(counts: Mapping[Any, int]) -> str:
    if len(counts) == 1:
        return str(next(iter(counts)))
    return ", ".join(f"{name} ({count:,} images)" for name, count in counts.items())


def _unreadable(measured: Measured) -> str:
    if not measured.unreadable:
        return "none"
    return "\n".join(
        f"{len(names):,}: {reason} ({names[0]})" for reason, names in measured.unreadable.items()
    )


def _groups(groups: Sequence[Sequence[str]]) -> str:
    if not groups:
        return "none"
    count = sum(map(len, groups))
    largest = max(groups, key=len)
    others = f", {largest[2]}" if len(largest) > 2 else ""
    more = ", ..." if len(largest) > 3 else ""
    number = f"{len(groups):,} groups" if len(groups) > 1 else "a group"
    return f"{count:,} images in {number}, as {largest[0]}, {largest[1]}{others}{more}"


def _decoding(measured: Measured) -> str:
    milliseconds, here = measured.decode_milliseconds, cores()
    seconds = measured.images * milliseconds / 1000 / here
    epoch = f"{seconds:.2g} s" if seconds < 60 else f"{seconds / 60:,.0f} min"
    return (
        f"{milliseconds:.2g} ms of a core per image ({measured.read_milliseconds:.2g} ms of it reading), "
        f"{1000 / max(milliseconds, 1e-3):,.0f} images/s per core\n"
        f"{epoch} per epoch on the {here} cores here, to which the cutting of crops adds"
    )


def _sides(measured: Measured) -> Table:
    shown = _table("pixels", *(SHARES[percentile] for percentile in SIDES))
    for name, sides in (("shorter side", measured.shorter_sides), ("longer side", measured.longer_sides)):
        shown.add_row(name, *(f"{sides[percentile]:,}" for percentile in SIDES))
    return shown


def _values(measured: Measured) -> list[Table]:
    """Return the values as stored, and what of them a training needs: two tables, for narrow terminals."""
    stored = _table("values", "low", *(f"{each:g}%" for each in PERCENTILES), "high", "mean", "std")
    ranges: Sequence[tuple[float, float] | None]
    ranges = measured.value_range or [None] * len(measured.channels)
    columns: dict[str, list[str]] = {"data.range": [], "data.mean": [], "data.std": []}
    columns |= {"constant in": [], "NaN or inf in": []}
    found = list(zip(measured.channels, ranges, *measured.mean_and_std, strict=True))[:MOST_CHANNELS]
    for number, (channel, limits, mean, std) in enumerate(found, 1):
        values = (channel.low, *channel.percentiles.values(), channel.high, channel.mean, channel.std)
        stored.add_row(f"channel {number}", *map(_value, values))
        texts = (
            f"[{limits[0]:.4g}, {limits[1]:.4g}]" if limits else "",
            f"{mean:.3f}",
            f"{std:.3f}",
            f"{channel.constant:,} images" if channel.constant else "",
            f"{channel.not_finite:,} images" if channel.not_finite else "",
        )
        for column, text in zip(columns.values(), texts, strict=True):
            column.append(text)
    shown = {name: column for name, column in columns.items() if any(column)}
    needed = _table("for a training", *shown)
    for number, row in enumerate(zip(*shown.values(), strict=True), 1):
        needed.add_row(f"channel {number}", *row)
    return [stored, needed]


def _value(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:,.4g}"


def _table(first: str, *others: str) -> Table:
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    shown.add_column(first, style="dim", no_wrap=True)
    for name in others:
        shown.add_column(name, justify="right", no_wrap=True)
    return shown
