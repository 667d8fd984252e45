"""Runs as Hydra's jobs: its directories, logging, environment and callbacks around a call of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, run_job
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import OmegaConf, open_dict

from dino_exp.config.hydra_loader import CONFIG_NAME, loader
from dino_exp.errors import UserError


class HydraJobs:
    """What Hydra does around the runs of one command line.

    Args:
        words: all overrides, sweeps among them.
        multirun: whether they are a sweep.
        config_dir: what `--config-dir` names, or None.

    Raises:
        UserError: Hydra cannot compose its own configuration of the command line.
    """

    def __init__(self, words: Sequence[str], multirun: bool, config_dir: str | None) -> None:
        mode = RunMode.MULTIRUN if multirun else RunMode.RUN
        options = loader(config_dir)
        self.multirun = multirun
        self.config = options.load([*words, f"hydra.mode={mode.name}"], mode)
        self.context = HydraContext(config_loader=options.hydra, callbacks=Callbacks(self.config))

    def settings(self, node: str) -> dict[str, Any]:
        """Return the values of `launcher` or `sweeper`."""
        content: Any = OmegaConf.to_container(self.config.hydra[node], resolve=True)
        return content

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tell the configuration's callbacks when the runs begin and end; `${hydra:...}` works meanwhile."""
        callbacks = self.context.callbacks
        named: dict[str, Any] = {"config": self.config, "config_name": CONFIG_NAME}
        HydraConfig.instance().set_config(self.config)
        try:
            (callbacks.on_multirun_start if self.multirun else callbacks.on_run_start)(**named)
            yield
            if self.multirun:
                callbacks.on_multirun_end(**named)
            else:
                callbacks.on_run_end(**named, job_return=self.returned)
        finally:
            HydraConfig.instance().cfg = None

    def call(self, train: Callable[[], Any], job: Sequence[str], number: int) -> None:
        """Call `train` in the directory of a run, which is created.

        Args:
            train: may raise `KeyboardInterrupt` to stop a sweep.
            job: all overrides of the run.
            number: of the run in a sweep, from 0.

        Raises:
            UserError: the directory cannot be created.
        """
        config, directory, folder = self.config, "hydra.run.dir", ""
        if self.multirun:
            config = self.context.config_loader.load_sweep_config(self.config, list(job))
            directory, folder = "hydra.sweep.dir", "hydra.sweep.subdir"
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = number
        try:
            self.returned = run_job(lambda _: train(), config, directory, folder or None, self.context)
        except OSError as error:
            reason = error.strerror or str(error)
            message = f"{error.filename}: cannot be written ({reason}); choose another output_root."
            raise UserError(message) from None
        _ = self.returned.return_value  # raises what the task raised

    def launch(self, task: TaskFunction, jobs: Sequence[Sequence[str]], first: int) -> Sequence[JobReturn]:
        """Have the chosen launcher, another project's, call `task` for each job."""
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=task, config=self.config
        )
        return launcher.launch(jobs, initial_job_idx=first)
