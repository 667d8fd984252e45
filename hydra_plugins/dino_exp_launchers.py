"""The launchers and sweepers, where Hydra looks for plugins; what they do is in `launchers`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class GridSweeper(BasicSweeper):
    """Hydra's own sweeper, less its second look at every run: `train.py` has checked them already."""

    def sweep(self, arguments: list[str]) -> Any:
        """Give all combinations to the launcher at once."""
        from dino_exp.config.hydra_loader import sweeper_parameters

        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*sweeper_parameters(self.config), *arguments])
        runs = self.split_arguments(overrides, None)[0]
        return [self.launcher.launch(runs, initial_job_idx=0)]


class OptunaSweeper(Sweeper):
    """`hydra/sweeper=optuna`: hands the command line to `launchers.search`."""

    def __init__(self, **settings: Any) -> None:
        self.settings: Any = OmegaConf.to_container(OmegaConf.create(settings), resolve=True)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Search until enough trials have ended."""
        from dino_exp.config.hydra_loader import sweeper_parameters
        from launchers.search import search

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*sweeper_parameters(self.config), *arguments])
        search(self.settings, self.config, overrides, self.launcher)


class _SweepLauncher(Launcher):
    """Hands Hydra's jobs to `launchers.launch`."""

    kind = ""

    def __init__(self, **settings: Any) -> None:
        self.settings: Any = OmegaConf.to_container(OmegaConf.create(settings), resolve=True)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `launch`."""
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the jobs and, unless detached, wait for them; what they return is how they ended."""
        from launchers.launch import launch

        returns = []
        for outcome in launch(self.kind, self.settings, self.config, job_overrides):
            job = JobReturn(status=JobStatus.COMPLETED)
            job.return_value = outcome
            returns.append(job)
        return returns


class SlurmLauncher(_SweepLauncher):
    """`hydra/launcher=slurm`"""

    kind = "slurm"


class LocalLauncher(_SweepLauncher):
    """`hydra/launcher=local`"""

    kind = "local"
