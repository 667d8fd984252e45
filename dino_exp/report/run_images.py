"""Images embedded in a run's page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from dino_exp.data.pillow_files import open_image
from dino_exp.regular_file import read_regular

FORMATS = ("PNG", "JPEG", "GIF", "WEBP")
"""Formats that browsers show."""
MOST_BYTES = 900_000
MOST_PIXELS = 1600
"""Pixels of the longer side."""


def as_data_url(path: Path) -> str:
    """Return an image file as a data URL, reduced if it is large; empty if it is not readable."""
    try:
        content = read_regular(path)
        with open_image(io.BytesIO(content), FORMATS) as image:
            kind = Image.MIME[image.format or "PNG"]
            if len(content) > MOST_BYTES or max(image.size) > 2 * MOST_PIXELS:
                smaller, out = image.convert("RGB"), io.BytesIO()
                smaller.thumbnail((MOST_PIXELS, MOST_PIXELS))
                smaller.save(out, "JPEG", quality=85)
                content, kind = out.getvalue(), Image.MIME["JPEG"]
    except Exception:  # decoders raise every kind of error on damaged bytes
        return ""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
