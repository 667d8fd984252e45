"""Images embedded in a run's page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

MOST_BYTES = 900_000
MOST_PIXELS = 1600
"""Pixels of the longer side."""


def as_data_url(path: Path) -> str:
    """Return an image file as a data URL, reduced if it is large; empty if it is not readable."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            if len(content) > MOST_BYTES or max(image.size) > 2 * MOST_PIXELS:
                smaller, out = image.convert("RGB"), io.BytesIO()
                smaller.thumbnail((MOST_PIXELS, MOST_PIXELS))
                smaller.save(out, "JPEG", quality=85)
                content = out.getvalue()
            kind = Image.MIME[Image.open(io.BytesIO(content)).format or "PNG"]
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
