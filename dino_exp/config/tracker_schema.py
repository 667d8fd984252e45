"""The typed configuration of trackers: the group `tracker` of `schema`."""

from __future__ import annotations

from dataclasses import dataclass

from dino_exp.config.fields import choice, number


@dataclass(kw_only=True)
class TrackerConfig:
    """The tracker that mirrors the metrics; metrics.jsonl in the run directory is always written."""

    _target_: str = "dino_exp.tracker.NoTracker"
    mode: str = choice("auto", ["auto", "online", "offline", "disabled"])
    """`auto` is online; W&B without a login is offline, with all files in the run directory."""


@dataclass(kw_only=True)
class WandbConfig(TrackerConfig):
    """Weights & Biases."""

    _target_: str = "dino_exp.tracker.wandb.WandbTracker"
    project: str | None = None
    """W&B project; null is that of WANDB_PROJECT or the W&B settings, else dino-exp."""
    entity: str | None = None
    """W&B team or user; null is that of WANDB_ENTITY, or the login's default."""
    tags: list[str] | None = None
    """Tags of the run in W&B, e.g. `[baseline,sharpening]`; null is those of WANDB_TAGS."""
    notes: str | None = None
    """Description of the run in W&B; null is that of WANDB_NOTES."""
    timeout: float = number(60.0, above=0)
    """Seconds that W&B may take to start and, again, to finish before the run continues without it."""


@dataclass(kw_only=True)
class TensorboardConfig(TrackerConfig):
    """TensorBoard event files in the run directory (`pip install dino-exp[tensorboard]`)."""

    _target_: str = "dino_exp.tracker.tensorboard.TensorboardTracker"


@dataclass(kw_only=True)
class MlflowConfig(TrackerConfig):
    """An MLflow server; user and password are in MLflow's environment variables, never in a configuration."""

    _target_: str = "dino_exp.tracker.mlflow.MlflowTracker"
    tracking_uri: str | None = None
    """Address of the server, e.g. http://localhost:5000; null is that of MLFLOW_TRACKING_URI."""
    experiment: str | None = None
    """MLflow's experiment; null is that of MLFLOW_EXPERIMENT_NAME, else dino-exp."""
    tags: list[str] | None = None
    """Tags of the run, e.g. `[baseline]`, or `['team=imaging']` with a value."""
    timeout: float = number(60.0, above=0)
    """Seconds that the server may take at the end before the run ends without it."""
