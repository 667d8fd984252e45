"""The launchers and sweepers, where Hydra looks for plugins; what they do is in `launchers`.

They take the checked runs from the function that Hydra calls for each run: `dino_exp.cli.Runs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from dino_exp.cli import Runs
    from dino_exp.config.sweep_runs import Run
    from dino_exp.training.attempt import Outcome


class _Own:
    """What our plugins are given: their settings, then the checked runs and the sweep's folder."""

    def __init__(self, **settings: Any) -> None:
        self.settings: Any = OmegaConf.to_container(OmegaConf.create(settings), resolve=True)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep` or `launch`."""
        self.runs, self.folder = cast("Runs", task_function), Path(config.hydra.sweep.dir)


class _OwnSweeper(_Own, Sweeper):
    """Has a launcher, ours or any other, train runs that are checked."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def train(self, runs: Sequence[Run], first: int) -> list[Outcome]:
        """Have the runs trained, the first of which has the number `first`; return how they ended."""
        assert self.launcher is not None
        returns = self.launcher.launch([run.job for run in runs], initial_job_idx=first)
        return [_outcome(run, each) for run, each in zip(runs, returns, strict=False)]  # of a dry run none


def _outcome(run: Run, returned: JobReturn) -> Outcome:
    """Return how a run ended; what a launcher has caught is a failure."""
    from dino_exp.training.attempt import FAILED, Outcome

    try:
        outcome: Outcome = returned.return_value
    except Exception as error:  # of any kind: it was the run's
        return Outcome(run.run_id, "failed", FAILED, f"{type(error).__name__}: {error}")
    return outcome


class GridSweeper(_OwnSweeper):
    """`hydra/sweeper=grid`: all combinations, which `train.py` has made and checked already."""

    def sweep(self, arguments: list[str]) -> None:
        """Give all runs to the launcher at once."""
        self.runs.outcomes[:] = self.train(self.runs.checked.runs, 0)


class OptunaSweeper(_OwnSweeper):
    """`hydra/sweeper=optuna`"""

    def sweep(self, arguments: list[str]) -> None:
        """Search until enough trials have ended."""
        from dino_exp.console import a_console
        from launchers.search import search
        from launchers.search_runs import Beside, InBatches

        checked, console = self.runs.checked, a_console()
        asked = (self.settings, self.folder, checked.fixed, checked.spaces, self.runs.run_of)
        if not isinstance(self.launcher, _OwnLauncher):
            search(*asked, InBatches(self.train), console)
            return
        goal, launcher = self.settings["objective"], self.launcher
        with Beside(launcher.kind, launcher.settings, self.folder, goal, console) as training:
            search(*asked, training, console)


class BoundarySweeper(_OwnSweeper):
    """`hydra/sweeper=boundary`"""

    def sweep(self, arguments: list[str]) -> None:
        """Search until the boundary stands still or the runs are used up."""
        from dino_exp.config.search_space import Numbers
        from launchers.boundary.boundary_search import find_boundary

        fixed, spaces = self.runs.checked.fixed, self.runs.checked.spaces
        intervals = [space for space in spaces if isinstance(space, Numbers)]  # others were refused
        find_boundary(self.settings, self.folder, fixed, intervals, self.runs.run_of, self.train)


class _OwnLauncher(_Own, Launcher):
    kind = ""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the jobs and, unless detached, wait for them; what they return is how they ended."""
        from launchers.launch import launch

        runs = [self.runs.run_of(job) for job in job_overrides]
        outcomes = launch(self.kind, self.settings, self.folder, runs)
        self.runs.outcomes += outcomes
        returns = [JobReturn(status=JobStatus.COMPLETED) for _ in outcomes]
        for returned, outcome in zip(returns, outcomes, strict=True):
            returned.return_value = outcome
        return returns


class SlurmLauncher(_OwnLauncher):
    """`hydra/launcher=slurm`"""

    kind = "slurm"


class LocalLauncher(_OwnLauncher):
    """`hydra/launcher=local`"""

    kind = "local"
