"""Which runs are the same run: a readable id that ends in a hash of everything that can change the result."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

GROUPS = ("backbone", "head", "crops", "augment", "loss", "ema", "optimizer", "data", "trainer")
"""The groups that make the result. Tracker, evaluation, names and folders only watch or place it."""

WITHOUT_EFFECT = frozenset(
    {
        "trainer.device",
        "trainer.num_workers",
        "trainer.log_every",
        "trainer.checkpoint_every",
        "trainer.compile",
        "trainer.checkpoint_blocks",
    }
)


def identity(cfg: Any) -> dict[str, Any]:
    """The values that can change the result, by dotted key in alphabetical order.

    Args:
        cfg: a composed configuration, one read back from a run's `config.yaml`, or plain dictionaries.
    """
    values: dict[str, Any] = {}
    for group in GROUPS:
        node = cfg[group]
        if OmegaConf.is_config(node):
            node = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
        _flatten(node, group, values)
    if cfg.get("init_sha256"):  # the weights themselves, wherever they lie
        values |= {key: cfg[key] for key in ("init_sha256", "init_parts")}
    return {key: values[key] for key in sorted(values) if key not in WITHOUT_EFFECT}


def _flatten(node: Any, key: str, values: dict[str, Any]) -> None:
    if isinstance(node, Mapping):
        for name, value in node.items():
            _flatten(value, f"{key}.{name}", values)
    else:
        values[key] = _canonical(node)


def _canonical(value: Any) -> Any:
    """1 and 1.0 are one number, however the YAML writes it."""
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def differing_keys(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """The keys in which two configurations are different runs, with both values; a missing key is None."""
    one, other = identity(a), identity(b)
    keys = sorted(one.keys() | other.keys())
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def run_id(cfg: Any) -> str:
    """The name of a run's folder, e.g. vit_micro_K64_tt0.02_m0.5_ema0.99_lr0.008_b32_s0_1a2b3c4d."""
    values = identity(cfg)
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    parts = {
        "K": values["head.out_dim"],
        "tt": values["loss.teacher_temp"],
        "m": values["loss.center_momentum"],
        "ema": values["ema.momentum"],
        "lr": values["optimizer.lr"],
        "b": values["trainer.batch_size"],
        "s": values["trainer.seed"],
    }
    backbone = re.sub(r"[^\w.-]+", "-", str(values["backbone.name"]))[:60]
    readable = "_".join(f"{name}{value:.10g}" for name, value in parts.items())
    return f"{backbone}_{readable}_{digest}"
