"""The id of a run: readable, ending in a hash of everything that can change the result.

The id depends on what is computed. Where the code is and what a key is called do not count: values and keys
are hashed under the first names that they had (`former_names`), so a run keeps its name when they move.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from omegaconf import OmegaConf

from dino_exp.runs import former_names

GROUPS = ("backbone", "head", "crops", "augment", "loss", "ema", "optimizer", "data", "trainer")
"""The groups that make the result. Tracker, evaluation, names and folders do not."""

WITHOUT_EFFECT = frozenset(
    {"trainer.device", "trainer.num_workers", "trainer.log_every", "trainer.checkpoint_every"}
    | {"trainer.compile", "trainer.checkpoint_blocks"}
)


def settings(cfg: Any) -> dict[str, Any]:
    """Return the values that can change the result, by dotted key in alphabetical order.

    Args:
        cfg: a composed configuration, one read back from a run's `config.yaml`, or plain dictionaries.
    """
    values: dict[str, Any] = {}
    for group in GROUPS:
        values |= trained_on(cfg) if group == "data" else _values(cfg, group)
    if cfg.get("init_sha256"):  # the weights themselves, wherever they lie
        values |= {key: cfg.get(key) for key in ("init_sha256", "init_parts")}
    return {key: values[key] for key in sorted(values) if key not in WITHOUT_EFFECT}


def trained_on(cfg: Any) -> dict[str, Any]:
    """Return what a run is trained on, by dotted key: the values of the data group, its path among them.

    A fingerprint of the data's content can take the path's place here. Runs would then have two ids, and
    whoever looks for a run's directory would take the first of them, the newest first, that is there.
    """
    return _values(cfg, "data")


def identity(cfg: Any) -> dict[str, Any]:
    """Return the settings under their first names, without later keys at the value that changes nothing."""
    table = former_names.TABLE
    return {
        table.first_key(key): table.first_value(key, value)
        for key, value in settings(cfg).items()
        if not table.is_as_before(key, value)
    }


def differing_keys(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """Return the keys in which two configurations are different runs, with both values.

    Both are in present names. A missing key is None, and a later key has the value of before it came.
    """
    before = former_names.TABLE.later_keys
    one, other = settings(a), settings(b)
    both = {key: (one.get(key, before.get(key)), other.get(key, before.get(key))) for key in {**one, **other}}
    return {key: both[key] for key in sorted(both) if both[key][0] != both[key][1]}


def run_id(cfg: Any) -> str:
    """Return the name of a run's folder: vit_micro_K64_tt0.02_m0.5_ema0.99_lr0.008_b32_s0_1a2b3c4d."""
    values = settings(cfg)
    text = json.dumps(identity(cfg), sort_keys=True, ensure_ascii=False)
    parts = {
        "K": values["head.out_dim"],
        "tt": values["loss.teacher_temp"],
        "m": values["loss.center_momentum"],
        "ema": values["ema.momentum"],
        "lr": values["optimizer.lr"],
        "b": values["trainer.batch_size"],
        "s": values["trainer.seed"],
    }
    name = former_names.TABLE.first_value("backbone.name", values["backbone.name"])
    backbone = re.sub(r"[^\w.-]+", "-", str(name))[:60]
    readable = "_".join(f"{name}{value:.10g}" for name, value in parts.items())
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return f"{backbone}_{readable}_{digest[:8]}"


def _values(cfg: Any, group: str) -> dict[str, Any]:
    node = cfg[group]
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    leaves = former_names.leaves({group: node})
    return {key: _canonical(value) for key, value in leaves if value != {}}


def _canonical(value: Any) -> Any:
    """1 and 1.0 are one number, however the YAML writes it."""
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
