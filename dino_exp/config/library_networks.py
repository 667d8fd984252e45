"""The check that a network of others can be trained with a configuration, before any data are opened."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from dino_exp.config.network_schema import GivenBackboneConfig, VitConfig
from dino_exp.config.schema import schema_of
from dino_exp.config.targets import REGISTERED, build
from dino_exp.errors import UserError


def network_problems(cfg: Any) -> list[str]:
    """Return why a network of others does not work with these crops and channels; empty if it does.

    Our own networks need no check, because the relations between values decide. All values are valid already.
    """
    if schema_of(cfg.backbone) is VitConfig:
        return []
    sizes = {cfg.crops.global_size} | ({cfg.crops.local_size} if cfg.crops.local_number else set())
    # plain text can be compared, so that a sweep tries each network once
    node = OmegaConf.to_yaml(cfg.backbone, resolve=True)
    others, order = REGISTERED.get(cfg.backbone._target_), tuple(sorted(sizes, reverse=True))
    # a user's code may have been repaired since the last call
    find = _problem.__wrapped__ if schema_of(cfg.backbone) is GivenBackboneConfig else _problem
    problem = find(node, cfg.data.channels, cfg.crops.global_size, order, others)
    return [problem] if problem else []


@cache
def _problem(
    node: str, channels: int, built_for: int, sizes: tuple[int, ...], others: Hashable
) -> str | None:
    """Return what is wrong with a network as student and teacher, given images of these sizes.

    Of a network of others the code counts too, which a notebook may load again.

    It is built without values, which takes a fraction of a second. What fails then is built with them before
    it is refused, because some networks need values to be built.
    """
    import torch  # late, because refusing and helping need not wait for it

    backbone: Any = OmegaConf.create(node)
    for device in ("meta", "cpu"):
        try:
            with torch.device(device), torch.random.fork_rng(devices=[]):
                _try(backbone, channels, built_for, sizes)
            return None
        except UserError as error:
            problem = str(error)
        except Exception as error:  # a library may raise anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            problem = (
                f"backbone.name = {backbone.name}: cannot be built for data.channels = {channels} and images "
                f"of {built_for}x{built_for} pixels ({reason}); choose another model."
            )
    return problem


def _try(backbone: Any, channels: int, built_for: int, sizes: tuple[int, ...]) -> None:
    """Build student and teacher, and run the teacher; raise an error if one of that does not work."""
    import torch

    from dino_exp.backbone.image_size import check_image_sizes
    from dino_exp.backbone.randomness import random_operations

    options: dict[str, Any] = {"in_channels": channels, "image_size": built_for}
    if backbone.get("drop_path_rate"):
        build(backbone, **options)
        options["drop_path_rate"] = 0.0
    teacher = build(backbone, **options)
    others = [size for size in sizes if size != built_for]  # for which it has been tried already
    check_image_sizes(teacher, name=backbone.name, in_channels=channels, sizes=others)
    drawn = random_operations(teacher, torch.zeros(2, channels, sizes[-1], sizes[-1]))
    if drawn:
        raise UserError(
            f"backbone.name = {backbone.name}: draws random numbers that cannot be switched off "
            f"({drawn[0]}), so a teacher's targets would be random; choose another model."
        )
