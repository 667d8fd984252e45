"""The page of `train.py --help`: examples, every group with its options, and the most used keys."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dino_exp.config.compose import Checked
from dino_exp.config.hydra_loader import Loader
from dino_exp.config.launcher_settings import SETTINGS
from dino_exp.config.messages import show
from dino_exp.config.plugin_options import used_by
from dino_exp.config.schema import SCHEMAS, schema_of
from dino_exp.config.searches import SEARCHES
from dino_exp.console import Console
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
        "train.py -m hydra/sweeper=boundary 'loss.teacher_temp=interval(0.02,0.1)' "
        "'loss.center_momentum=interval(0,0.999)'",
        "the boundary between training and collapse, from some 20 runs",
    ),
    (
        "train.py -m sweep=temps_momenta hydra/sweeper=optuna",
        "a search by Optuna; spaces are also written 'loss.teacher_temp=interval(0.02,0.2)'",
    ),
)

MOST_USED = {
    "": "name resume init_from fork_from",
    "backbone": "name patch_size",
    "head": "out_dim",
    "crops": "global_size global_scale local_size local_number",
    "loss": "teacher_temp warmup_teacher_temp_epochs center_momentum",
    "ema": "momentum",
    "optimizer": "lr weight_decay",
    "data": "root",
    "trainer": "epochs max_steps batch_size seed precision device num_workers on_collapse",
    "tracker": "mode",
    "eval": "every_epochs",
}
KEYS = [f"{group}.{name}".lstrip(".") for group, names in MOST_USED.items() for name in names.split()]
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
    here = Path(__file__).parent
    others = (here / name for name in ("evaluate_config.py", "launcher_settings.py", "searches.py"))
    found: dict[str, dict[str, str]] = {}
    for path in (*sorted(here.glob("*schema.py")), *others):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, {}).update(below_fields(node))
    return found


def below_fields(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Yield the name of each field of a class that has a string below it, and the string."""
    for line, following in zip(node.body, node.body[1:], strict=False):
        text = following.value if isinstance(following, ast.Expr) else None
        if isinstance(line, ast.AnnAssign) and isinstance(text, ast.Constant):
            yield ast.unparse(line.target), " ".join(str(text.value).split())


@cache
def of_others(described_by: Any) -> dict[str, str]:
    """Return what others say of their settings: below a dataclass's fields, or in a docstring's `Args:`."""
    try:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(described_by))).body
        found = dict(below_fields(node)) if isinstance(node, ast.ClassDef) else {}
    except (OSError, SyntaxError, TypeError, ValueError):
        found = {}
    _, _, arguments = (inspect.getdoc(described_by) or "").partition("Args:\n")
    lines = re.findall(r"^    (\w+)(?: \([^)]*\))?: (.*(?:\n {8}.*)*)", arguments, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in lines} | found


def first_sentence(text: str) -> str:
    """Return the first sentence of a text."""
    return re.split(r"(?<=\.)\s+(?=[A-Z`0-9])", " ".join(text.split()))[0]


def meaning(kind: type, name: str, whole: bool = False) -> str:
    """Return the first sentence of a field's docstring, its own or inherited, or all of it."""
    owners = [docstrings().get(base.__name__, {}) for base in kind.__mro__]
    if others := vars(kind).get("described_by"):
        owners = [of_others(others), *owners]
    text = next((own[name] for own in owners if name in own), "")
    return text if whole else first_sentence(text)


def print_help(console: Console, checked: Checked, options: Loader) -> None:
    """Print the page with the values of `checked`, and the options of all groups."""
    cfg: Any = checked.cfg
    choices = checked.choices
    console = opening(console, INTRODUCTION, EXAMPLES)
    others = [group for group in options.groups if options.is_group(group) and group not in SCHEMAS]
    groups(console, [*SCHEMAS, *others, "hydra/launcher", "hydra/sweeper"], options, choices)
    rows = []
    for key in KEYS:
        group, _, name = key.rpartition(".")
        node = cfg[group] if group else cfg
        if name in list(node):  # `in node` alone is false for a value that is not set
            rows.append((key, *value_and_meaning(node, name)))
    section(console, "Keys: key=value (with the value in force)", grid(rows))
    for group, plugin in used_by(cfg).items():
        section(console, f"Keys of {plugin.option}: {group}.key=value", keys_of(cfg[group]))
    if schema_of(checked.launcher) in SETTINGS.values():
        title = f"Keys of {choices['hydra/launcher']}: hydra.launcher.key=value"
        section(console, title, keys_of(checked.launcher))
    if schema_of(checked.sweeper) in SEARCHES.values():
        title = f"Keys of {choices['hydra/sweeper']}: hydra.sweeper.key=value"
        section(console, title, keys_of(checked.sweeper))
    section(console, "Options", grid((flag, as_typed(what)) for flag, what in OPTIONS))


def opening(console: Console, introduction: str, examples: Sequence[tuple[str, str]]) -> Console:
    """Print the start of a page, and return the console with its greatest width."""
    console = Console(file=console.file, width=min(console.width, WIDEST))
    console.print(introduction.replace("\n", " "))
    text = Text()
    for line, what in examples:
        command = line if line.startswith("torchrun") else f"python {line}"
        text.append(f"# {what}\n", style="dim").append(as_typed(f"{command}\n"))
    text.rstrip()
    section(console, "Examples", text)
    return console


def groups(console: Console, names: Iterable[str], options: Loader, choices: Mapping[str, str]) -> None:
    """Print the groups with their options."""
    rows = []
    for group in names:
        chosen = re.findall(r"[^\[\], ]+", choices.get(group) or "")
        rows.append((group, "  ".join(f"{n}*" if n in chosen else n for n in options.options(group))))
    section(console, "Groups: group=option (* is in force)", grid(rows))


def keys_of(node: Any, names: Iterable[str] = (), whole: bool = False) -> Table:
    """Return the keys of a typed node with their values and docstrings, shortened or full."""
    keys = names or [str(name) for name in node if name != "_target_"]
    return grid((key, *value_and_meaning(node, key, whole)) for key in keys)


def value_and_meaning(node: Any, name: str, whole: bool = False) -> tuple[str, str]:
    """Return the value of a typed node's field as it is typed, and its docstring."""
    value = "(not set)" if OmegaConf.is_missing(node, name) else show(node[name])
    return value, meaning(schema_of(node), name, whole)


def grid(rows: Iterable[tuple[str, ...]]) -> Table:
    """Return rows whose first column is bold."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def section(console: Console, title: str, content: RenderableType) -> None:
    """Print a title and its content."""
    console.print()
    console.print(title, style="bold underline")
    console.print(Padding(content, (0, 0, 0, 2)))
