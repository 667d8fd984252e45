"""Registration of the typed schema and the resolvers with Hydra."""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.resolvers import oc

from dino_exp.config.data_content import known
from dino_exp.config.evaluate_config import EvaluateConfig
from dino_exp.config.evaluation_schema import EVALUATIONS
from dino_exp.config.identity import run_id
from dino_exp.config.launcher_settings import SECRETS, SETTINGS
from dino_exp.config.schema import SCHEMAS, Config
from dino_exp.config.searches import SEARCHES
from dino_exp.runs.weights_file import digest


def register() -> None:
    """Register schema and resolvers; this may be repeated."""
    store = ConfigStore.instance()
    store.store(group="schema", name="config", node=Config)
    store.store(group="schema", name="evaluate", node=EvaluateConfig)
    for name, node in EVALUATIONS.items():
        store.store(group="schema", name=name, node=node)
    for group, classes in SCHEMAS.items():
        for name, node in classes.items():
            store.store(group=f"schema/{group}" if name else "schema", name=name or group, node=node)
    for name, settings in SETTINGS.items():
        store.store(group="schema/launcher", name=name, node=settings)
    for name, settings in SEARCHES.items():
        store.store(group="schema/sweeper", name=name, node=settings)
    OmegaConf.register_new_resolver("run_id", lambda *, _root_: run_id(_root_), replace=True)
    OmegaConf.register_new_resolver("weights_digest", digest, replace=True)
    OmegaConf.register_new_resolver("data_content", lambda *, _root_: known(_root_), replace=True)
    OmegaConf.register_new_resolver("epochs", share_of_epochs, replace=True)
    OmegaConf.register_new_resolver("oc.env", environment_variable, replace=True)


def environment_variable(name: str, *default: str | None) -> str | None:
    """Return `${oc.env:NAME}` or `${oc.env:NAME,DEFAULT}`; not a secret, which would be stored with the run.

    Raises:
        ValueError: the name is that of a secret.
    """
    if SECRETS.search(name):
        raise ValueError(
            f"{name} has KEY, TOKEN, SECRET or PASSWORD in it, and values are stored with the run"
        )
    return oc.env(name, *default)


def share_of_epochs(share: float, *, _root_: Any) -> int:
    """Return `${epochs:0.3}`: a share of the run's epochs, at least one."""
    return max(1, round(float(share) * _root_.trainer.epochs))
