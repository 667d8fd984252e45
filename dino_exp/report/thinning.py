"""Curves reduced to few points without losing spikes."""

from __future__ import annotations

from collections.abc import Sequence

from dino_exp.report.loading import MOST_POINTS

Point = tuple[int, float | None]


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return about `most` points at most: the lowest and the highest of each stretch.

    The first and the last point are kept, and of each stretch one point without a number.
    """
    if len(points) <= most:
        return list(points)
    stretches = max(1, (most - 2) // 2)
    inner = points[1:-1]
    kept: list[Point] = [points[0]]
    for index in range(stretches):
        part = inner[len(inner) * index // stretches : len(inner) * (index + 1) // stretches]
        values = [point for point in part if point[1] is not None]
        chosen = [part[[value for _, value in part].index(None)]] if len(values) < len(part) else []
        if values:
            chosen += [end(values, key=lambda point: point[1] or 0.0) for end in (min, max)]
        kept += sorted(set(chosen), key=lambda point: point[0])
    return [*kept, points[-1]]
