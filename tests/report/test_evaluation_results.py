"""Results of `evaluate.py`, and of evaluations during training, on the pages of runs and others."""

from __future__ import annotations

import html
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dino_exp.report.compare.compare_evaluations import evaluation_rows
from dino_exp.report.compare.comparison import compare
from dino_exp.report.evaluation_results import File, collected_notes, files, result_lines
from dino_exp.report.loading import load, load_run
from dino_exp.report.report_command import fingerprint, main
from dino_exp.report.run_data import SweepData
from dino_exp.report.run_figures import run_figures
from dino_exp.report.sweep.sweep_table import MOST_COLUMNS, columns, table
from tests.report.synthetic import write_json, write_lines, write_sweep

FILE = "evaluations.json"
HEADING = "Evaluations"


def result(evaluation: str, figures: Any, **changes: Any) -> dict[str, Any]:
    """Return a record; `changes` are keys, or keys in a part such as weights__step."""
    weights = {"network": "teacher", "checkpoint": "last", "step": 900}
    record: dict[str, Any] = {
        "evaluation": evaluation,
        "when": "2026-07-30T16:05:11+02:00",
        "weights": {"name": "run", "sha256": "ab" * 32, **weights},
        "data": {"name": "shapes", "root": None},
        "settings": {"k": [10, 20]},
        "images": {"image_size": 32, "crop_ratio": 1.0},
        "figures": figures,
        "notes": [],
        "files": [],
    }
    for key, value in changes.items():
        part, _, name = key.partition("__")
        record[part] = record[part] | {name: value} if name else value
    return record


def bare_run(path: Path) -> Path:
    """Write a run of 900 steps without metrics, because figures would take seconds to draw."""
    summary = {"state": "finished", "verdict": "healthy", "steps": 900, "knn_top1": 72.0}
    write_json(path / "summary.json", summary)
    write_lines(path / "metrics.jsonl", [{"step": 900}])
    return path


def evaluated(path: Path, *records: Any) -> Path:
    """Write such a run with an evaluations.json."""
    write_json(bare_run(path) / FILE, list(records))
    return path


def page_of(folder: Path) -> str:
    assert main([str(folder)]) == 0
    return (folder / "report" / "index.html").read_text()


def test_each_result_has_a_line_with_its_differences(tmp_path: Path) -> None:
    path = evaluated(
        tmp_path / "run",
        result("linear", {"top1": 90.16, "top5": None}, weights__step=600, notes=["Larger rates help."]),
        result("knn", {"top1_k20": 86.84, "novel": 1}, notes=["Three could not be read."]),
        result("knn", {"top1_k20": 85.0}, settings__k=[20], images__image_size=64),
        result("knn", {"top1_k20": 61.0}, weights__network="student", when="yesterday"),
    )
    run = load_run(path)
    found = result_lines(run)
    assert [line.title for line in found] == ["k-NN"] * 3 + ["Linear classifier"]
    assert found[2].figures == ["top-1, k = 20: 86.8\N{NO-BREAK SPACE}%", "novel: 1.0\N{NO-BREAK SPACE}%"]
    assert found[3].figures[1] == "top-5: –"
    subjects = [f"{network}, last checkpoint, step 900" for network in ("student", "teacher")]
    assert [line.subject for line in found[:2]] == subjects
    sizes = ["image_size = 64, k = [20]", "image_size = 32, k = [10, 20]"]
    assert [line.differs for line in found] == ["", *sizes, ""]
    assert [line.step_note for line in found] == ["", "", "", "the run's last step is 900"]
    assert [line.when for line in found] == ["yesterday", *["2026-07-30 14:05"] * 3]
    assert collected_notes(run) == [
        (f"k-NN ({subjects[1]}, shapes, {sizes[1]})", "Three could not be read."),
        ("Linear classifier", "Larger rates help."),
    ]
    page = page_of(path)
    assert HEADING in page
    assert 'href="../evaluations.json"' in page


def test_the_image_size_of_an_evaluation_overrides_the_common_one(tmp_path: Path) -> None:
    own = result("retrieval", {}, settings={"image_size": 224, "datasets": None}, images={"image_size": 32})
    general = result("attention", {}, settings={"image_size": None}, images={"image_size": 32})
    run = load_run(evaluated(tmp_path / "run", own, general))
    assert [each.circumstances["image_size"] for each in run.evaluations] == ["224", "32"]


