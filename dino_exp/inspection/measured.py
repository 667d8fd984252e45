"""What was found in a set of images, as numbers."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Channel:
    """The stored values of one channel, over all images that were decoded."""

    low: float
    high: float
    mean: float
    std: float
    percentiles: dict[float, float]
    """Value by percentile: 0.1, 1, 50, 99, 99.9."""
    constant: int
    """Images in which the channel has one value."""
    not_finite: int
    """Images with NaN or infinite values in it."""


@dataclass(frozen=True)
class Measured:
    """What `dino-exp inspect` has found."""

    place: str
    """The path as typed."""
    kind: str
    """The option of `data`: image_folder, webdataset or huggingface."""
    images: int
    """Images in the set."""
    decoded: int
    """Images that were decoded and measured, evenly spread over the set."""
    unreadable: dict[str, list[str]]
    """Names of unreadable images by reason."""
    formats: dict[str, int]
    """Images by format: JPEG, PNG, TIFF, NPY."""
    channel_counts: dict[int, int]
    """Images by number of channels."""
    bits: dict[int, int]
    """Images by bits per value."""
    shorter_sides: dict[float, int]
    """Shorter side in pixels by percentile: 0, 5, 50, 95, 100."""
    longer_sides: dict[float, int]
    channels: tuple[Channel, ...]
    """Of the number of channels that most images have."""
    exact_duplicates: list[list[str]]
    """Groups of images with equal bytes."""
    near_duplicates: list[list[str]]
    """Groups of images that look alike."""
    classes: dict[str, int] | None
    """Images by class; None without labels."""
    decode_milliseconds: float
    """CPU time to read and decode one image, on average."""
    read_milliseconds: float
    """Of which reading its bytes."""
    floating: bool = False
    """Values are floating-point numbers."""
    notes: list[str] = field(default_factory=list)
    """What else a user should know, in sentences."""
