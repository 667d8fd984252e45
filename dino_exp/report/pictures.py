"""A run's pictures as they go into its page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

MOST_BYTES = 900_000
MOST_PIXELS = 1600
"""On the longer side."""


def as_data_url(path: Path) -> str:
    """A PNG file as it is, or smaller where it is large; empty where it cannot be read."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            if len(content) > MOST_BYTES or max(picture.size) > 2 * MOST_PIXELS:
                content = _smaller(picture)
            kind = Image.MIME[Image.open(io.BytesIO(content)).format or "PNG"]
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _smaller(picture: Image.Image) -> bytes:
    picture = picture.convert("RGB")
    picture.thumbnail((MOST_PIXELS, MOST_PIXELS))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    return out.getvalue()
