"""Results of the paper for common sweeps: Caron et al. 2021, ImageNet, ViT-S/16, k-NN top-1 in percent.

They are of another data set and network: pages show them beside a sweep's results, never among them.
"""

from __future__ import annotations

import altair as alt

from dino_exp.plots.drawing import QUIET, Figure, Row, by_position, to_spec
from dino_exp.report.run_data import SweepData

TITLE = "ImageNet, ViT-S/16, from the paper"

TEMPERATURES = (
    ("0 (argmax)", 43.9),
    ("0.02", 66.7),
    ("0.04", 69.6),
    ("0.06", 68.7),
    ("0.08", 0.1),
    ("0.04→0.07", 69.7),
)

ROWS: dict[str, tuple[tuple[str, float], ...]] = {
    "loss.teacher_temp": TEMPERATURES,
    "temperature": TEMPERATURES,
    "ablation": (("sound (DINO)", 72.8), ("no_ema", 0.1)),
    "loss.center_momentum": (("0", 69.1), ("0.9", 69.7), ("0.99", 69.4), ("0.999", 0.1)),
    "head.out_dim": (("1,024", 67.8), ("4,096", 69.3), ("16,384", 69.2), ("65,536", 69.7), ("262,144", 69.1)),
    "trainer.batch_size": (("128", 57.9), ("256", 59.1), ("512", 59.6), ("1,024", 59.9)),
    "ema.momentum": (("0 (no momentum teacher)", 0.1), ("0.996 (DINO)", 72.8)),
    "loss.centering": (("mean (DINO)", 72.8), ("Sinkhorn-Knopp", 72.2)),
    "crops.local_number": (("0 (no multi-crop)", 67.9), ("as in DINO", 72.8)),
}
"""Values and their k-NN by swept key or group. Batch sizes are for 100 epochs with two crops, the last three
rows for 300 epochs."""

NOTES = {
    "loss.teacher_temp": "At 0.08 the loss converges to ln K: a uniform collapse.",
    "temperature": "At 0.08 the loss converges to ln K: a uniform collapse.",
    "trainer.batch_size": "100 epochs, two crops.",
    "ema.momentum": "300 epochs; the paper has no table over λ.",
    "loss.centering": "300 epochs.",
    "ablation": "300 epochs; section 5.3 shows the other ablations as curves.",
    "crops.local_number": "300 epochs.",
}


def paper_rows(sweep: SweepData) -> list[tuple[str, Figure]]:
    """Return the paper's results for each axis that it has a table of."""
    return [(axis, _paper_row(axis)) for axis in sweep.axes if axis in ROWS]


def _paper_row(axis: str) -> Figure:
    rows: list[Row] = [{"x": value, "xi": index, "knn": knn} for index, (value, knn) in enumerate(ROWS[axis])]
    base = alt.Chart(alt.NamedData("paper")).encode(
        x=by_position(axis, labelLimit=130, labelOverlap=True),
        y=alt.Y("knn:Q", title="k-NN, percent (ImageNet)", scale=alt.Scale(domain=[0, 80])),
        tooltip=[alt.Tooltip("x:N", title=axis), alt.Tooltip("knn:Q", title="k-NN of the paper")],
    )
    chart = alt.layer(
        base.mark_point(size=80, shape="square", strokeWidth=2, color=QUIET, filled=False, aria=False),
        base.mark_text(dy=-12, fontSize=11, aria=False).encode(text=alt.Text("knn:Q", format=".1f")),
    )
    return Figure(
        f"paper_{axis}",
        f"{TITLE}: {axis}",
        to_spec(chart.properties(width=400, height=230), {"paper": rows}),
        f"{TITLE}: k-NN by {axis}: " + ", ".join(f"{value}: {knn}" for value, knn in ROWS[axis]),
        (axis, "k-NN, ImageNet"),
        [(value, f"{knn:.1f}") for value, knn in ROWS[axis]],
        note=NOTES.get(axis, ""),
    )
