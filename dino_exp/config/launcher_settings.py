"""The settings of launchers and of the Optuna sweeper; the string below each field explains it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dino_exp.config.fields import choice, number
from dino_exp.config.messages import closest, did_you_mean
from dino_exp.config.schema import fields_of, schema_of
from dino_exp.config.validate import node_problems
from dino_exp.errors import UserError
from dino_exp.metrics import OBJECTIVES, evaluation_of, objective

SECRETS = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|(?<![a-z])(key|token|secret|password)(?![a-z])")
"""Capitals match anywhere, as in variables; lower case only as a word, to allow `module load keyring`."""
OWN_SBATCH = (
    {"array", "error", "open-mode", "output", "requeue", "signal", "time", "job-name"}
    | {"partition", "account", "qos", "constraint", "nodes", "ntasks-per-node", "gpus-per-node"}
    | {"cpus-per-task", "mem"}
)
"""Parameters that the launcher sets itself."""
COMMANDS = ("setup", "python", "sbatch")
"""Settings that run commands in jobs, or change what a command runs there."""
MOST_BARE_MINUTES = 1440


@dataclass(kw_only=True)
class LauncherSettings:
    """The settings that all launchers have."""

    _target_: str = MISSING
    runs_per_gpu: int = number(1, at_least=1)
    """Runs that share one GPU at a time, each in a process of its own with its share of cores and GPU memory;
    for networks too small to fill a GPU. On SLURM without GPUs: runs in one job."""
    max_retries: int = number(2, at_least=0)
    """Times that a failed run is tried again when the same sweep is typed again or resumed."""
    detach: bool = False
    """Return as soon as everything is submitted, instead of waiting with a table."""
    dry_run: bool = False
    """Print what would happen, and submit nothing."""


@dataclass(kw_only=True)
class SlurmSettings(LauncherSettings):
    """A SLURM cluster, one job array per sweep."""

    _target_: str = "hydra_plugins.dino_exp_launchers.SlurmLauncher"
    partition: str | None = None
    """Partition; null is the site's default."""
    account: str | None = None
    """Account to charge; null is your default."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have, e.g. a100|h100."""
    time_limit: str = "24:00:00"
    """Longest time of one attempt, in minutes, H:M:S or D-H:M:S; a run that needs longer saves, is requeued,
    and resumes."""
    nodes: int = number(1, at_least=1)
    """Nodes of one run."""
    gpus_per_node: int = number(1, at_least=0)
    """GPUs of one run on each node, one process each; 0 trains on CPUs."""
    tasks_per_node: int | None = number(None, at_least=1)
    """Processes of one run on each node; null is one per GPU, or one without GPUs."""
    cpus_per_task: int = number(8, at_least=1)
    """Cores of each process; crops are prepared on them."""
    memory_gb: float | None = number(None, above=0)
    """Memory of one run on each node; null is the site's default."""
    array_parallelism: int = number(256, at_least=1)
    """Jobs of the sweep that run at one time, at most."""
    grace_seconds: int = number(120, at_least=10)
    """Seconds before the time limit at which a run is told to save and stop."""
    max_requeues: int = number(100, at_least=0)
    """Times that a job is put back into the queue after preemption or at its time limit."""
    sbatch: dict[str, Any] = field(default_factory=dict)
    """Further sbatch parameters by their long names: +hydra.launcher.sbatch.exclude=node7, or in a file
    {reservation: mine, exclude: node7}."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the run starts, e.g. [module load cuda]. Others can read them: no passwords."""
    python: str | None = None
    """Command that starts Python in a job, where it is not this environment's, e.g. inside a container:
    apptainer exec --nv /images/dino.sif python."""


@dataclass(kw_only=True)
class LocalSettings(LauncherSettings):
    """This machine: a queue over its GPUs, or over groups of its cores."""

    _target_: str = "hydra_plugins.dino_exp_launchers.LocalLauncher"
    runs_at_once: int | None = number(None, at_least=1)
    """Runs at one time, which share the cores; null is the visible GPUs times runs_per_gpu, or without GPUs
    one per core."""


SETTINGS: dict[str, type[LauncherSettings]] = {"slurm": SlurmSettings, "local": LocalSettings}


