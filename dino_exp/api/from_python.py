"""`dino_exp.train` and `dino_exp.sweep`: the command line of `train.py` for Python code and notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import OmegaConf

from dino_exp.api.offer import Offer, offered
from dino_exp.api.results import TrainedRun, TrainedSweep
from dino_exp.api.words import Overrides, grid_words, words_of
from dino_exp.cli import make_ready, sweep_table
from dino_exp.config.compose import Checked, check
from dino_exp.config.schema import Config
from dino_exp.config.sweep_runs import Run
from dino_exp.config.text_keys import typed_words
from dino_exp.console import Console, a_console, log_lines_on
from dino_exp.errors import warn
from dino_exp.training.attempt import Outcome, attempt
from dino_exp.training.forks import with_parent
from dino_exp.training.run import train as train_run
from dino_exp.training.same_run import directory_name


def train(
    overrides: Overrides = (),
    *,
    data: Any = None,
    backbone: Any = None,
    probe: Any = None,
    config_dir: str | None = None,
) -> TrainedRun:
    """Train one run in this process, resume it, or return it if it has ended: `train.py` for Python code.

    Args:
        overrides: those of the command line, `["experiment=debug", "trainer.epochs=3"]`, or a mapping,
            `{"experiment": "debug", "trainer.epochs": 3}`.
        data: the images, in place of the group `data`: a map-style `torch.utils.data.Dataset` or a list of
            items that are an image or (image, label); a uint8 array or tensor (N, C, H, W), (N, H, W, C) or
            (N, H, W); a list of paths; (images, labels); or a pair (train, held_out) of these. A path is what
            `data.root` takes, and (path, path) `data.root` and `data.val_root`.
        backbone: the network, in place of the group `backbone`: an `nn.Module` that makes (B, D) of images
            (B, C, S, S), whose weights both networks begin with; or a function that builds one.
        probe: a pair (train, val) of labeled images by which the features of unlabeled ones are judged, as
            `data.probe.train` and `data.probe.val`; each as in `data`.
        config_dir: a folder with options of your own, as `--config-dir`.

    Raises:
        UserError: settings, images or network cannot work, one line per problem; nothing was created.
        KeyboardInterrupt: it was stopped; it is saved, and the same call resumes it.
    """
    with _ready(words_of(overrides), _flags(config_dir), data, backbone, probe) as (checked, offer):
        (run,) = checked.runs
        cfg = cast(Config, run.cfg)
        folder = Path(cfg.output_root, cfg.name)
        result = train_run(cfg, folder / directory_name(folder, cfg))
    if result.state == "preempted":
        raise KeyboardInterrupt(f"stopped and saved in {result.directory}; the same call resumes it")
    return TrainedRun(result.directory, result.state, result.message, {}, offer.network)


def sweep(
    overrides: Overrides = (),
    grid: Mapping[str, Any] | None = None,
    *,
    data: Any = None,
    backbone: Any = None,
    probe: Any = None,
    config_dir: str | None = None,
) -> TrainedSweep:
    """Train each combination of a grid, one after another in this process; a run that fails stops no other.

    Args:
        overrides: those that all runs share, as in `train`; `["sweep=temperature"]` names a grid itself.
        grid: the values of each key: `{"loss.teacher_temp": [0.02, 0.04], "trainer.seed": range(3)}`.
        data, backbone, probe, config_dir: as in `train`.

    Raises:
        UserError: as in `train`, for any of the runs; nothing was created.
        KeyboardInterrupt: as in `train`.
    """
    words = [*words_of(overrides), *grid_words(grid or {})]
    with _ready(words, ["-m", *_flags(config_dir)], data, backbone, probe) as (checked, offer):
        assert checked.sweep_dir is not None  # only words of Hydra's own set another
        folder, outcomes = Path(checked.sweep_dir), list[Outcome]()
        keep = {each for each in (folder.absolute(), *folder.absolute().parents) if each.exists()}
        try:
            for number, run in enumerate(checked.runs, 1):
                header = f"\n[{number}/{len(checked.runs)}] {' '.join(run.overrides)}"
                Console(soft_wrap=True).print(header, style="bold")
                directory = folder.absolute() / directory_name(folder, run.cfg)
                outcomes.append(attempt(run.cfg, directory, folder.name, keep))
                if outcomes[-1].state == "preempted":
                    raise KeyboardInterrupt(f"stopped and saved in {directory}; the same call resumes it")
        finally:
            Console().print(sweep_table(checked, outcomes))
    ended = zip(checked.runs, outcomes, strict=True)
    return TrainedSweep(folder, [_result(folder, run, outcome, offer) for run, outcome in ended])


def _flags(config_dir: str | None) -> list[str]:
    return [] if config_dir is None else ["--config-dir", str(config_dir)]


def _result(folder: Path, run: Run, outcome: Outcome, offer: Offer) -> TrainedRun:
    directory = outcome.directory or folder / run.run_id
    swept = {}
    for override in run.overrides:
        key, _, typed = override.partition("=")
        value = OmegaConf.select(run.cfg, key)
        swept[key] = typed if OmegaConf.is_config(value) else value
    return TrainedRun(directory, outcome.state, outcome.message, swept, offer.network)


@contextmanager
def _ready(
    words: Sequence[str], flags: Sequence[str], data: Any, backbone: Any, probe: Any
) -> Iterator[tuple[Checked, Offer]]:
    """Yield checked runs and what is offered to them; afterwards random numbers and threads are as before.

    Raises UserError, one line per problem.
    """
    threads = torch.get_num_threads()
    words, renamed = typed_words(words)
    words = with_parent(words)
    warn(renamed)
    try:
        with torch.random.fork_rng(devices=[]), ExitStack() as stack:
            with log_lines_on(a_console()):
                offer = stack.enter_context(offered(words, flags, data, backbone, probe))
            checked = check([*flags, *offer.words])
            make_ready(checked)
            yield checked, offer
    finally:
        torch.set_num_threads(threads)
