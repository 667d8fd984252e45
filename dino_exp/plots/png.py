"""Matplotlib figures as PNG files of limited size."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from dino_exp.atomic import write_atomically
from dino_exp.streams import visible

DPI = 120
FILE_LIMIT = 400_000
"""Bytes that a file should stay below; larger ones are saved with 256 colors, then with fewer pixels."""

INK, QUIET, GRID = "#222222", "#666666", "#E4E4E4"


def save(figure: Figure, out: Path) -> None:
    """Write a PNG atomically, if possible below FILE_LIMIT."""
    for text in figure.findobj(Text):
        text.set_text(visible(text.get_text()))  # Matplotlib cannot draw a path that is not UTF-8
    canvas = FigureCanvasAgg(figure)
    for dpi in (DPI, 90, 75):
        figure.set_dpi(dpi)
        canvas.draw()
        image = Image.fromarray(np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3]))
        data = _encoded(image, dpi)
        if len(data) > FILE_LIMIT:
            data = _encoded(image.quantize(256), dpi)
        if len(data) <= FILE_LIMIT:
            break
    write_atomically(out, lambda file: file.write(data))


def _encoded(image: Image.Image, dpi: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="png", dpi=(dpi, dpi))  # optimize=True: 3 % smaller in 3 to 6 times the time
    return buffer.getvalue()