@dataclass(kw_only=True)
class OptunaSettings:
    """A search for the best k-NN accuracy, or for another metric, instead of a grid."""

    _target_: str = "hydra_plugins.dino_exp_launchers.OptunaSweeper"
    n_trials: int = number(20, at_least=1)
    """Trials in all, those of earlier times that the same command was typed included. Pruned and failed ones
    count, but a failed one is tried again the next time. A collapse prunes a trial and ends its runs; type
    trainer.on_collapse=warn to train them to their ends."""
    n_jobs: int = number(1, at_least=1)
    """Trials at one time; the next one is proposed as soon as one ends. With fewer, each proposal knows more.
    With launchers other than local and slurm, the next ones are proposed when all of them have ended."""
    sampler: str = choice("tpe", ("tpe", "gp", "random"))
    """What proposes values: tpe is Optuna's tree-structured Parzen estimator, gp its Gaussian process, which
    needs fewer trials in a few continuous keys; both at random for the first 10 trials, and both keep away
    from what is being trained (gp in Optuna 5)."""
    pruner: str = choice("none", ("none", "median", "hyperband", "asha"))
    """What stops trials that are behind the others at the same tenth of the training, by Optuna: median stops
    the worse half after 5 complete trials, asha keeps the best quarter of those that have come as far,
    hyperband is asha in several brackets. They save and stop. Needs hydra/launcher=local or slurm."""
    seeds: int = number(1, at_least=1)
    """Runs of each trial, with trainer.seed and the seeds that follow. Its value is their mean; it is pruned
    if one of them collapses, and the others are stopped."""
    seed: int = number(0, at_least=0)
    """Seed of the sampler."""
    objective: str = "knn_top1"
    """What the trials are compared by at their end: knn_top1, best_knn_top1, linear/top1 (with
    eval=[knn,linear]), or without labels teacher/mutual_information or another metric of the training."""
    params: dict[str, Any] = field(default_factory=dict)
    """The space, in a file: loss.teacher_temp: interval(0.02,0.2). What is typed wins."""


SEED = "trainer.seed"


def search_problems(
    settings: Mapping[str, Any], launcher: Mapping[str, Any], search: str = "optuna"
) -> Iterator[str]:
    """Yield the reasons why a search cannot work with a launcher's settings, one per line."""
    optuna = search == "optuna"
    if optuna and find_spec("optuna") is None:
        yield "hydra/sweeper = optuna: Optuna is not installed; pip install 'dino-exp[optuna]'."
    if optuna and settings["sampler"] == "gp" and find_spec("scipy") is None:
        yield "hydra.sweeper.sampler = gp: SciPy is not installed; pip install 'dino-exp[optuna]'."
    own = [schema()._target_ for schema in SETTINGS.values()]
    if optuna and settings["pruner"] != "none" and launcher.get("_target_") not in own:
        yield (
            f"hydra.sweeper.pruner = {settings['pruner']}: needs a launcher that can stop runs; add "
            "hydra/launcher=local (or slurm)."
        )
    for name in ("detach", "dry_run"):
        if launcher.get(name):
            yield (
                f"hydra.launcher.{name} = true: not with hydra/sweeper={search}, which waits for its "
                f"{'trials' if optuna else 'runs'} "
                "because the next ones depend on them; remove it."
            )


def objective_problems(cfg: DictConfig, name: str, pruner: str) -> Iterator[str]:
    """Yield why a search could not compare its runs by a metric, as far as the configuration tells."""
    if objective(name) is None:
        near = did_you_mean(closest(name, OBJECTIVES))
        yield (
            f"hydra.sweeper.objective = {name}: no metric of which more or less is better{near or '.'} There "
            f"are: {', '.join(OBJECTIVES)}, linear/top1, low_shot/top1_share0.1, ..."
        )
        return
    evaluation = evaluation_of(name)
    if evaluation is None:
        return
    if cfg.eval["k" if evaluation == "knn" else evaluation] is None:
        off = "eval.k" if evaluation == "knn" else f"eval.{evaluation}"
        what = "k-NN" if evaluation == "knn" else name
        both = "linear" if evaluation == "knn" else evaluation
        yield f"{off} = null: a search compares its runs by {what}; add it, e.g. eval=[knn,{both}]."
    elif cfg.data.get("val_root", "") is None and cfg.data.probe.val is None:
        yield f"data.val_root = null: {without_labels(name)}"
    elif pruner != "none" and cfg.eval.every_epochs >= cfg.trainer.epochs:
        yield (
            f"eval.every_epochs = {cfg.eval.every_epochs}: hydra.sweeper.pruner = {pruner} compares runs "
            f"before their end, and with trainer.epochs = {cfg.trainer.epochs} they are evaluated only "
            "there; lower it."
        )


def without_labels(name: str) -> str:
    """Return what to do where there are no labels for an objective."""
    return (
        f"a search compares its runs by {name}, which needs labeled images to classify. Give some "
        "(data.probe.train=... data.probe.val=..., or labels in data.root and data.val_root), or another "
        "hydra.sweeper.objective, such as teacher/mutual_information."
    )


