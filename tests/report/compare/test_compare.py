"""Comparing runs and sweeps: pairs, differences with their spread, and the page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

from dino_exp.errors import UserError
from dino_exp.report.compare.compare_figures import curve_figures, write_comparison
from dino_exp.report.compare.comparison import Comparison, answer, common_differences, compare
from dino_exp.report.report_command import main
from tests.report.synthetic import CONFIG, changed, write_run, write_sweep

DATA = Path(__file__).parents[1] / "data"


def sweep(path: Path, knn: Mapping[float, Sequence[float]], manifest: bool = True, **common: Any) -> Path:
    """Write a sweep over the teacher temperature, with a seed for each k-NN value."""
    common = {key.replace("__", "."): value for key, value in common.items()}  # ema__momentum
    runs = [
        {"values": {"loss.teacher_temp": temp, "trainer.seed": seed}, "knn": value}
        for temp, values in knn.items()
        for seed, value in enumerate(values)
    ]
    write_sweep(path, runs, manifest)
    for config in path.glob("*/config.yaml"):
        config.write_text(yaml.safe_dump(changed(yaml.safe_load(config.read_text()), common)))
    return path


def differences(comparison: Comparison) -> dict[str, tuple[float | None, float | None]]:
    return {pair.label: (pair.difference, pair.standard_error) for pair in comparison.pairs}


def test_two_runs_of_one_seed_say_nothing_about_the_spread() -> None:
    comparison = compare(DATA / "healthy", DATA / "hot_teacher")
    (pair,) = comparison.pairs
    assert pair.difference == pytest.approx(20.2 - 72.4)
    assert pair.standard_error is None
    assert pair.differing == {"loss.teacher_temp": (0.02, 0.2)}
    sentences = " ".join(answer(comparison))
    assert "A 72.4 (n=1), B 20.2 (n=1): B − A = -52.2 points." in sentences
    assert "A side with one run (n=1) says nothing about the spread" in sentences


def test_sweeps_are_paired_by_overrides_and_pooled_over_seeds(tmp_path: Path) -> None:
    first = {0.02: [70.0, 72.0, 74.0], 0.04: [60.0, 61.0, 62.0], 0.2: [20.0, 20.0]}
    second = {0.04: [60.5, 61.5, 62.5], 0.02: [80.0, 84.0], 0.1: [30.0]}
    comparison = compare(sweep(tmp_path / "a", first), sweep(tmp_path / "b", second, ema__momentum=0.996))
    found = differences(comparison)
    assert list(found) == [f"loss.teacher_temp={temp}" for temp in (0.02, 0.04, 0.2, 0.1)]
    assert found["loss.teacher_temp=0.02"] == pytest.approx((10.0, (4 / 3 + stdev([80, 84]) ** 2 / 2) ** 0.5))
    assert found["loss.teacher_temp=0.04"] == pytest.approx((0.5, (2 / 3) ** 0.5))
    assert found["loss.teacher_temp=0.2"] == found["loss.teacher_temp=0.1"] == (None, None)
    sentences = answer(comparison)
    assert sentences[0].startswith("k-NN top-1, B − A: +5.2 points on average over 2 pairs")
    assert "Of 2 pairs with several seeds on both sides, the difference is more than twice" in sentences[1]
    assert sentences[1].endswith("twice its standard error in 1.")
    assert common_differences(comparison) == ({"ema.momentum": ("0.99", "0.996")}, {})


def test_runs_are_paired_without_a_manifest_and_with_numbers_in_another_form(tmp_path: Path) -> None:
    a = sweep(tmp_path / "a", {0.02: [70.0], 0.1: [20.0]})
    manifest = json.loads((a / "manifest.json").read_text())
    for entry in manifest["runs"].values():
        entry["overrides"] = [each.replace("=0.1", "=0.10") for each in reversed(entry["overrides"])]
    (a / "manifest.json").write_text(json.dumps(manifest))
    comparison = compare(a, sweep(tmp_path / "b", {0.1: [21.0], 0.02: [75.0]}, manifest=False))
    assert differences(comparison) == {
        "loss.teacher_temp=0.02": (5.0, None),
        "loss.teacher_temp=0.1": (1.0, None),
    }
    assert "nothing about the spread" in answer(comparison)[1]


def grid(path: Path, momenta: Sequence[float], **constant: float) -> Path:
    """Write a sweep over two axes, with the same overrides of other keys in all runs."""
    swept = [{"loss.teacher_temp": temp, "loss.center_momentum": m} for temp in (0.02, 0.04) for m in momenta]
    runs = [{"values": each | constant, "knn": 60.0 + 9 * index} for index, each in enumerate(swept)]
    return write_sweep(path, runs)


def briefs(momenta: Sequence[float]) -> list[str]:
    return [f"center_momentum={each} teacher_temp={temp}" for temp in (0.02, 0.04) for each in momenta]


def test_constants_of_one_side_do_not_keep_pairs_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONFIG, "eval", {"every_epochs": 10})
    a = grid(tmp_path / "a", (0.5, 0.9))
    for name, value, other in (("optimizer.lr", 0.004, "0.008"), ("eval.every_epochs", 1, "10")):
        comparison = compare(a, grid(tmp_path / name, (0.5, 0.9), **{name: value}))
        assert [pair.brief for pair in comparison.both] == briefs((0.5, 0.9))
        assert comparison.pairs == comparison.both
        assert common_differences(comparison) == ({name: (other, str(value))}, {})
    # a value that is constant in B has a position on A's axis, and so does a run without a sweep
    comparison = compare(a, grid(tmp_path / "line", (0.9,)))
    assert [pair.brief for pair in comparison.both] == briefs((0.9,))
    (pair,) = compare(a, write_run(tmp_path / "run")).both
    assert pair.brief == "center_momentum=0.5 teacher_temp=0.02"


def test_runs_on_two_data_sets_have_gains_instead_of_a_difference(tmp_path: Path) -> None:
    a = sweep(tmp_path / "a", {0.02: [70.0, 72.0]})
    b = sweep(tmp_path / "b", {0.02: [75.0, 79.0]}, data__name="fashion_mnist")
    comparison = compare(a, b)
    sentences = answer(comparison)
    assert sentences == [
        "k-NN of different data sets is not comparable: A is of shapes, B of fashion_mnist.",
        "k-NN top-1 in percent: A 71.0 ± 1.4 (n=2), B 77.0 ± 2.8 (n=2); gain over the untrained network, in "
        "points: A +51.0 ± 1.4 (n=2), B +57.0 ± 2.8 (n=2).",
    ]
    assert comparison.both[0].difference is None
    text = write_comparison(comparison, tmp_path / "out")[0].read_text()
    assert all(sentence in text for sentence in sentences)
    assert "<td>71.0 ± 1.4 (n=2),\ngain +51.0 ± 1.4 (n=2)</td>" in text


def test_folders_with_the_same_name_are_told_apart_and_linked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = sweep(tmp_path / "jan" / "50%", {0.02: [70.0, 71.0], 0.04: [60.0]})
    b = sweep(tmp_path / "feb" / "50%", {0.02: [75.0, 76.0], 0.04: [66.0]})
    assert main([str(b), "--out", str(b / "report")]) == 0
    (next(iter(a.iterdir())) / "metrics.jsonl").unlink()
    assert main(["--compare", str(a), str(b)]) == 0
    assert "jan/50%: loss.teacher_temp" in capsys.readouterr().out
    page = a / "report" / "jan_50%_and_feb_50%" / "index.html"
    text = page.read_text()
    assert "<title>jan/50% and feb/50%</title>" in text
    assert 'A: <a href="../../">jan/50%</a>' in text
    links = re.findall(r'<a href="(\.\.[^"]+)"(?: title="([^"]+)")?>([^<]+)</a>', text)
    assert [word for _, _, word in links[2:]] == ["seed 0", "seed 1", "seed 0", "seed 1", "seed 0", "seed 0"]
    assert all((page.parent / unquote(link)).exists() for link, _, _ in links)
    assert links[1][0] == "../../../../feb/50%25/report/index.html"
    assert links[2][0].startswith(f"../../{links[2][1]}/")


def test_the_differences_can_be_read_on_a_phone(tmp_path: Path, browser: Any) -> None:
    a = grid(tmp_path / "a", (0.9, 0.999))
    b = grid(tmp_path / "b", (0.9, 0.99, 0.999))  # so that the differences differ
    browser.open(write_comparison(compare(a, b), tmp_path / "out")[0], width=390)
    found = browser.js("""
      const box = (each) => each.getBoundingClientRect();
      const svg = document.querySelector("#figure-compare_differences svg"), all = box(svg);
      return {
        share: box(svg.querySelector(".background")).width / all.width,
        over: [...svg.querySelectorAll("text, .mark-symbol path")].filter((each) =>
          box(each).left < all.left || box(each).right > all.right || box(each).bottom > all.bottom).length,
        texts: [...svg.querySelectorAll("text")].map((each) => each.textContent),
      };""")
    assert found["share"] > 0.6
    assert found["over"] == 0
    assert {"0.9 · 0.02", "0.999 · 0.04", "k-NN of B − k-NN of A, points"} <= set(found["texts"])


def test_one_run_against_several_seeds_has_no_standard_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", knn=70.0, values={"head.out_dim": 256})
    seeds = sweep(tmp_path / "seeds", {0.02: [71.0, 73.0]})
    comparison = compare(run, seeds)
    assert [(pair.difference, pair.standard_error) for pair in comparison.pairs] == [(2.0, None)]
    assert comparison.pairs[0].differing == {"head.out_dim": (256, 64)}
    others = compare(seeds, sweep(tmp_path / "others", {0.02: [81.0, 83.0]}))
    assert "B − A = +10.0 points" in answer(others)[0]
    assert "The difference is more than twice its standard error, 1.4." in answer(others)[1]


def test_curves_are_over_images_if_batch_sizes_differ(tmp_path: Path) -> None:
    b = write_run(tmp_path / "b")
    same = curve_figures(compare(write_run(tmp_path / "a"), b))
    assert {figure.spec["layer"][0]["encoding"]["x"]["title"] for figure in same} == {"step"}
    assert not any(figure.title.endswith("as applied") for figure in same)
    lines = [json.loads(line) for line in (b / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["images"] *= 2
        line["lr"] = 2 * line.get("lr", 0.0)
    (b / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    other = {figure.name: figure for figure in curve_figures(compare(tmp_path / "a", b))}
    loss = other["compare_loss"].spec
    assert loss["layer"][0]["encoding"]["x"]["title"] == "images seen"
    assert max(row["at"] for row in loss["datasets"]["points"] if row["side"] == "B") == 2 * 32 * 900
    assert [level["text"] for level in loss["datasets"]["level"]] == ["ln K = 4.159"]
    assert "compare_learning_rate" in other


def test_a_page_of_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_run(tmp_path / "<a>"), write_run(tmp_path / "b", verdict="collapsed-uniform", knn=20.0)
    assert main(["--compare", str(a), str(b)]) == 0
    out = capsys.readouterr().out
    page = a / "report" / "<a>_and_b" / "index.html"
    assert str(page) in out.splitlines()
    assert "B − A = -52.0 points" in out
    text = page.read_text()
    assert 'A: <a href="../../">&lt;a&gt;</a>' in text  # it has no page
    assert 'healthy <a href="../../" title="&lt;a&gt;">run</a>' in text
    assert "<a>" not in text
    assert "collapsed-uniform" in text
    assert not re.search(r"""(?:src|href)=["']?https?://""", text)
    assert (page.parent / "compare_loss.svg").read_text().startswith("<svg")


