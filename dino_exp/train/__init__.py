"""One training run: the loop, what it is planned from, and what it writes, shows and draws.

`dino_exp.train(...)` is `dino_exp.api.training.train`. Python gives a package's name to its module once it is
imported, so this module can be called.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(
        self, overrides: Any = (), *, data: Any = None, backbone: Any = None, config_dir: str | None = None
    ) -> Any:
        """Train one run, resume it, or return it if it has ended: see `dino_exp.api.training.train`."""
        train = import_module("dino_exp.api.training").train
        return train(overrides, data=data, backbone=backbone, config_dir=config_dir)


sys.modules[__name__].__class__ = _Callable
