"""One row per metric: what it is called in files, what people call it, its unit, and where it is shown.

Everything that names, formats or draws a metric reads these rows: the verdict, the progress line, a run's
curves, reports and tables. A new diagnostic is a function in `dino/diagnostics.py` and a row here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

SHARE = "share of ln K"


@dataclass(frozen=True)
class Level:
    """A value that a curve is read against."""

    value: float | str
    """The value, or the key of the metric that has it."""
    meaning: str

    def text(self, value: float) -> str:
        """Return the label of a line at the level's value: 1: uniform"""
        at = f"{value:g}" if self.value == value else f"{LN_K.short} = {value:{LN_K.form}}"
        return f"{at}: {self.meaning}"


@dataclass(frozen=True)
class Chart:
    """A figure of a run's report: one metric of both networks, or several metrics of the teacher."""

    name: str
    """File name of the figure."""
    title: str = ""
    """By default the label of its metric."""
    zero: bool = True
    """Start the scale at zero."""
    points: bool = False
    """Mark the values, because there are few."""
    schedule: bool = False
    """The metric is a schedule's value, as it was applied."""

    @property
    def metrics(self) -> list[Metric]:
        """The metrics that the chart shows."""
        return [metric for metric in METRICS if metric.chart == self]

    @property
    def heading(self) -> str:
        """The title of the figure."""
        return self.title or self.metrics[0].label + (", as applied" if self.schedule else "")

    @property
    def curves(self) -> dict[str, str]:
        """Keys in metrics.jsonl by the words of the legend."""
        first, *others = self.metrics
        if first.student_key and not others:
            return {"teacher": first.key, "student": first.student_key}
        return {metric.words or metric.short: metric.key for metric in self.metrics}