def test_a_page_of_two_sweeps(tmp_path: Path) -> None:
    a = sweep(tmp_path / "a", {0.02: [70.0, 72.0], 0.04: [60.0, 61.0], 0.2: [20.0, 20.0]})
    b = sweep(tmp_path / "b", {0.02: [75.0, 72.0], 0.04: [66.0, 61.0]})
    paths = write_comparison(compare(a, b), tmp_path / "out")
    text = paths[0].read_text()
    rows = re.findall(
        r'<tr><th scope="row">(loss.teacher_temp=[\d.]+)</th><td>([^<]*)</td><td>([^<]*)</td>', text
    )
    assert rows == [
        ("loss.teacher_temp=0.02", "71.0 ± 1.4 (n=2)", "73.5 ± 2.1 (n=2)"),
        ("loss.teacher_temp=0.04", "60.5 ± 0.7 (n=2)", "63.5 ± 3.5 (n=2)"),
        ("loss.teacher_temp=0.2", "20.0 ± 0.0 (n=2)", "–"),
    ]
    assert {path.stem for path in paths[1:]} == {
        f"compare_{name}" for name in ("differences", "knn", "entropy", "mutual_information", "loss")
    }


def test_folders_that_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    with pytest.raises(UserError, match="given twice"):
        compare(run, run)
    assert main(["--compare", str(run), str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    apart = compare(
        sweep(tmp_path / "a", {0.02: [7.0], 0.04: [6.0]}), sweep(tmp_path / "b", {0.1: [3.0], 0.2: [2.0]})
    )
    assert apart.both == []
    assert apart.problems[-1] == "There are no pairs: no run of A has the same loss.teacher_temp as one of B."
    assert write_comparison(apart, tmp_path / "out")[0].exists()


def test_old_configurations_and_runs_without_knn_still_make_a_page(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", knn=None), write_run(tmp_path / "b")
    (b / "config.yaml").write_text("loss: [")
    comparison = compare(a, b)
    assert answer(comparison) == ["k-NN cannot be compared: no pair has it on both sides."]
    assert any(problem.startswith("The configurations cannot be compared") for problem in comparison.problems)
    text = write_comparison(comparison, tmp_path / "out")[0].read_text()
    assert "config.yaml cannot be read" in text
