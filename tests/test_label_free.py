"""The measures without labels have the values of small cases, and the benchmark compares them with k-NN."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import label_free
from benchmarks.label_free_measures import MEASURES, Outputs, copies, lidar, measure, outputs_of, stability
from dino_exp.config.targets import images_of
from dino_exp.eval.periodic import subject_of
from dino_exp.export.trained import read_run
from tests.trained import trained


def test_lidar_is_the_rank_of_what_differs_between_images_and_not_between_their_crops() -> None:
    # Σ_b = diag(3, 2, 0), Σ_w = diag(0.5, 1.5, 0) and δ = 0.5, so the eigenvalues are 3, 1 and 0
    means = torch.tensor([[6, 0, 0], [-6, 0, 0], [0, 4, 0], [0, -4, 0]]).double().abs().sqrt()
    means *= torch.tensor([1, -1, 1, -1])[:, None]
    around = torch.tensor([[1, 0, 0], [-1, 0, 0], [0, 3, 0], [0, -3, 0]]).double()
    around = around.abs().sqrt() * around.sign()
    crops = means[:, None] + around
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert lidar(crops, delta=0.5) == pytest.approx(expected, rel=1e-9)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()).Q
    assert lidar(crops @ rotation + 7, delta=0.5) == pytest.approx(expected, rel=1e-9)
    assert lidar(around.expand(4, 4, 3), delta=0.5) == pytest.approx(1)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ([[0, 0, 0], [1, 1, 1]], 1.0),
        ([[0, 0, 1], [1, 1, 1]], 0.25),  # (2/3 − 5/9) / (1 − 5/9)
        ([[0, 1], [0, 1]], -1.0),
        ([[2, 2], [2, 2]], 0.0),  # a collapse
    ],
)
def test_stability_is_agreement_beyond_chance(chosen: list[list[int]], expected: float) -> None:
    assert stability(torch.tensor(chosen)) == pytest.approx(expected)


def test_copies_counts_the_crops_that_find_their_image() -> None:
    crops = torch.tensor([[[1, 0.1], [0.1, 1]], [[0, 3], [0.2, 0.9]]])
    assert copies(torch.eye(2), crops) == 75


def test_measures_of_outputs_that_are_known_or_not_finite() -> None:
    layers = {"features": torch.eye(6), "bottleneck": torch.eye(6)[:, :3], "logits": torch.ones(6, 2)}
    crops = {layer: rows[:, None].expand(-1, 2, -1) for layer, rows in layers.items()}
    chosen = torch.arange(6)[:, None].expand(-1, 2)
    outputs = Outputs(layers, crops, torch.full((4,), 0.25), 0.5, chosen)
    found = measure(outputs)
    assert tuple(found) == MEASURES
    assert found["mutual_information"] == pytest.approx(math.log(4) - 0.5)
    assert [found[f"rankme_{layer}"] for layer in layers] == pytest.approx([6, 3, 1])
    assert (found["stability"], found["copies_features"]) == (1, 100)
    assert found["lidar_features"] == pytest.approx(5)  # of six equal directions, their mean is taken away
    broken = replace(outputs, images=layers | {"logits": torch.full((6, 2), math.nan)})
    assert set(measure(broken).values()) == {None}


def test_kendall_and_regret() -> None:
    ours, theirs = (label_free.signs(np.array(values)) for values in ([1, 2, 3, 4], [1, 2, 4, 3]))
    assert label_free.kendall(ours, theirs) == pytest.approx(4 / 6)
    ties = label_free.signs(np.array([-math.inf, -math.inf, 2, 3]))
    assert label_free.kendall(ties, ours) == pytest.approx(5 / math.sqrt(5 * 6))
    assert math.isnan(label_free.kendall(label_free.signs(np.ones(4)), ours))
    low, high = label_free.interval(ours, theirs)
    assert -1 <= low < 4 / 6 < high <= 1
    assert label_free.regret(np.array([1, 3, 3]), np.array([90, 80, 60])) == 20


def line(data: str, number: int, knn: float, measures: dict[str, float | None]) -> dict[str, Any]:
    """Return the line of a run whose other measures are all equal."""
    return {
        **{"run": f"/{data}/{number}", "key": f"{data} {number}", "data": data, "fingerprint": data},
        **{"verdict": "healthy" if knn > 20 else "collapsed-uniform", "knn": knn, "seconds": 1.0},
        **{"images": 1000, "crops": 8, "measures": dict.fromkeys(MEASURES, 0.0) | measures},
        "logged": dict.fromkeys(label_free.LOGGED, 0.0),
    }


def test_the_measure_that_is_best_on_the_others_is_judged_by_what_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = []
    for data, turned in (("a", 1), ("b", 1), ("c", -1)):
        for number, knn in enumerate((10.0, 40.0, 60.0, 80.0)):
            stable = None if number == 0 and turned == 1 else turned * knn
            lines.append(line(data, number, knn, {"stability": stable, "lidar_features": -turned * knn}))
    label_free.FILE.parent.mkdir(parents=True)
    label_free.FILE.write_text("".join(json.dumps(each) + "\n" for each in lines))
    label_free.main(["table"])
    written = json.loads((tmp_path / "outputs" / "benchmarks" / "label_free.json").read_text())
    first = written["data"][0]
    assert (first["runs"], first["trained"], first["best"], first["regret_by_chance"]) == (4, 3, 80, 32.5)
    stable, turned_round = first["measures"]["stability"], first["measures"]["lidar_features"]
    assert (stable["tau"], stable["tau_trained"], stable["regret"]) == (1, 1, 0)
    assert (turned_round["tau"], turned_round["regret"]) == (-1, 70)
    assert first["measures"]["copies_logits"]["tau"] is None
    chosen = [(row["data"], row["measure"], row["tau"], row["regret"]) for row in written["left_out"]]
    assert chosen[2] == ("c", "stability", -1, 70)
    assert "a: 4 runs, 3 of which trained" in capsys.readouterr().out
    label_free.main(["table", "/a", "/b"])
    written = json.loads((tmp_path / "outputs" / "benchmarks" / "label_free.json").read_text())
    assert {(row["measure"], row["tau"]) for row in written["left_out"]} == {("stability", 1)}


def test_runs_are_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path, ["experiment=debug", "trainer.epochs=1"])
    other = run.with_name("without_knn")
    shutil.copytree(run, other)
    summary = json.loads((other / "summary.json").read_text())
    (other / "summary.json").write_text(json.dumps(summary | {"knn_top1": None}))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        label_free.main(["measure", "outputs", "--images", "12", "--crops", "4"])
    (row,) = label_free.stored().values()
    assert (row["data"], row["measured"], row["knn"]) == ("shapes", 12, summary["knn_top1"])
    assert all(math.isfinite(row["measures"][name]) for name in MEASURES)
    assert {name: summary["final"][name] for name in label_free.LOGGED} == row["logged"]
    said = capsys.readouterr().out
    assert "skipped, no k-NN" in said
    assert said.count(": done") == 1
    assert said.count("1 of 2 runs can be compared") == 2

    found = read_run(run, "last")
    source = images_of(found.cfg.data).train
    outputs = outputs_of(found, source, 12, 4)
    assert outputs.crops["features"].shape == (12, 4, 64)
    assert measure(outputs) == pytest.approx(row["measures"])  # equal views again
    subject = subject_of(found.cfg, found.teacher.backbone, torch.device("cpu"))
    with torch.inference_mode():
        pixels, _ = next(subject.still_images(source, [0]))
        logits = found.teacher([subject.normalized(pixels)]).logits
    ours = outputs.images["logits"][:1]
    assert ours.norm().item() == pytest.approx(logits.norm().item(), rel=1e-5)