@dataclass(frozen=True)
class Metric:
    """A number that a run logs, or that its summary has."""

    key: str
    """Name in metrics.jsonl; of a metric that both networks have, the teacher's."""
    label: str
    """Name in full, for titles."""
    short: str = ""
    """Name for the heads of columns and the progress line; by default the label in lower case."""
    unit: str = ""
    form: str = ".3f"
    """Format in lines and tables."""
    precise: str = ".4g"
    """Format of a curve's values."""
    words: str = ""
    """Name within a sentence, without the unit."""
    title: str = ""
    """Title of a figure over several runs; by default the label and the unit."""
    better: Literal["higher", "lower"] | None = None
    levels: tuple[Level, ...] = ()
    student_key: str | None = None
    """The student's name in metrics.jsonl, where both networks have the metric."""
    chart: Chart | None = None
    """Where a run's report draws it."""
    panel: int = 0
    """Position among the panels of `plots/curves.png`; 0 is none."""
    progress: int = 0
    """Position in the progress line; 0 is none."""
    column: int = 0
    """Position among the metrics in a sweep's table; 0 is none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "short", self.short or self.label.lower())
        object.__setattr__(self, "title", self.title or ", ".join(filter(None, (self.label, self.unit))))

    @property
    def head(self) -> str:
        """The head of a column."""
        return f"{self.short} %" if self.unit == "percent" else self.short

    @property
    def keys(self) -> tuple[str, ...]:
        """The names in metrics.jsonl: one, or the teacher's and the student's."""
        return (self.key, self.student_key) if self.student_key else (self.key,)

    def text(self, value: float | None) -> str:
        """Return a value with its unit: 72.0 %, 320 images/s; – without a value."""
        unit = "%" if self.unit == "percent" else self.unit
        return "–" if value is None else f"{value:{self.form}} {unit}".rstrip()


def _of_both(key: str, label: str, **fields: object) -> Metric:
    """Return the row of a diagnostic that `diagnostics.describe` computes for both networks."""
    return Metric(f"teacher/{key}", label, student_key=f"student/{key}", **fields)  # type: ignore[arg-type]


STEP = Metric("step", "Step", form=",.0f", column=5)
LN_K = Metric("ln_k", "ln K", "ln K", "nats", progress=2)
LOSS = Metric(
    "loss",
    "Loss",
    unit="nats",
    title="Loss / ln K",
    better="lower",
    levels=(Level(LN_K.key, "uniform collapse"),),
    chart=Chart("loss", zero=False),
    panel=1,
    progress=1,
    column=4,
)
GRAD_NORM = Metric("grad_norm", "Norm of the gradient before clipping", "gradient norm")
ENTROPY = _of_both(
    "entropy_share",
    "Entropy of the outputs",
    short="h / ln K",
    unit=SHARE,
    words="teacher entropy",
    title="Entropy of the teacher, h / ln K",
    levels=(Level(1.0, "uniform"), Level(0.0, "one-hot")),
    chart=Chart("entropy", "Entropy of the outputs, h / ln K"),
    panel=2,
    progress=3,
    column=1,
)
DIVERGENCE = Metric(
    "kl_share",
    "KL(teacher ‖ student)",
    "KL / ln K",
    SHARE,
    words="KL",
    title="KL(teacher ‖ student) / ln K",
    chart=Chart("kl", "KL(teacher ‖ student) / ln K"),
    column=2,
)
INFORMATION = _of_both(
    "mutual_information_share",
    "Mutual information of image and prototype",
    short="MI / ln K",
    unit=SHARE,
    words="mutual information",
    better="higher",
    levels=(Level(0.0, "collapse"),),
    chart=Chart("mutual_information"),
    panel=3,
    progress=5,
    column=3,
)
KNN = Metric(
    "knn_top1",
    "k-NN top-1",
    "k-NN",
    "percent",
    ".1f",
    ".1f",
    words="k-NN",
    title="k-NN top-1 of the teacher, percent",
    better="higher",
    student_key="student_knn_top1",
    chart=Chart("knn", zero=False, points=True),
    panel=5,
    progress=7,
)
CENTER_NORM = Metric(
    "center_norm", "Norm of the center", "center", form=".2f", chart=Chart("center_norm"), panel=4, progress=6
)
RANKS = Chart("ranks", "Effective rank of the teacher")
SPEED = Metric(
    "images_per_second",
    "Speed",
    "images/s",
    "images/s",
    ",.0f",
    ",.0f",
    better="higher",
    chart=Chart("speed"),
    progress=8,
    column=6,
)
DATA_WAIT = Metric("data_wait_share", "Waiting for data", unit="share of the time")
PEAK_MEMORY = Metric("peak_memory_mib", "Peak memory", unit="MiB", form=",.0f")

METRICS: tuple[Metric, ...] = (
    STEP,
    Metric("epoch", "Epoch"),
    Metric("images", "Images seen", form=",.0f"),
    LOSS,
    LN_K,
    GRAD_NORM,
    ENTROPY,
    Metric("kl", "KL(teacher ‖ student)", "KL", "nats", progress=4),
    DIVERGENCE,
    INFORMATION,
    KNN,
    CENTER_NORM,
    Metric("center_change", "Movement of the center in one step"),
    Metric("teacher_student_distance", "Relative distance of the weights of teacher and student"),
    _of_both("entropy", "Entropy of the outputs", unit="nats"),
    _of_both("marginal_entropy", "Entropy of the mean output", unit="nats"),
    _of_both("mutual_information", "Mutual information of image and prototype", unit="nats", better="higher"),
    _of_both("prototypes_used", "Share of prototypes that win for some crop"),
    _of_both("prototypes_perplexity", "Perplexity of the winning prototypes", unit="prototypes"),
    _of_both("logit_spread", "Standard deviation of the logits"),
    _of_both("feature_std", "Spread of the normalized features"),
    _of_both(
        "feature_rank", "Effective rank", short="features", unit="dimensions", better="higher", chart=RANKS
    ),
    _of_both("bottleneck_rank", "Effective rank", short="bottleneck", unit="dimensions", chart=RANKS),
    SPEED,
    DATA_WAIT,
    PEAK_MEMORY,
    Metric("lr", "Learning rate", "lr", chart=Chart("learning_rate", schedule=True), panel=6),
    Metric("weight_decay", "Weight decay", chart=Chart("weight_decay", schedule=True)),
    Metric(
        "ema_momentum",
        "EMA momentum λ",
        "λ",
        precise=".5g",
        chart=Chart("ema_momentum", zero=False, schedule=True),
        panel=7,
    ),
    Metric(
        "teacher_temp", "Teacher temperature τₜ", "τₜ", chart=Chart("teacher_temp", schedule=True), panel=8
    ),
)
"""What metrics.jsonl has, in the order of a report."""

BEST_KNN = Metric(f"best_{KNN.key}", "Best k-NN", unit="percent", form=".1f", better="higher")
UNTRAINED_KNN = Metric(f"untrained_{KNN.key}", "k-NN, untrained", "untrained", "percent", ".1f")
RAW_PIXELS_KNN = Metric(f"raw_pixels_{KNN.key}", "k-NN of raw pixels", unit="percent", form=".1f")
"""Further rows of summary.json."""


def charts() -> list[Chart]:
    """Return the figures of a run's report, in their order."""
    return list(dict.fromkeys(metric.chart for metric in METRICS if metric.chart))


