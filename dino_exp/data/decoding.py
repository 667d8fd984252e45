"""How stored images become bytes: part of a run's identity, and of the names of what is made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dino_exp.data.value_range import Pair, pairs_of


@dataclass(frozen=True)
class Decoding:
    """The settings of `data` that say how a stored image becomes uint8 (C, H, W)."""

    channels: int = 3
    """C; 3 is RGB and 1 luminance, see `decode_image`."""
    backend: str = "fast"
    """`data.backend`; `pil` decodes everything with Pillow, as the released code does."""
    bands: tuple[int, ...] | None = None
    """`data.bands`: which channels of the file are read, counted from 1, in this order; None is all."""
    range: tuple[Pair, ...] | None = None
    """`data.range`: what becomes 0 and what 255, one pair for all channels or one for each; None leaves
    bytes as they are."""

    @classmethod
    def of(
        cls,
        channels: int,
        backend: str,
        bands: Sequence[int] | None = None,
        range: Sequence[object] | None = None,
    ) -> Decoding:
        """Return the settings of a configuration, whose lists are plain ones and have been checked."""
        pairs = None if range is None else pairs_of(range)
        return cls(channels, backend, None if bands is None else tuple(bands), pairs)

    @classmethod
    def of_config(cls, data: Any) -> Decoding:
        """Return the settings of a group `data`, of which generated and downloaded sets have fewer."""
        return cls.of(data.channels, data.backend, getattr(data, "bands", None), getattr(data, "range", None))

    @property
    def key(self) -> tuple[object, ...]:
        """What fingerprints hold; without what came later, so that earlier caches keep their names."""
        later = (self.bands, self.range)
        return self.channels, self.backend, *(later if any(later) else ())
