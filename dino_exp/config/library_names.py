"""The model names of timm and torchvision, read from their sources because imports take seconds."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

_REGISTERED = re.compile(r"^@register_model(?:\(.*\))?\s*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


@cache
def model_names(library: str) -> frozenset[str]:
    """Return the image models that `library` (timm or torchvision) can build; empty if not installed."""
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        return frozenset()
    modules = sorted((Path(spec.origin).parent / "models").glob("*.py"))
    return frozenset(name for module in modules for name in _REGISTERED.findall(module.read_text("utf-8")))
