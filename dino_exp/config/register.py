"""Makes the typed schema and the `run_id` resolver known to Hydra."""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from dino_exp.config.identity import run_id
from dino_exp.config.schema import SCHEMAS, Config
from launchers.settings import SETTINGS, OptunaSettings

CONF = Path(__file__).resolve().parents[2] / "conf"
"""The YAML files beside `train.py`."""


def register() -> None:
    """Store schema and resolver; doing it again does no harm."""
    store = ConfigStore.instance()
    store.store(group="schema", name="config", node=Config)
    for group, classes in SCHEMAS.items():
        for name, node in classes.items():
            if name:
                store.store(group=f"schema/{group}", name=name, node=node)
            else:
                store.store(group="schema", name=group, node=node)
    for name, settings in SETTINGS.items():
        store.store(group="schema/launcher", name=name, node=settings)
    store.store(group="schema/sweeper", name="optuna", node=OptunaSettings)
    OmegaConf.register_new_resolver("run_id", lambda *, _root_: run_id(_root_), replace=True)
