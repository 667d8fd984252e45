"""`fork_from=RUN@STEP`: the configuration of a run that continues another from one of its checkpoints.

The parent's configuration becomes an experiment of this command line, whose groups are options of their own
(`backbone=fork-1a2b3c4d`). So keys, options, sweeps and searches that are typed beside it change it as they
change any other experiment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from dino_exp.config.hydra_loader import FORK
from dino_exp.config.identity import differing_keys, run_id
from dino_exp.config.messages import show
from dino_exp.config.relations import patch_size
from dino_exp.config.schema import SCHEMAS, Config

ROOT_KEYS = ("name", "output_root", "init_from", "init_parts", "init_adapt", "init_sha256")
"""Keys outside the groups that a fork has from its parent."""
NETWORK = "the network is the one in the checkpoint; init_from begins another one with its weights"
IMAGES = "it continues on the parent's images; init_from begins a run on others with its weights"
START = "it matters only at the start of a run, which is the parent's"
FIXED = {
    "data": IMAGES,
    "data_content": IMAGES,
    "backbone.init": START,
    "head.init": START,
    "loss.center_init": START,
    "init_sha256": START,
    "init_parts": START,
    "init_adapt": START,
    "backbone": NETWORK,
    "head": NETWORK,
    "trainer.batch_size": "steps and epochs are counted in the parent's batches",
    "optimizer._target_": "the checkpoint has the state of the parent's optimizer",
}
"""Keys and groups that cannot change in a fork, and why; of several the first counts."""
FREE = frozenset({"backbone.drop_path_rate"})
"""Keys of these groups that can."""


@dataclass(frozen=True)
class Parent:
    """The run and step that a fork continues from."""

    directory: Path
    """Absolute; it need not be there any more for a fork that has begun."""
    step: int
    config: Config

    @property
    def place(self) -> str:
        """The value of `fork_from`."""
        return f"{self.directory}@{self.step}"

    @property
    def name(self) -> str:
        """The value of `fork_parent`, which is part of the fork's id: the parent's run id and the step."""
        return f"{run_id(self.config)}@{self.step}"


UNREAD = "-"
"""The content of images that Python code gives, before it is known (`api/offer.py`)."""

_parents: dict[str, Parent] = {}
"""The parents of this process's command lines, by the value of `fork_from`."""


def experiment_of(parent: Parent) -> str:
    """Register a parent's configuration as an experiment, and return the option's name.

    At step 0 it is the parent's configuration alone: a run from the start, and no fork.
    """
    store, cfg = ConfigStore.instance(), parent.config
    fork: dict[str, Any] = {"fork_from": cfg.fork_from, "fork_parent": cfg.fork_parent}
    if parent.step:
        fork = {"fork_from": parent.place, "fork_parent": parent.name}
        _parents[parent.place] = parent
    text = OmegaConf.to_yaml(cfg) + parent.place
    option = FORK + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    for group in SCHEMAS:
        store.store(group=group, name=option, node=getattr(cfg, group), provider="fork")
    body = {key: getattr(cfg, key) for key in ROOT_KEYS} | fork
    body["defaults"] = [*({f"override /{group}": option} for group in SCHEMAS), "_self_"]
    store.store(group="experiment", name=option, node=body, package="_global_", provider="fork")
    return option


def problems(cfg: Any) -> Iterator[str]:
    """Yield why a composed configuration cannot be that of a fork; nothing for one that is none."""
    if not (cfg.fork_from or cfg.fork_parent):
        return
    parent = _parents.get(cfg.fork_from)
    if parent is None:
        yield f"fork_from = {show(cfg.fork_from)}: only the command line sets it: fork_from=RUN@STEP."
    elif cfg.fork_parent != parent.name:
        yield f"fork_parent = {show(cfg.fork_parent)}: do not set it; it is computed from fork_from."
    else:
        yield from fixed(parent.config, cfg)
        if (end := cfg.trainer.max_steps) is not None and end <= parent.step:
            yield (
                f"trainer.max_steps = {end}: the fork begins at step {parent.step:,}; raise it, or fork an "
                "earlier step."
            )


def fixed(parent: Any, cfg: Any) -> Iterator[str]:
    """Yield an error for each key that cannot change in a fork and has; both in present names."""
    for key, (there, here) in changes(parent, cfg).items():
        if (key, here) == ("data.content", UNREAD):
            continue
        reason = reason_against(key)
        if key == "crops.global_size" and patch_size(cfg):  # as many position embeddings as patches
            reason = NETWORK
        if reason:
            yield f"{key} = {show(here)}: {show(there)} in the parent, and a fork cannot change it: {reason}."


def reason_against(key: str) -> str | None:
    """Return why a key cannot change in a fork, whatever the network; None if it can."""
    if key in FREE:
        return None
    return next((why for name, why in FIXED.items() if f"{key}.".startswith(f"{name}.")), None)


def changes(parent: Any, cfg: Any) -> dict[str, tuple[Any, Any]]:
    """Return the keys that can change the result and in which a fork differs from its parent, both values."""
    different = differing_keys(parent, cfg)
    different.pop("fork_parent", None)
    return different
