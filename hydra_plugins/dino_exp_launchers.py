"""The launchers and sweepers, where Hydra looks for plugins.

`train.py` calls `launchers` itself. Hydra calls what is here when another project's sweeper is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class GridSweeper(BasicSweeper):
    """`hydra/sweeper=grid`: all combinations, which `train.py` makes when it checks them."""


class OptunaSweeper(Sweeper):
    """`hydra/sweeper=optuna`"""

    def __init__(self, **settings: Any) -> None:
        raise NotImplementedError("only train.py can search; Hydra alone cannot")

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Never called."""

    def sweep(self, arguments: list[str]) -> None:
        """Never called."""


class _SweepLauncher(Launcher):
    """Hands the jobs of another project's sweeper to `launchers.launch`."""

    kind = ""

    def __init__(self, **settings: Any) -> None:
        self.settings: Any = OmegaConf.to_container(OmegaConf.create(settings), resolve=True)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `launch`."""
        self.config = config
        self.outcomes: list[Any] = getattr(task_function, "outcomes", [])

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the jobs and, unless detached, wait for them; what they return is how they ended."""
        from dino_exp.config.compose import compose_run
        from dino_exp.errors import UserError, refuse
        from launchers.launch import launch

        hydra = self.config.hydra
        folders = [each.path for each in hydra.runtime.config_sources if each.provider == "command-line"]
        try:
            runs = [
                replace(
                    compose_run(words, *folders[:1]),
                    overrides=tuple(word for word in words if word not in hydra.overrides.task),
                )
                for words in job_overrides
            ]
            outcomes = launch(self.kind, self.settings, Path(hydra.sweep.dir), runs)
        except UserError as error:
            raise SystemExit(refuse([str(error)])) from None
        self.outcomes += outcomes
        returns = [JobReturn(status=JobStatus.COMPLETED) for _ in outcomes]
        for returned, outcome in zip(returns, outcomes, strict=True):
            returned.return_value = outcome
        return returns


class SlurmLauncher(_SweepLauncher):
    """`hydra/launcher=slurm`"""

    kind = "slurm"


class LocalLauncher(_SweepLauncher):
    """`hydra/launcher=local`"""

    kind = "local"