def with_changes(launcher: str, settings: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Return settings with some of them changed, checked as on the command line.

    Args:
        launcher: slurm or local.
        settings: as the fields of its settings class.
        changes: `key=value`.

    Raises:
        UserError: an unknown launcher or key, or an invalid value.
    """
    if launcher not in SETTINGS:
        raise UserError(
            f"launcher = {launcher!r}: not {' or '.join(SETTINGS)}, or lost with manifest.json. Type "
            "the sweep's command again: it keeps the finished runs and continues the others."
        )
    try:
        node = OmegaConf.merge(OmegaConf.structured(SETTINGS[launcher]), _as_text(dict(settings)))
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"settings in manifest.json: {reason}. Type the sweep's command again.") from None
    for change in changes:
        key, equals, value = change.partition("=")
        name = key.partition(".")[0]
        if not equals or name not in node:
            near = did_you_mean(closest(name, [str(known) for known in node]))
            raise UserError(f"{change}: must be key=value with a key of hydra.launcher{near or '.'}")
        kind = str(fields_of(schema_of(node))[name].type)
        try:
            # YAML would make a number of 8:00:00
            content = value if kind.startswith("str") and value != "null" else yaml.safe_load(value)
            OmegaConf.update(node, key, content, merge=False, force_add=name == "sbatch")
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise UserError(f"{change}: {str(error).splitlines()[0]}.") from None
    assert isinstance(node, DictConfig)
    if found := settings_problems(node):
        raise UserError("\n".join(found))
    content = OmegaConf.to_container(node, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _as_text(value: Any) -> Any:
    """Return stored settings with text that OmegaConf would resolve as the text that it is."""
    if isinstance(value, dict):
        return {key: _as_text(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_as_text(each) for each in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def minutes(time_limit: str) -> int:
    """Return a SLURM duration in minutes: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
        UserError: it is none of them, or zero.
    """
    text = str(time_limit)
    if text.isdecimal() and int(text) > MOST_BARE_MINUTES:
        raise UserError(
            f"hydra.launcher.time_limit = {text}: minutes? YAML reads 8:00:00 as 28800; write D-H:M:S, e.g. "
            "0-08:00:00, which cannot be misread."
        )
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    fits = (not dash or days.isdecimal()) and all(part.isdecimal() for part in parts) and len(parts) <= 3
    if fits:
        without_hours = not dash and len(parts) < 3
        hours, minute, second = ([0] * without_hours + [*map(int, parts), 0, 0])[:3]
        total = (int(days or 0) * 24 + hours) * 60 + minute + -(-second // 60)
        if total:
            return total
    raise UserError(
        f"hydra.launcher.time_limit = {text}: not a duration; write minutes, H:M:S or D-H:M:S, e.g. 4:00:00."
    )


def settings_problems(node: Any) -> list[str]:
    """Return the errors of a launcher's settings, one per line."""
    found = [problem for _, problem in node_problems("hydra.launcher.", node, node)]
    return found or (list(_slurm_problems(node)) if "partition" in node else [])


def _slurm_problems(settings: Any) -> Iterator[str]:
    try:
        limit = minutes(settings.time_limit)
        if settings.grace_seconds >= 60 * limit:
            yield (
                f"hydra.launcher.grace_seconds = {settings.grace_seconds}: must be shorter than "
                f"hydra.launcher.time_limit = {settings.time_limit}."
            )
    except UserError as error:
        yield str(error)
    processes = settings.nodes * tasks_per_node(settings)
    if settings.runs_per_gpu > 1 and processes > 1:
        yield (
            f"hydra.launcher.runs_per_gpu = {settings.runs_per_gpu}: runs that share a GPU have one process, "
            f"but nodes, gpus_per_node and tasks_per_node give {processes}; set them to 1."
        )
    extra = [f"{key}={value}" for key, value in settings.sbatch.items()]
    for key, lines in {"setup": settings.setup, "sbatch": extra, "python": [settings.python or ""]}.items():
        if any(SECRETS.search(line) for line in lines):
            yield (
                f"hydra.launcher.{key}: has KEY, TOKEN, SECRET or PASSWORD in it, and others can read job "
                "scripts; keep secrets in your environment or in ~/.netrc, which jobs see too."
            )
    words = {key: settings[key] for key in fields_of(schema_of(settings)) if isinstance(settings[key], str)}
    words |= {f"sbatch.{key}": value for key, value in settings.sbatch.items()}
    for key, value in words.items():
        if not f"{key}{value}".isprintable():
            yield (
                f"hydra.launcher.{json.dumps(key)[1:-1]} = {json.dumps(value)}: has a line break or another "
                "control character; write it without."
            )
    for key in settings.sbatch:
        if str(key).replace("_", "-") in OWN_SBATCH:
            yield f"hydra.launcher.sbatch.{key}: the launcher sets this itself; see its own keys in --help."
    if not settings.dry_run and shutil.which("sbatch") is None:
        yield (
            "hydra/launcher = slurm: there is no sbatch here; run this on a login node of the cluster, or "
            "use hydra/launcher=local (hydra.launcher.dry_run=true works anywhere)."
        )


def tasks_per_node(settings: Any) -> int:
    """Return the processes of one run on each node."""
    return int(settings.tasks_per_node or max(1, settings.gpus_per_node))