@pytest.mark.parametrize(
    "content",
    [
        b'[{"evaluation": "knn"',
        b"\xff\xfe[]",
        b'{"evaluation": "knn"}',
        b"[" * 100_000,
        b'[7, {"figures": {}}, {"evaluation": 3}]',
        b'[{"evaluation": "knn", "settings": {"k": ' + b"[" * 800 + b"]" * 800 + b"}}]",
    ],
)
def test_a_broken_file_is_mentioned_on_the_page(tmp_path: Path, content: bytes) -> None:
    path = bare_run(tmp_path / "run")
    (path / FILE).write_bytes(content)
    run = load_run(path)
    assert run.evaluations == []
    (sentence,) = [problem for problem in run.problems if FILE in problem]
    page = page_of(path)
    assert html.escape(sentence[:40], quote=False) in page
    assert HEADING not in page


def test_values_may_have_any_type(tmp_path: Path) -> None:
    values = [None, 10**400, -1e30, {"step": "1"}, "\ud800", [None, {"a": 1}, "\ud800", "a\0b", "x" * 5000]]
    known = result("linear", {"top1": 90.0})
    records = [{**known, key: value} for key in known for value in values]
    records += [{key: known[key] for key in known if key != left} for left in known]
    path = evaluated(tmp_path / "run", *records, result("linear", {"top1": "high", "top5": 10**400}))
    run = load_run(path)
    assert f"{FILE}: skipped 6 of 64 records, which name no evaluation." in run.problems
    assert result_lines(run)[0].figures == ["top-1: –", "top-5: –"]
    assert columns([run], [])[0].values == [90.0]
    page = page_of(path)
    assert page.count("Linear classifier</th>") == 57


def test_images_are_shown_and_other_files_linked(tmp_path: Path) -> None:
    names = ["own.png", "map #1.html", "../outside.png", "gone.png", "torn.png", "own.png"]
    path = evaluated(
        tmp_path / "run",
        result("embed", {}, files=["evaluations/embed/own.png"], data__name="older"),
        result("knn", {}, files=[f"evaluations/embed/{name}" if name[0] != "." else name for name in names]),
    )
    folder = path / "evaluations" / "embed"
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(folder / "own.png")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "outside.png")
    (folder / "map #1.html").write_text("x")
    (folder / "torn.png").write_bytes((folder / "own.png").read_bytes()[:20])
    problems: list[str] = []
    images, others = files(load_run(path), problems)
    own = "evaluations/embed/own.png"
    assert images[0] == File("k-NN: own", own, path / own)
    assert [each.name.rpartition("/")[2] for each in others] == ["map #1.html"]
    assert problems == [
        "evaluations.json names files that are not in the run's folder: "
        "../outside.png, evaluations/embed/gone.png."
    ]
    page = page_of(path)
    assert page.count("data:image/png") == 1
    assert f'<a href="../{own}"><img' in page
    assert '<a href="../evaluations/embed/map%20%231.html">evaluations/embed/map #1.html</a>' in page
    assert '<a href="../evaluations/embed/torn.png">' in page