def shown_in(where: Literal["panel", "progress", "column"]) -> list[Metric]:
    """Return the metrics that are shown there, in their order."""
    return sorted((row for row in METRICS if getattr(row, where)), key=lambda row: getattr(row, where))


# ---- what a search looks for ---------------------------------------------------------------------------

OBJECTIVES = {metric.key: metric for metric in (KNN, BEST_KNN, *METRICS) if metric.better}
"""What a search may look for, beside the accuracies of `ACCURACY`: what has a better end."""
ACCURACY = re.compile(r"(linear|low_shot)/(?:val_)?top1(?:_share[\d.]+)?")
"""Names of accuracies that evaluations give a run: linear/top1, low_shot/top1_share0.1."""


def objective(name: str) -> Metric | None:
    """Return the row of what a search looks for; None for what is no metric, or has no better end."""
    if ACCURACY.fullmatch(name):
        return Metric(name, name, unit="percent", form=".1f", better="higher")
    return OBJECTIVES.get(name)


def evaluation_of(name: str) -> str | None:
    """Return the evaluation that gives an accuracy: knn, linear or low_shot; None for other metrics."""
    accuracy = ACCURACY.fullmatch(name)
    return accuracy[1] if accuracy else "knn" if name in (KNN.key, BEST_KNN.key) else None


def numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a run's end, by name: those of its summary, and the final ones in it."""
    final = summary.get("final")
    values = {**(final if isinstance(final, dict) else {}), **summary}
    return {name: value for name, value in values.items() if type(value) in (int, float)}


# ---- figures of evaluations --------------------------------------------------------------------------------

FIGURES = {
    "val_top1": "top-1, validation split",
    "jaccard_mean": "Jaccard, mean of the heads",
    "jaccard_best_head": "Jaccard, best head of each image",
    "jaccard_even": "Jaccard, entire image",
    "jaccard_center": "Jaccard, centered Gaussian",
    "mass": "attention inside the mask",
    "area": "area of the mask",
    "gaussian_mass": "centered Gaussian inside the mask",
    "auc": "AUC",
    "gaussian_auc": "AUC of the centered Gaussian",
    "map_strong": "mAP, strong",
    "jf_mean": "J&F, mean",
    **{f"{of.lower()}_{word}": f"{of}, {word}" for of in "JF" for word in ("mean", "recall", "decay")},
}
"""Names in evaluations.json, all in percent, and what people call them."""
PATTERNS = (
    (r"top(\d+)", r"top-\1"),
    (r"top(\d+)_k(\d+)", r"top-\1, k = \2"),
    (r"same_class_k(\d+)", r"neighbors of the same class, k = \1"),
    (r"roxford5k_map_(\w+)", r"ROxford mAP, \1"),
    (r"roxford5k_mp(\d+)_(\w+)", r"ROxford mean precision at \1, \2"),
    (r"rparis6k_map_(\w+)", r"RParis mAP, \1"),
    (r"rparis6k_mp(\d+)_(\w+)", r"RParis mean precision at \1, \2"),
)
"""Likewise, with numbers in the names."""


def in_words(name: str) -> str:
    """Return what people call a figure of an evaluation: `top1_k20` is top-1, k = 20; unknown names stay."""
    if name in FIGURES:
        return FIGURES[name]
    share = re.fullmatch(r"top(\d+)_share([\d.]+)", name)
    if share:
        return f"top-{share[1]} with {100 * float(share[2]):g} % of the labels"
    for pattern, words in PATTERNS:
        found = re.fullmatch(pattern, name)
        if found:
            return found.expand(words)
    return name
