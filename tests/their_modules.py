"""Modules of others: written for a test, and forgotten after it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
from hydra.core.config_store import ConfigStore
from PIL import Image

from dino_exp.config import hydra_loader, plugin_options, plugins, schema, targets, text_keys

COMPONENTS = '''
    """Components of somebody else."""

    from dataclasses import dataclass
    from pathlib import Path
    from typing import Literal

    from dino_exp import register
    from dino_exp.errors import UserError
    from dino_exp.register import choice, number


    @dataclass
    class MySet:
        """Photographs of a garden."""

        root: str
        limit: int = number(1000, at_least=1, at_most=5000)
        """Most images of a class."""
        season: str = choice("all", ["all", "summer", "winter"])


    @register.data("garden", config=MySet)
    def garden(root, limit, season, channels, backend):
        from dino_exp.data import folder

        return folder.load(root=root, val_root="auto", channels=channels, backend=backend)


    @register.backbone("two_layers")
    def two_layers(in_channels: int, width: int = 8, act: Literal["relu", "gelu"] = "relu"):
        """Two convolutions.

        Args:
            width: channels of the hidden layer.
        """
        from torch import nn

        between = nn.ReLU() if act == "relu" else nn.GELU()
        layers = [nn.Conv2d(in_channels, width, 3, 2), between, nn.Conv2d(width, 16, 3, 2)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


    @register.optimizer("adam_beta")
    def adam_beta(params, beta: float = 0.9):
        import torch

        return torch.optim.AdamW(params, lr=0.0, betas=(beta, 0.999))
'''


def write_module(folder: Path, name: str, text: str = COMPONENTS) -> Path:
    """Write a module `my_package.components` into a folder, and return its file."""
    path = folder.joinpath(*name.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text))
    return path


def write_images(folder: Path, train: int = 16, test: int = 8) -> Path:
    """Write noise of two classes that differ in color, and return the folder of the training images."""
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("val", test)):
        for number, name in enumerate(("red", "blue")):
            path = folder / part / name
            path.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                pixels[..., 2 * number] //= 2
                Image.fromarray(pixels).save(path / f"{index:03}.png")
    return folder / "train"


@contextmanager
def forgotten() -> Iterator[None]:
    """Forget what the block registers and imports."""
    tables: list[dict[str, Any]] = [
        plugins.NAMED,
        plugin_options.PLUGINS,
        targets.CLASSES,
        targets.REGISTERED,
        text_keys.TEXT_KEYS,
        *schema.SCHEMAS.values(),
    ]
    before = [dict(table) for table in tables]
    path, modules = list(sys.path), set(sys.modules)
    try:
        yield
    finally:
        repository = ConfigStore.instance().repo
        for plugin in plugin_options.PLUGINS.values():
            group, _, name = plugin.option.partition("=")
            del repository[group][f"{name}.yaml"], repository["schema"][group][f"{name}.yaml"]
        for table, content in zip(tables, before, strict=True):
            table.clear()
            table.update(content)
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if not name.startswith(("dino_exp", "torch", "timm")):
                del sys.modules[name]
        hydra_loader.loader.cache_clear()
