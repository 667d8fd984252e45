"""The map of features: the page's content, and its behavior in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dino_exp.eval.embed import feature_map
from dino_exp.eval.embed.feature_map import (
    FeatureMap,
    MapPoint,
    map_figure,
    thumbnails,
    without_common_folder,
    write_map,
)


def content(count: int, classes: int) -> FeatureMap:
    """Return images on a circle; the nearest of each is the previous one."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    noise = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)

    def name(index: int) -> str:
        return f"/data/val/{index % max(classes, 1)}/{index % count}.jpg"

    def label(index: int) -> str | None:
        return f"<class> {index % count % classes:02d}" if classes else None

    points = [
        MapPoint(name(i), label(i), name(i - 1), label(i - 1), 1 - i / count, url)
        for i, url in enumerate(thumbnails(list(noise)))
    ]
    coordinates = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return FeatureMap("Features of tiny", "t-SNE (cosine)", coordinates, points, [("Images", str(count))])


def test_every_image_is_in_the_page(tmp_path: Path) -> None:
    write_map(content(40, 4), tmp_path / "map.html")
    text = (tmp_path / "map.html").read_text()
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    columns = json.loads(found[1])["figures"]["features"]["spec"]["datasets"]["images"]
    assert [columns["name"]["words"][i] for i in columns["name"]["indices"]] == [
        f"{i % 4}/{i}.jpg" for i in range(40)
    ]
    assert columns["x"][:2] == [1.0, round(np.cos(2 * np.pi / 40), 3)]
    assert len(columns["image"]["words"]) == 40
    assert columns["nearest"]["words"][5] == "0/4.jpg (<class> 00), cosine 0.875"
    assert not re.search(r"""(src|href)=["']https?:""", text)


def test_classes_differ_by_more_than_color() -> None:
    figure = map_figure(content(40, 20))
    (points,) = (layer for layer in figure.spec["layer"] if "shape" in layer["encoding"])
    domain = points["encoding"]["shape"]["scale"]["domain"]
    shapes = points["encoding"]["shape"]["scale"]["range"]
    colors = 5  # of the theme
    marks = {(shapes[i % len(shapes)], i % colors) for i in range(len(domain))}
    assert len(marks) == 20
    assert "shape" not in json.dumps(map_figure(content(42, 21)).spec["layer"])  # too many to tell apart


def test_thumbnails_become_smaller_until_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = list(torch.randint(0, 256, (20, 3, 48, 48), dtype=torch.uint8))
    large = sum(map(len, thumbnails(noise)))
    monkeypatch.setattr(feature_map, "THUMBNAIL_BYTES", large // 2)
    small = thumbnails(noise)
    assert 0 < sum(map(len, small)) <= large // 2
    assert "" not in small
    monkeypatch.setattr(feature_map, "THUMBNAIL_BYTES", 100)
    assert thumbnails(noise) == [""] * 20
    (gray,) = thumbnails([torch.zeros(1, 8, 8, dtype=torch.uint8)])
    assert gray.startswith("data:image/webp;base64,")
    assert thumbnails([]) == []


def test_names_are_relative_to_the_folder_that_they_share() -> None:
    assert without_common_folder(["/a/b/c1/x.jpg", "/a/b/c2/y.jpg"]) == ["c1/x.jpg", "c2/y.jpg"]
    assert without_common_folder(["/a/b/x.jpg", "/a/b/x.jpg"]) == ["x.jpg", "x.jpg"]
    assert without_common_folder(["shapes test 1", "shapes test 2"]) == ["shapes test 1", "shapes test 2"]


POINTS = "#figure-features [class*='_1_marks'] path"  # of the second layer


@pytest.mark.parametrize(("classes", "dark", "width"), [(3, False, 1300), (0, True, 390), (30, True, 390)])
def test_the_page_opens_without_errors(
    browser: Any, tmp_path: Path, classes: int, dark: bool, width: int
) -> None:
    write_map(content(60, classes), tmp_path / "map.html")
    browser.open(tmp_path / "map.html", width=width, dark=dark)
    assert browser.said() == []
    assert [url for url in browser.asked_for() if not url.startswith(("file:", "data:"))] == []
    assert browser.js("return document.documentElement.scrollWidth") <= width
    assert len(browser.js(f'return [...document.querySelectorAll("{POINTS}")]')) == 60
    assert browser.js("return document.querySelectorAll('#figure-features tbody tr').length") == 60
    assert len(browser.js("return [...document.querySelectorAll('select')]")) == (1 if classes else 0)


def test_the_page_shows_thumbnails_and_single_classes_on_demand(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    write_map(content(60, 3), tmp_path / "map.html")
    browser.open(tmp_path / "map.html")
    points = browser.driver.find_elements(By.CSS_SELECTOR, POINTS)
    ActionChains(browser.driver).move_to_element(points[31]).perform()
    browser.wait("document.querySelector('#vg-tooltip-element.visible img')")
    tip = browser.js("return document.querySelector('#vg-tooltip-element').innerText")
    assert "1/31.jpg" in tip
    assert "<class> 01" in tip
    assert "0/30.jpg (<class> 00), cosine 0.483" in tip
    browser.wait("document.querySelector('#vg-tooltip-element img').naturalWidth === 32")

    heading = browser.driver.find_element(By.TAG_NAME, "h1")
    ActionChains(browser.driver).move_to_element(heading).perform()
    browser.wait("!document.querySelector('#vg-tooltip-element.visible')")  # it may lie over the legend
    shown = f'document.querySelectorAll("{POINTS}").length'
    chooser = browser.driver.find_element(By.TAG_NAME, "select")
    chooser.send_keys(Keys.ARROW_DOWN)  # by keyboard alone
    browser.wait(f"{shown} === 20")
    chooser.send_keys(Keys.ARROW_UP)
    browser.wait(f"{shown} === 60")
    legend = browser.driver.find_elements(By.CSS_SELECTOR, "#figure-features .role-legend-label text")
    legend[2].click()
    browser.wait(f"{shown} === 20")
    assert browser.said() == []
