"""The pages in a real browser."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dino_exp.report.loading import load
from dino_exp.report.page import write_report
from tests.report.synthetic import lines, temps_momenta, write_lines, write_run, write_sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of 40 runs with its report; one run failed, one was lost, and one diverged."""
    folder = tmp_path_factory.mktemp("sweeps") / "temps_momenta"
    runs = temps_momenta(seeds=2)
    runs[3] |= {"state": "failed", "verdict": "diverged", "knn": None}
    runs[5] |= {"state": "failed", "knn": None}
    runs[9] |= {"state": "running"}
    write_sweep(folder, runs)
    write_report(load(folder), folder / "report")
    return folder


def assert_no_errors(browser: Any) -> None:
    assert browser.said() == []
    assert [url for url in browser.asked_for() if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize(("width", "dark"), [(1300, False), (390, True)])
def test_a_sweep_is_drawn_without_errors_and_fits_the_window(
    browser: Any, sweep: Path, width: int, dark: bool
) -> None:
    browser.open(sweep / "report" / "index.html", width=width, dark=dark)
    assert_no_errors(browser)
    assert browser.js("return document.documentElement.scrollWidth") <= width
    charts = browser.js("return [...document.querySelectorAll('.chart')].map(c => c.offsetHeight)")
    assert len(charts) == 10
    assert min(charts) > 100
    ground = browser.js("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") is not dark
    axis = browser.js("return document.querySelector('.chart .role-axis-label text').getAttribute('fill')")
    assert (axis == "#e8e8e6") is dark


def test_a_cell_shows_its_numbers_and_links(browser: Any, sweep: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    browser.open(sweep / "report" / "index.html")
    cells = browser.driver.find_elements(By.CSS_SELECTOR, "#figure-map_knn .cells_marks path")
    assert len(cells) == 20
    sound = next(
        c for c in cells if "teacher_temp 0.02, loss.center_momentum 0:" in c.get_attribute("aria-label")
    )
    ActionChains(browser.driver).move_to_element(sound).perform()
    browser.wait("document.querySelector('#vg-tooltip-element.visible')")
    tip = browser.js("return document.querySelector('#vg-tooltip-element').innerText")
    assert "72.5 ± 0.7 (2 runs)" in tip
    assert "healthy" in tip
    panel = browser.driver.find_element(By.CSS_SELECTOR, "#figure-map_knn .cell-numbers")
    assert "72.5 ± 0.7" in panel.text
    links = panel.find_elements(By.TAG_NAME, "a")
    assert len(links) == 2
    target = links[0].get_attribute("href")
    assert target.endswith("/temps_momenta/vit_micro_run0_00000000/report/index.html")
    assert "entropy is 0.3" in panel.text


def test_enter_on_a_cell_opens_its_run(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    folder = write_sweep(tmp_path / "sweep", temps_momenta())
    name = "vit_micro_run4_00000004"
    write_report(load(folder), folder / "report")
    browser.open(folder / "report" / "index.html")
    browser.js("document.querySelector('#figure-map_knn .cells_marks path[tabindex=\"0\"]').focus()")
    active = browser.driver.switch_to.active_element
    assert "teacher_temp 0.02, loss.center_momentum 0:" in active.get_attribute("aria-label")
    active.send_keys(Keys.ARROW_RIGHT)
    active = browser.driver.switch_to.active_element
    assert "teacher_temp 0.04, loss.center_momentum 0:" in active.get_attribute("aria-label")
    active.send_keys(Keys.ENTER)
    browser.wait(f"location.pathname.endsWith('{name}/report/index.html')")
    browser.wait("document.body.dataset.ready === 'true'")
    assert browser.js("return document.querySelector('h2').textContent") == "Verdict: healthy"


def test_other_axes_can_be_chosen(browser: Any, sweep: Path) -> None:
    browser.js("sessionStorage.clear()")
    browser.open(sweep / "report" / "index.html")
    choose = "const s = document.getElementById('%s'); s.value = '%s'; s.dispatchEvent(new Event('change'));"
    chosen = "return [document.getElementById('across').value, document.getElementById('up').value]"
    browser.js(choose % ("across", "trainer.seed"))
    browser.wait("document.querySelectorAll('#figure-map_kl .cells_marks path').length === 8")
    browser.wait("document.body.dataset.ready === 'true'")
    sentence = browser.js("return document.getElementById('averaged').textContent")
    assert sentence == "A cell is the mean of its runs, which differ in loss.teacher_temp."
    assert browser.js(chosen) == ["trainer.seed", "loss.center_momentum"]
    head = "document.querySelector('#figure-map_kl th').textContent"
    assert browser.js(f"return {head}") == "trainer.seed"
    browser.js("document.getElementById('swap').click()")
    browser.wait(f"{head} === 'loss.center_momentum'")
    browser.wait("document.body.dataset.ready === 'true'")
    browser.js(choose % ("up", "loss.center_momentum"))  # one axis twice: the other one changes
    browser.wait("document.body.dataset.ready === 'true'")
    assert browser.js(chosen) == ["loss.teacher_temp", "loss.center_momentum"]
    browser.js(
        "const m = document.getElementById('metric'); m.value = 'knn'; m.dispatchEvent(new Event('change'));"
    )
    assert_no_errors(browser)
    browser.js("sessionStorage.clear()")


def test_the_table_is_filtered_and_sorted_with_the_keyboard(browser: Any, sweep: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.open(sweep / "report" / "index.html")
    field = browser.driver.find_element(By.ID, "filter")
    field.send_keys("teacher_temp=0.04 healthy")
    assert browser.driver.find_element(By.ID, "shown").text == "6 of 40 runs"
    shown = "return document.getElementById('shown').textContent"
    filtering = (
        "const f = document.getElementById('filter'); f.value = '%s'; f.dispatchEvent(new Event('input'))"
    )
    browser.js(filtering % "teacher_temp=0.0")
    assert browser.js(shown) == "0 of 40 runs"  # key=value matches the entire value
    browser.js(filtering % "teacher_temp=0.04 healthy")
    rows = "[...document.querySelectorAll('#runs tbody tr:not([hidden])')]"
    visible = f"return {rows}.map(r => r.cells[%d].textContent)"
    assert set(browser.js(visible % 4)) == {"0.04"}
    field.clear()
    field.send_keys(" ")
    focus = browser.driver.switch_to.active_element
    for _ in range(20):
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        focus = browser.driver.switch_to.active_element
        if focus.text.startswith("k-NN"):
            break
    assert focus.tag_name == "button"
    assert browser.js("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    focus.send_keys(Keys.ENTER)
    column = browser.js("return [...document.querySelectorAll('#runs thead th')].findIndex(h => h.ariaSort)")
    values = browser.js(visible % column)
    numbers = [float(value) for value in values if value != "–"]
    assert numbers == sorted(numbers, reverse=True)
    assert values[-2:] == ["–", "–"]
    failures = browser.driver.find_element(By.CSS_SELECTOR, ".failures").text
    assert "RuntimeError: <out of memory>" in failures
    assert "lost" in failures


def test_a_run_is_drawn_without_errors(browser: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_report(load(run), run / "report")
    browser.open(run / "report" / "index.html", width=390)
    assert_no_errors(browser)
    assert browser.js("return document.documentElement.scrollWidth") <= 390
    labels = browser.js(
        "return [...document.querySelectorAll('.chart')].map(c => c.getAttribute('aria-label'))"
    )
    assert len(labels) == 13
    assert any("Line at ln K = 4.159" in label for label in labels)
    levels = browser.js("return [...document.querySelectorAll('h1,h2,h3')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert browser.js("return [...document.querySelectorAll('table')].every(t => t.caption)")


def test_a_sweep_of_a_thousand_runs_is_drawn(browser: Any, tmp_path: Path) -> None:
    shared = tmp_path / "metrics.jsonl"
    write_lines(shared, lines("healthy", 60, 2000, 60.0))
    runs = [
        {
            "values": {
                "optimizer.lr": 1e-4 * 1.1 ** (index % 50),
                "loss.teacher_temp": 0.02 + index // 50 / 100,
            },
            "knn": 30.0 + index / 50,
            "count": 1,
            "metrics": shared,
        }
        for index in range(1000)
    ]
    folder = write_sweep(tmp_path / "sweep", runs)
    page = write_report(load(folder), folder / "report")[0]
    assert page.stat().st_size < 6_000_000
    browser.open(page)
    assert_no_errors(browser)
    assert browser.js("return document.querySelectorAll('#runs tbody tr').length") == 1000
    browser.js(
        "const f = document.getElementById('filter'); f.value = 'teacher_temp=0.1';"
        "f.dispatchEvent(new Event('input'));"
    )
    assert browser.js("return document.getElementById('shown').textContent").endswith("of 1000 runs")
