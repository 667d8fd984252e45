"""`evaluate.py --help`: introduction, examples, and the evaluations with their keys."""

from __future__ import annotations

from typing import Any

from dino_exp.config.compose_evaluation import GROUPS, CheckedEvaluation
from dino_exp.config.evaluation_schema import EVALUATIONS
from dino_exp.config.help import grid, groups, keys_of, opening, section
from dino_exp.config.hydra_loader import EVALUATE, loader
from dino_exp.console import Console

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
    console = opening(console, INTRODUCTION, EXAMPLES)
    words = grid((name, " ".join((kind.__doc__ or "").split())) for name, kind in EVALUATIONS.items())
    section(console, "Evaluations: eval=name or eval=[name,name]", words)
    options = loader(None, EVALUATE)
    groups(console, (*GROUPS, "linear"), options, checked.choices)
    cfg: Any = checked.cfg or options.compose(()).run
    keys = [str(name) for name in cfg if name not in (*GROUPS, *EVALUATIONS)]
    section(console, "Keys: key=value (with the value in force)", keys_of(cfg, keys, whole=True))
    for name in [each for each in cfg.eval if each in EVALUATIONS] if checked.cfg else EVALUATIONS:
        section(console, f"Keys of {name}: {name}.key=value", keys_of(cfg[name], whole=True))
