"""The door for components of others: decorators that make options of groups, with a typed configuration.

A module with these decorators is named on the command line, `plugins=[my_package.components]`, or by an entry
point of the group `dino_exp.plugins`; see docs/extending.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from dino_exp.config.fields import choice as choice
from dino_exp.config.fields import number as number
from dino_exp.config.plugin_options import add

Component = TypeVar("Component", bound=Callable[..., Any])
Decorator = Callable[[Component], Component]


def data(name: str, config: type | None = None) -> Decorator[Component]:
    """Make a function or class the option `data=name`.

    It is called with those of its settings that it names, and of `channels`, `mean`, `std`, `backend` and
    `root`, and returns one set of images or a pair of training and held-out images: each a map-style
    `torch.utils.data.Dataset`, an array, a list of files, or an `ImageSource` with `content`.

    Args:
        name: of the option.
        config: a dataclass of the settings; by default they are the parameters with types and defaults.
    """
    return _registered("data", name, config)


def backbone(name: str, config: type | None = None) -> Decorator[Component]:
    """Make a function or class the option `backbone=name`; arguments as in `data`.

    It is called with its settings, and with `in_channels` and `image_size` (the side of a global crop) if it
    names them, and returns a `torch.nn.Module` from images (B, C, S, S) to features (B, D) for all sizes of
    crops. With a setting `drop_path_rate` it is called with 0 for the teacher.
    """
    return _registered("backbone", name, config)


def optimizer(name: str, config: type | None = None) -> Decorator[Component]:
    """Make a function or class the option `optimizer=name`; arguments as in `data`.

    It is called with its settings and `params`, the groups of parameters, and returns a
    `torch.optim.Optimizer`, whose learning rate and weight decay are set at each step.
    """
    return _registered("optimizer", name, config)


def _registered(group: str, name: str, config: type | None) -> Decorator[Component]:
    def decorate(component: Component) -> Component:
        add(group, name, component, config)
        return component

    return decorate
