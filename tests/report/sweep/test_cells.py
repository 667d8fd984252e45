"""Cells of maps, groups of seeds, small multiples and thinned curves."""

from __future__ import annotations

from pathlib import Path

import pytest

from dino_exp.report.loading import load_sweep
from dino_exp.report.sweep.cells import Ticks, gather, pairs, seed_groups, spread
from dino_exp.report.sweep.paper import paper_rows
from dino_exp.report.sweep.sweep_curves import of_each_metric, small_multiples
from dino_exp.report.sweep.sweep_figures import KNN, map_data
from dino_exp.report.thinning import thinned
from tests.report.synthetic import temps_momenta, write_sweep


def test_a_cell_is_the_mean_over_the_other_axes(tmp_path: Path) -> None:
    sweep = load_sweep(write_sweep(tmp_path, temps_momenta(seeds=3)))
    assert pairs(sweep)[0] == ("loss.teacher_temp", "loss.center_momentum")
    cells = gather(sweep, "loss.teacher_temp", "loss.center_momentum")
    assert sum(len(cell.runs) for cell in cells) == len(sweep.runs) == 60
    sound = next(cell for cell in cells if (cell.x, cell.y) == ("0.02", "0.9"))
    assert sound.mean(KNN.of) == (pytest.approx(75 - 3 - 2.7 + 1), pytest.approx(1.0), 3)
    assert sound.outcome == "healthy"
    name, runs = seed_groups(sweep)[0]
    assert name == "0.02 · 0"
    assert [run.values["trainer.seed"] for run in runs] == [0.0, 1.0, 2.0]


def test_the_trials_of_a_search_share_cells(tmp_path: Path) -> None:
    values = [
        {"loss.teacher_temp": 0.02 + number / 999, "optimizer.lr": 1e-4 * 1.2 ** (7 * number % 20)}
        for number in range(20)
    ]
    sweep = load_sweep(write_sweep(tmp_path, [{"values": each} for each in values]))
    cells = gather(sweep, "loss.teacher_temp", "optimizer.lr")
    assert (len({cell.x for cell in cells}), len({cell.y for cell in cells})) == (6, 6)
    assert sum(len(cell.runs) for cell in cells) == 20
    assert cells[0].x == "0.02 – 0.0232"
    alone = gather(sweep, "loss.teacher_temp", None)
    assert len(alone) == 20


def test_every_pair_of_many_axes_has_a_map(tmp_path: Path) -> None:
    keys = ["optimizer.lr", "loss.teacher_temp", "trainer.seed", *(f"augment.a{index}" for index in range(7))]
    runs = [
        {"values": {key: (run * (n + 2) // 3) % 4 for n, key in enumerate(keys)} | {"trainer.seed": run}}
        for run in range(12)
    ]
    sweep = load_sweep(write_sweep(tmp_path, runs))
    axes = list(sweep.axes)
    assert len(axes) > 6
    found = pairs(sweep)
    assert len(found) == len(axes) * (len(axes) - 1) // 2
    assert found[0] == ("loss.teacher_temp", "optimizer.lr")
    assert all("trainer.seed" not in pair for pair in found[: -len(axes) + 1])


def test_runs_with_distinct_seeds_form_no_groups(tmp_path: Path) -> None:
    runs = temps_momenta()
    for index, run in enumerate(runs):
        run["values"]["trainer.seed"] = index
    sweep = load_sweep(write_sweep(tmp_path, runs))
    assert "trainer.seed" in sweep.axes
    assert seed_groups(sweep) == []


def test_a_run_without_curves_keeps_its_panel(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, temps_momenta())
    (folder / "vit_micro_run4_00000004" / "metrics.jsonl").unlink()
    figure = small_multiples(load_sweep(folder))
    assert figure is not None
    rows = figure.spec["datasets"]["curves"]
    assert len({(row["x"], row["y"]) for row in rows}) == 20
    assert [(row["x"], row["y"]) for row in rows if row["nothing"]] == [("0.04", "0")]
    files = of_each_metric(figure)
    assert [each.name for each in files] == ["curves_loss", "curves", "curves_kl", "curves_mi", "curves_knn"]
    assert "h / ln K" in files[1].title


def test_a_cell_with_different_outcomes_is_mixed(tmp_path: Path) -> None:
    runs = temps_momenta(seeds=2)
    runs[0]["verdict"] = "slow"
    sweep = load_sweep(write_sweep(tmp_path, runs))
    cell = gather(sweep, "loss.teacher_temp", "loss.center_momentum")[0]
    assert cell.outcome == "mixed"
    assert sorted(cell.outcomes.split(", ")) == ["1 healthy", "1 slow"]


def test_many_values_are_grouped_into_ranges() -> None:
    values = [1e-5 * 1.1**index for index in range(100)]
    ticks = Ticks([*values, "null"])
    positions = [ticks.of(value) for value in values]
    assert len(ticks.labels) == 13
    assert positions == sorted(positions)
    assert set(positions) == set(range(12))
    assert ticks.labels[ticks.of("null")] == "null"
    words = Ticks([f"w{index}" for index in range(40)])
    assert len(words.labels) == 24
    assert words.labels[words.of("w39")] == "others"


def test_ranges_of_momenta_are_even_in_what_is_left_to_one() -> None:
    momenta = [1 - 0.5**index for index in range(13)]
    ticks = Ticks(momenta, 6, 6)
    assert [ticks.of(momentum) for momentum in momenta] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5]
    assert ticks.labels[0] == "0 – 0.75"
    assert ticks.labels[-1] == "0.999 – 0.9998"


def test_spread_ignores_unknown_values() -> None:
    assert spread([None]) == (None, None, 0)
    assert spread([3.0, None]) == (3.0, None, 1)
    assert spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5), 2)


def test_thinned_curves_keep_spikes_ends_and_gaps() -> None:
    points: list[tuple[int, float | None]] = [(step, float(step % 7)) for step in range(20_000)]
    points[777] = (777, 1e6)
    points[9999] = (9999, None)
    thin = thinned(points, 150)
    assert len(thin) <= 152
    assert thin[0] == points[0]
    assert thin[-1] == points[-1]
    assert (777, 1e6) in thin
    assert (9999, None) in thin
    assert [step for step, _ in thin] == sorted(step for step, _ in thin)


def test_the_papers_results_are_not_among_the_sweeps(tmp_path: Path) -> None:
    sweep = load_sweep(write_sweep(tmp_path, temps_momenta()))
    axes = dict(paper_rows(sweep))
    assert set(axes) == {"loss.teacher_temp", "loss.center_momentum"}
    figure = axes["loss.center_momentum"]
    assert "ImageNet, ViT-S/16, from the paper" in figure.title
    assert [row["knn"] for row in figure.spec["datasets"]["paper"]] == [69.1, 69.7, 69.4, 0.1]
    ours = {row["knn"] for data in map_data(sweep) for row in data.rows}
    assert not ours & {69.1, 69.4, 0.1}