def test_text_of_the_file_is_escaped(tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script>"
    record = result(bad, {bad: 1.0}, when=bad, notes=[bad], weights__network=bad, data__name=bad)
    other = result(bad, {bad: 1.0}, when=bad, weights__network=bad, data__name=bad, settings={bad: bad})
    evaluated(tmp_path / "sweep" / "vit_micro_00000001", record, other)
    evaluated(tmp_path / "sweep" / "vit_micro_00000002")
    pages = [page_of(tmp_path / "sweep"), page_of(tmp_path / "sweep" / "vit_micro_00000001")]
    for page in pages:
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert" in page


def test_a_run_without_evaluations_has_no_section(tmp_path: Path) -> None:
    assert HEADING not in page_of(bare_run(tmp_path / "run"))
    assert HEADING not in page_of(evaluated(tmp_path / "none"))


def test_evaluations_during_training_are_one_chart(tmp_path: Path) -> None:
    path = bare_run(tmp_path / "run")
    assert "during training" not in page_of(path)
    first = {"step": 0, "knn_top1": 20.0, "linear/top1": 30.0, "linear/top5": 70.0}
    later = {"step": 900, "linear/top1": 60.0, "attention/jaccard_mean": 40.0, "teacher/entropy": 1.0}
    write_lines(path / "metrics.jsonl", [first | {"attention/jaccard_mean": None}, later])
    figure = run_figures(load_run(path))[0][-1]
    assert figure.title == "Evaluations during training, percent"
    assert figure.columns[1:] == ("Linear classifier: top-1", "Attention maps: Jaccard, mean of the heads")
    assert figure.table == [("0", "30.0", "–"), ("900", "60.0", "40.0")]
    assert figure.spec["layer"][1]["mark"]["opacity"] == 1  # the points
    assert f"<h3>{figure.title}</h3>" in page_of(path)


def sweep_of(folder: Path, *runs: list[Any]) -> SweepData:
    """Write a sweep of runs with a k-NN of 72 % in training."""
    for index, records in enumerate(runs):
        path = bare_run(folder / f"vit_micro_{index:08x}")
        if records:
            write_json(path / FILE, records)
    sweep = load(folder)
    assert isinstance(sweep, SweepData)
    return sweep


def test_a_sweep_has_columns_of_the_newest_figures(tmp_path: Path) -> None:
    sweep = sweep_of(
        tmp_path / "sweep",
        [result("linear", {"top1": 50.0}), result("linear", {"val_top1": 1.0, "top1": 80.0})],
        [],
        [result("linear", {"top1": 70.0}, images__image_size=64, weights__step=100)],
    )
    problems: list[str] = []
    heads, rows = table(sweep, ["a", "b", "c"], problems)
    at = [head.text for head in heads].index("linear %")
    assert heads[at] == ("linear %", "Linear classifier: top-1, the newest result", True)
    assert [cells[at] for _, _, cells in rows] == [("80.0", 80.0), ("–", ""), ("70.0", 70.0)]
    assert all(len(cells) == len(heads) for _, _, cells in rows)
    assert problems == [
        "Linear classifier: the runs' figures were measured differently, in image_size.",
        "Linear classifier: the figure of 1 run is not of the last step.",
    ]
    page = page_of(tmp_path / "sweep")
    assert 'title="Linear classifier: top-1, the newest result">linear %</button>' in page


def test_at_most_six_columns_and_none_for_the_knn_of_training(tmp_path: Path) -> None:
    same, other = result("knn", {"top1_k20": 72.0}), result("knn", {"top1_k20": 72.3})
    assert columns(sweep_of(tmp_path / "same", [same], [same]).runs, []) == []
    (column,) = columns(sweep_of(tmp_path / "other", [same], [other]).runs, [])
    assert column.values == [72.0, 72.3]
    many = [result(f"odd{index}", {"x": 1.0}) for index in range(9)]
    assert len(columns(sweep_of(tmp_path / "many", many).runs, [])) == MOST_COLUMNS
    # If no run has the main figure, the first figure is shown.
    (column,) = columns(sweep_of(tmp_path / "few", [result("low_shot", {"top1_share0.1": 60.0})]).runs, [])
    assert column.values == [60.0]


def test_a_runs_page_is_rewritten_after_an_evaluation(tmp_path: Path) -> None:
    sweep_of(tmp_path / "sweep", [], [])
    page_of(tmp_path / "sweep")
    first, second = (path / "report" / "index.html" for path in sorted((tmp_path / "sweep").glob("vit_*")))
    for page in (first, second):
        os.utime(page, (1, 1))
    write_json(first.parents[1] / FILE, [result("linear", {"top1": 80.0})])
    page_of(tmp_path / "sweep")
    assert HEADING in first.read_text()
    assert second.stat().st_mtime == 1


def test_watching_sees_a_new_evaluation(tmp_path: Path) -> None:
    path = bare_run(tmp_path / "run")
    before = fingerprint(path)
    write_json(path / FILE, [])
    assert len(fingerprint(path)) == len(before) + 1


def test_results_of_equal_settings_are_compared(tmp_path: Path) -> None:
    for side, tops in (("a", [70.0, 74.0]), ("b", [80.0, 82.0])):
        runs = [{"values": {"trainer.seed": seed}} for seed in range(2)]
        write_sweep(tmp_path / side, runs)
        for path, top in zip(sorted((tmp_path / side).glob("vit_*")), tops, strict=True):
            size = 64 if side == "a" else 32
            records = [
                result("linear", {"top1": top, "top5": None}, weights__sha256=f"{side}{top}"),
                result("linear", {"top1": top + 1}, settings__k=[1]),
                result("knn", {"top1_k20": top}, images__image_size=size),
            ]
            write_json(path / FILE, records)
    where = "Linear classifier, shapes, teacher, last checkpoint"
    assert evaluation_rows(compare(tmp_path / "a", tmp_path / "b")) == [
        ("all", f"{where}, k = [1]", "top-1", "73.0 ± 2.8 (n=2)", "82.0 ± 1.4 (n=2)", "+9.0"),
        ("all", f"{where}, k = [10, 20]", "top-1", "72.0 ± 2.8 (n=2)", "81.0 ± 1.4 (n=2)", "+9.0"),
    ]
    out = tmp_path / "out"
    assert main(["--compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
    assert "73.0 ± 2.8 (n=2)" in (out / "index.html").read_text()
