"""The id of a run: readable, ending in a hash of everything that can change the result.

The id depends on what is computed. Where the code is and what a key is called do not count: values and keys
are hashed under the first names that they had (`former_names`), so a run keeps its name when they move.
Where the images are does not count either, nor in what files: their content does. Where it is not known (the
images are not on this machine), the place stands for it, and then one run may have two ids.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from typing import Any

from omegaconf import OmegaConf

from dino_exp.config.data_schema import PLUGIN
from dino_exp.runs import former_names

GROUPS = ("backbone", "head", "crops", "augment", "loss", "ema", "optimizer", "data", "trainer")
"""The groups that make the result. Tracker, evaluation, names and folders do not."""

WITHOUT_EFFECT = frozenset(
    {"trainer.device", "trainer.num_workers", "trainer.log_every", "trainer.checkpoint_every"}
    | {"trainer.compile", "trainer.cuda_graph", "trainer.checkpoint_blocks", "data.max_corrupt"}
    | {"trainer.on_collapse"}  # a run that it has ended is the beginning of the one that goes on
)
ON_COLLAPSE = "trainer.on_collapse"
"""A key without effect that ids have, with its default since it has none."""
TOLERANCE = {"data.max_corrupt": 0.01}
"""A key without effect that the first ids had, with its default."""
IMAGES = frozenset(
    f"data.{name}"
    for name in ("channels", "mean", "std", "backend", "packed", "packed_side", "bands", "range")
)
"""What a run makes of its images; the other keys of stored data say where they are."""
PLACES = ("data.root", "data.val_root", "data.probe.train", "data.probe.val")


def settings(cfg: Any, by_place: bool = False) -> dict[str, Any]:
    """Return the values that can change the result, by dotted key in alphabetical order.

    Args:
        cfg: a composed configuration, one read back from a run's `config.yaml`, or plain dictionaries.
        by_place: name stored images by where they are, even if their content is known.
    """
    return _settings(_others(cfg) | trained_on(cfg, by_place))


def trained_on(cfg: Any, by_place: bool = False) -> dict[str, Any]:
    """Return what a run is trained on, by dotted key: its images' content if known, or else their place."""
    values = _values(cfg, "data")
    if not is_stored(values):  # its root is a cache of what the configuration says
        return values | ({"data.root": _cache(values)} if "data.root" in values else {})
    if not by_place and cfg.get("data_content"):  # in this order: the key is looked up by the place
        places = {*PLACES, "data.name"}
        chosen = {
            key: value
            for key, value in values.items()
            if (key not in places if is_others(values) else key in IMAGES)
        }
        return {"data_content": cfg.get("data_content")} | chosen
    return values | {key: absolute(values[key]) for key in PLACES if key in values}


def is_stored(values: dict[str, Any]) -> bool:
    """Return whether the values of the data group are those of a set whose images they do not describe."""
    return "data.val_root" in values or is_others(values)


def is_others(values: dict[str, Any]) -> bool:
    """Return whether the values of the data group are those of a set whose code is others'."""
    return str(values.get("data._target_")).startswith(PLUGIN)


def _cache(values: dict[str, Any]) -> Any:
    """Return the folder of a generated or downloaded set where it counts: the one set without check sums."""
    unchecked = str(values.get("data._target_")).endswith(".fashion_mnist")
    return absolute(values["data.root"]) if unchecked else None


def absolute(place: Any) -> Any:
    """Return a path or pattern as an absolute one; null and `auto` stay."""
    if not isinstance(place, str) or place in ("", "auto"):
        return place
    return os.path.abspath(os.path.expanduser(place))  # noqa: PTH100, PTH111 (resolve follows links)


def identity(cfg: Any) -> dict[str, Any]:
    """Return the settings under their first names, without later keys at the value that changes nothing."""
    return identities(cfg)[0]


def identities(cfg: Any) -> list[dict[str, Any]]:
    """Return the identities that a run has, or had in earlier versions: the present one comes first."""
    typed = _values(cfg, "data")
    tolerance = {key: value for key, value in TOLERANCE.items() if key in typed}
    variants = [trained_on(cfg), trained_on(cfg, by_place=True) | tolerance, typed | tolerance, typed]
    if not is_stored(typed) or not cfg.get("data_content"):
        variants[0] |= tolerance
    others = _others(cfg)
    also = {*tolerance, ON_COLLAPSE}
    found = [
        _in_first_names(_settings(others | wording | data, also))
        for wording in ({ON_COLLAPSE: "warn"} if ON_COLLAPSE in others else {}, {})
        for data in variants
    ]
    return [each for number, each in enumerate(found) if each not in found[:number]]


def differing_keys(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """Return the keys in which two configurations are different runs, with both values.

    Both are in present names. A missing key is None, and a later key has the value of before it came. Images
    are compared by their content if both have it, and then described with their place; else by their place.
    """
    before = former_names.TABLE.later_keys
    by_place = not (a.get("data_content") and b.get("data_content"))
    one, other = settings(a, by_place), settings(b, by_place)
    both = {key: (one.get(key, before.get(key)), other.get(key, before.get(key))) for key in {**one, **other}}
    different = {key: both[key] for key in sorted(both) if both[key][0] != both[key][1]}
    if "data_content" in different:
        different["data_content"] = (_described(a), _described(b))
    return different


def run_id(cfg: Any) -> str:
    """Return the name of a run's folder: vit_micro_K64_tt0.02_m0.5_ema0.99_lr0.008_b32_s0_1a2b3c4d."""
    return run_ids(cfg)[0]


def run_ids(cfg: Any) -> list[str]:
    """Return the names that a run's folder may have, of which the first is the present one.

    The others are those of runs that were submitted where the images are not, and of earlier versions.
    """
    values = _others(cfg)
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
    return [f"{backbone}_{readable}_{digest(each)[:8]}" for each in identities(cfg)]


def digest(identity: dict[str, Any]) -> str:
    """Return the SHA-256 of an identity."""
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _others(cfg: Any) -> dict[str, Any]:
    """Return the values of everything but the data, by dotted key."""
    values: dict[str, Any] = {}
    for group in GROUPS:
        values |= {} if group == "data" else _values(cfg, group)
    if cfg.get("init_sha256"):  # the weights themselves, wherever they lie
        values |= {key: cfg.get(key) for key in ("init_sha256", "init_parts")}
        values["init_adapt"] = sorted(set(cfg.get("init_adapt") or ())) or None
    return values


def _settings(values: dict[str, Any], also: Iterable[str] = ()) -> dict[str, Any]:
    """Return the values in alphabetical order, and of those without effect only `also`."""
    return {key: values[key] for key in sorted(values) if key not in WITHOUT_EFFECT or key in also}


def _in_first_names(values: dict[str, Any]) -> dict[str, Any]:
    table = former_names.TABLE
    return {
        table.first_key(key): table.first_value(key, value)
        for key, value in values.items()
        if not table.is_as_before(key, value)
    }


def _described(cfg: Any) -> str:
    """Return images in words: `image_folder /data/train (content 1a2b3c4d...)`."""
    data = _values(cfg, "data")
    return (
        f"{data.get('data.name')} {absolute(data.get('data.root'))} (content {cfg.get('data_content')[:8]})"
    )


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
