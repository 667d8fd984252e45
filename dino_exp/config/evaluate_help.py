"""`evaluate.py --help`: introduction, examples, and the evaluations with their keys."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dino_exp.config.compose_evaluation import GROUPS, CheckedEvaluation
from dino_exp.config.evaluate_config import EvaluateConfig
from dino_exp.config.evaluation_schema import EVALUATIONS
from dino_exp.config.help import WIDEST, keys_of, meaning, section
from dino_exp.config.hydra_loader import EVALUATE, loader
from dino_exp.config.messages import show
from dino_exp.installation import as_typed

INTRODUCTION = """\
Evaluates the features of a network: that of a run, or of a file of weights (released DINO checkpoints, timm,
torchvision, or our own). Features are extracted once for all evaluations and kept. Figures go to the
terminal, to evaluations.json in the run directory, to the report, and to the tracker."""

EXAMPLES = (
    ("evaluate.py run=outputs/demo/RUN", "k-NN on the run's own held-out images"),
    ("evaluate.py run=outputs/demo/RUN eval=[knn,linear,attention]", "several, on features extracted once"),
    (
        "evaluate.py weights=dino_deitsmall16_pretrain.pth backbone=vit_small data.root=/imagenet/train",
        "weights from elsewhere",
    ),
    (
        "evaluate.py weights=FILE backbone=vit_small data.root=/imagenet/train eval=linear "
        "linear=released_vit_small",
        "the paper's linear protocol",
    ),
    ("evaluate.py run=outputs/demo/RUN eval=attention attention.source=cat.mp4", "attention maps of a video"),
    (
        "evaluate.py run=outputs/demo/RUN eval=embed embed.source=/my/images",
        "features of a folder, and a map of it",
    ),
    ("torchrun --nproc-per-node 8 evaluate.py ...", "with several processes"),
)


def print_help(console: Console, checked: CheckedEvaluation) -> None:
    """Print the page, with the keys of the chosen evaluations, or of all if none can be composed."""
    console = Console(file=console.file, width=min(console.width, WIDEST), highlight=False)
    console.print(Text(INTRODUCTION.replace("\n", " ")))
    examples = Text()
    for line, what in EXAMPLES:
        examples.append(f"# {what}\n", style="dim").append(
            as_typed(f"python {line}\n".replace("python torchrun", "torchrun"))
        )
    examples.rstrip()
    section(console, "Examples", examples)
    words = _table()
    for name, kind in EVALUATIONS.items():
        words.add_row(name, Text(" ".join((kind.__doc__ or "").split())))
    section(console, "Evaluations: eval=name or eval=[name,name]", words)
    groups = _table()
    options = loader(None, EVALUATE)
    for group in (*GROUPS, "linear"):
        names = [
            f"{name}*" if name == checked.choices.get(group) else name for name in options.options(group)
        ]
        groups.add_row(group, Text("  ".join(names)))
    section(console, "Groups: group=option (* is in force)", groups)
    cfg: Any = checked.cfg or options.compose(()).run
    keys = _table()
    keys.add_column()
    for name in cfg:
        if name not in (*GROUPS, *EVALUATIONS):
            keys.add_row(
                str(name), Text(show(cfg[name])), Text(meaning(EvaluateConfig, str(name), whole=True))
            )
    section(console, "Keys: key=value (with the value in force)", keys)
    for name in [each for each in cfg.eval if each in EVALUATIONS] if checked.cfg else EVALUATIONS:
        section(console, f"Keys of {name}: {name}.key=value", keys_of(cfg[name], whole=True))


def _table() -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    return table
