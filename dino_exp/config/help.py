"""The page of `train.py --help`: examples, every group with its options, and the most used keys."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dino_exp.config import evaluation_schema, launcher_settings, schema
from dino_exp.config.launcher_settings import SETTINGS, OptunaSettings
from dino_exp.config.messages import show
from dino_exp.installation import as_typed

INTRODUCTION = """\
DINO pretraining (Caron et al. 2021): a student network learns to predict its own moving average, the teacher,
across crops of an image; no labels. Every run resumes by itself, reports whether it collapses, and ends with
a verdict, k-NN accuracy and images in outputs/<experiment>/<run id>/."""

EXAMPLES = (
    ("train.py", "the demo: generated images, minutes on a CPU"),
    ("train.py experiment=debug", "everything once, in seconds"),
    ("train.py backbone=resnet18_cifar loss.teacher_temp=0.04", "other options and values"),
    ("train.py experiment=paper_vits16 data.root=/imagenet/train", "the paper's ViT-S/16"),
    ("train.py -m loss.teacher_temp=0.02,0.04,0.07 trainer.seed=0,1", "a sweep: six runs and a table"),
    (
        "train.py -m sweep=temps_momenta hydra/launcher=local",
        "the same over all GPUs or cores of this machine",
    ),
    ("train.py -m hydra/launcher=slurm --help", "a cluster: its keys"),
    (
        "train.py -m sweep=temps_momenta hydra/sweeper=optuna",
        "a search by Optuna; spaces are also written 'loss.teacher_temp=interval(0.02,0.2)'",
    ),
)

KEYS = (
    "name",
    "resume",
    "init_from",
    "backbone.name",
    "backbone.patch_size",
    "head.out_dim",
    "crops.global_size",
    "crops.global_scale",
    "crops.local_size",
    "crops.local_number",
    "loss.teacher_temp",
    "loss.warmup_teacher_temp_epochs",
    "loss.center_momentum",
    "ema.momentum",
    "optimizer.lr",
    "optimizer.weight_decay",
    "data.root",
    "trainer.epochs",
    "trainer.max_steps",
    "trainer.batch_size",
    "trainer.seed",
    "trainer.precision",
    "trainer.device",
    "trainer.num_workers",
    "trainer.on_collapse",
    "tracker.mode",
    "eval.every_epochs",
)
"""The most used keys; `--cfg job` shows all."""

OPTIONS = (
    ("-m", "run once for each combination of comma-separated values"),
    ("--cfg job", "print the composed configuration instead of running"),
    ("--config-dir DIR", "add a folder with options of your own, e.g. DIR/experiment/mine.yaml"),
    ("-sc install=bash", 'shell completion: eval "$(python train.py -sc install=bash)"'),
    ("--hydra-help", "Hydra's own options"),
)

WIDEST = 120
"""Columns; longer lines are harder to read."""


@cache
def docstrings() -> dict[str, dict[str, str]]:
    """Return the string below each field of the configuration's classes, by class and field."""
    modules = (schema, evaluation_schema, launcher_settings)
    trees = [ast.parse(Path(str(module.__file__)).read_text("utf-8")) for module in modules]
    found: dict[str, dict[str, str]] = {}
    for node in (node for tree in trees for node in tree.body):
        if isinstance(node, ast.ClassDef):
            own = found.setdefault(node.name, {})
            for line, following in zip(node.body, node.body[1:], strict=False):
                if isinstance(line, ast.AnnAssign) and isinstance(following, ast.Expr):
                    own[ast.unparse(line.target)] = " ".join(ast.literal_eval(following.value).split())
    return found


def first_sentence(text: str) -> str:
    """Return the first sentence of a text."""
    return re.split(r"(?<=\.)\s+(?=[A-Z`0-9])", " ".join(text.split()))[0]


def meaning(kind: type, name: str, whole: bool = False) -> str:
    """Return the first sentence of a field's docstring, its own or inherited, or all of it."""
    owners = (docstrings().get(base.__name__, {}) for base in kind.__mro__)
    text = next((own[name] for own in owners if name in own), "")
    return text if whole else first_sentence(text)


def print_help(
    console: Console,
    cfg: DictConfig,
    choices: dict[str, str],
    options: dict[str, Sequence[str]],
    launcher: DictConfig | None = None,
    sweeper: DictConfig | None = None,
) -> None:
    """Print the page.

    Args:
        cfg: a composed configuration; its values are shown as the current ones.
        choices: the chosen option, by group.
        options: all options, by group in the order of `conf/config.yaml`.
        launcher: the node of the chosen launcher, for its keys.
        sweeper: the node of the chosen sweeper, for its keys.
    """
    console = Console(file=console.file, width=min(console.width, WIDEST), highlight=False)
    console.print(Text(INTRODUCTION.replace("\n", " ")))
    examples = Text()
    for line, what in EXAMPLES:
        examples.append(f"# {what}\n", style="dim").append(as_typed(f"python {line}\n"))
    examples.rstrip()
    section(console, "Examples", examples)
    groups = Table.grid(padding=(0, 2, 0, 0))
    groups.add_column(style="bold", no_wrap=True)
    groups.add_column()
    for group, names in options.items():
        chosen = re.findall(r"[^\[\], ]+", choices.get(group) or "")
        words = [(f"{name}*" if name in chosen else name) for name in names]
        groups.add_row(group, Text("  ".join(words)))
    section(console, "Groups: group=option (* is in force)", groups)
    keys = Table.grid(padding=(0, 2, 0, 0))
    keys.add_column(style="bold", no_wrap=True)
    keys.add_column(no_wrap=True)
    keys.add_column()
    for key in KEYS:
        group, _, name = key.rpartition(".")
        node: Any = cfg[group] if group else cfg
        if name in list(node):  # `in node` alone is false for a value that is not set
            value = "(not set)" if OmegaConf.is_missing(node, name) else show(node[name])
            keys.add_row(key, Text(value), Text(meaning(schema.schema_of(node), name)))
    section(console, "Keys: key=value (with the value in force)", keys)
    if launcher is not None and schema.schema_of(launcher) in SETTINGS.values():
        section(console, f"Keys of {choices['hydra/launcher']}: hydra.launcher.key=value", keys_of(launcher))
    if sweeper is not None and schema.schema_of(sweeper) is OptunaSettings:
        section(console, "Keys of optuna: hydra.sweeper.key=value", keys_of(sweeper))
    flags = Table.grid(padding=(0, 2, 0, 0))
    flags.add_column(style="bold", no_wrap=True)
    flags.add_column()
    for flag, what in OPTIONS:
        flags.add_row(flag, Text(as_typed(what)))
    section(console, "Options", flags)


def keys_of(node: DictConfig, whole: bool = False) -> Table:
    """Return the keys of a typed node with their values and docstrings, shortened or full."""
    keys = Table.grid(padding=(0, 2, 0, 0))
    keys.add_column(style="bold", no_wrap=True)
    keys.add_column()
    keys.add_column()
    kind = schema.schema_of(node)
    for name in node:
        if name != "_target_":
            keys.add_row(str(name), Text(show(node[name])), Text(meaning(kind, str(name), whole)))
    return keys


def section(console: Console, title: str, content: RenderableType) -> None:
    """Print a title and its content."""
    console.print()
    console.print(Text(title, style="bold underline"))
    console.print(Padding(content, (0, 0, 0, 2)))
