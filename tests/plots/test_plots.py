import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from dino_exp.plots.png import FILE_LIMIT, save
from dino_exp.plots.run_curves import curves_figure, plot_curves
from dino_exp.plots.sheets import attention_figure, crops_figure, plot_attention, plot_crops

LN_K = math.log(64)


def run_metrics(steps: Sequence[int] = (0, 50, 100, 150)) -> list[dict[str, Any]]:
    shares = {"teacher/entropy_share": 0.9, "student/entropy_share": 0.95, "kl_share": 0.2}
    shares["teacher/mutual_information_share"] = 0.1
    constant = {"ln_k": LN_K, "lr": 1e-3, "teacher_temp": 0.02, "center_norm": 1.0, **shares}
    return [
        constant
        | {
            "step": step,
            "loss": 4.0 - step / 100,
            "ema_momentum": 0.99 + step / 1e5,
            "verdict": "healthy" if step else "too early to tell",
        }
        | ({"knn_top1": 23.0 + step / 5, "student_knn_top1": 22.0 + step / 5} if step % 100 == 0 else {})
        for step in steps
    ]


def panel(figure: Figure, title: str) -> Axes:
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left").startswith(title)]
    return axes


def lines(axes: Axes) -> dict[object, tuple[list[float], list[float]]]:
    """Return steps and values by the label of the line; labels of dashed levels start with `_`."""
    curves = {line.get_label(): np.asarray(line.get_xydata()).T for line in axes.lines}
    return {label: (steps.tolist(), values.tolist()) for label, (steps, values) in curves.items()}


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_curves_show_the_run_in_six_panels() -> None:
    figure = curves_figure(run_metrics(), name="vit-3f9a")
    assert figure.get_suptitle() == "vit-3f9a: healthy"
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Loss",
        "Entropy of the outputs",
        "Mutual information and KL",
        "Norm of the center",
        "k-NN top-1",
        "Learning rate",
        "EMA momentum λ",
        "Teacher temperature τₜ",
    ]
    loss = panel(figure, "Loss")
    assert lines(loss)["loss"] == ([0, 50, 100, 150], [4.0, 3.5, 3.0, 2.5])
    assert lines(loss)["_ln K = 4.159: uniform collapse"][1] == [LN_K, LN_K]
    assert loss.get_ylim()[1] > LN_K  # the level lies above the curve and is still seen
    entropy = panel(figure, "Entropy")
    assert texts(entropy) == ["1: uniform", "0: one-hot"]
    assert lines(entropy)["student"][1] == [0.95] * 4
    information = lines(panel(figure, "Mutual"))
    assert information["teacher: mutual information"][1] == [0.1] * 4
    assert information["KL(teacher ‖ student)"][1] == [0.2] * 4
    knn = panel(figure, "k-NN")
    assert lines(knn)["teacher"] == ([0, 100], [23.0, 43.0])
    assert lines(knn)["student"] == ([0, 100], [22.0, 42.0])
    assert texts(knn) == ["untrained: 23.0"]
    assert lines(panel(figure, "EMA"))["EMA momentum λ"][1][-1] == pytest.approx(0.9915)


def test_a_first_evaluation_after_step_0_is_not_called_untrained() -> None:
    figure = curves_figure(run_metrics(steps=(100, 200)), name="resumed")
    assert texts(panel(figure, "k-NN")) == ["at step 100: 43.0"]


def test_missing_and_non_finite_values_are_mentioned_and_not_drawn() -> None:
    metrics = run_metrics()
    for record in metrics:
        for key in ("knn_top1", "student_knn_top1", "center_norm", "verdict"):
            record.pop(key, None)
    metrics[2]["loss"] = math.nan
    metrics[3]["loss"] = None
    figure = curves_figure(metrics, name="diverged")
    assert figure.get_suptitle() == "diverged"
    assert lines(panel(figure, "Loss: not finite at step 100"))["loss"] == ([0, 50], [4.0, 3.5])
    for title in ("k-NN", "Norm"):
        assert texts(panel(figure, title)) == ["not logged"]
        assert not panel(figure, title).lines


def test_a_single_point_is_visible() -> None:
    figure = curves_figure(run_metrics(steps=(0,)), name="short")
    (loss, _) = panel(figure, "Loss").lines
    assert loss.get_marker() == "o"
    low, high = panel(figure, "Loss").get_xlim()
    assert low < 0 < high


def test_a_title_that_is_not_unicode_is_drawn(tmp_path: Path) -> None:
    save(Figure(), tmp_path / "untitled.png")
    figure = Figure()
    figure.suptitle("\udce9.pth")
    save(figure, tmp_path / "titled.png")
    assert (tmp_path / "titled.png").read_bytes() != (tmp_path / "untitled.png").read_bytes()


def test_threads_save_identical_curves(tmp_path: Path) -> None:
    run = tmp_path / "vit-3f9a"
    run.mkdir()
    metrics = run / "metrics.jsonl"
    outs = [run / "plots" / f"{number}.png" for number in range(3)]
    assert not plot_curves(metrics, outs[0])
    metrics.write_text("")
    assert not plot_curves(metrics, outs[0])
    assert not outs[0].exists()

    metrics.write_text("".join(json.dumps(record) + "\n" for record in run_metrics()))
    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(lambda out: plot_curves(metrics, out), outs))
    with Image.open(outs[0]) as curves:
        assert curves.size == (1800, 984)
    assert outs[0].stat().st_size < FILE_LIMIT
    assert outs[0].read_bytes() == outs[1].read_bytes() == outs[2].read_bytes()
    assert sorted(path.name for path in (run / "plots").iterdir()) == ["0.png", "1.png", "2.png"]


def noise(n: int, channels: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, side, side), generator=generator, dtype=torch.uint8)


def shown(axes: Axes) -> np.ndarray:
    (image,) = axes.images
    return np.asarray(image.get_array())


def test_attention_before_and_now_share_a_color_scale() -> None:
    images, maps = noise(2, 3, 32), torch.rand(2, 8, 8, 8)
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[:, 8:20, 4:12] = True
    untrained = torch.full((2, 8, 8, 8), 1 / 64)
    figure = attention_figure(images, maps, masks, untrained, caption="mass 61%")
    cells = np.array(figure.axes).reshape(2, 10)
    assert figure.get_suptitle() == "mass 61%"
    assert [axes.get_title() for axes in cells[0]] == [
        "image",
        "object",
        "attention,\nuntrained",
        "attention,\nnow",
        *(f"head {head}" for head in range(1, 7)),
    ]
    assert np.array_equal(shown(cells[1, 0]), images[1].permute(1, 2, 0).numpy())
    assert cells[1, 0].images[0].get_interpolation() == "nearest"
    np.testing.assert_allclose(shown(cells[1, 3]), maps[1].mean(dim=0))
    np.testing.assert_allclose(shown(cells[0, 9]), maps[0, 5])
    peak = pytest.approx(maps[0].mean(dim=0).max().item())
    assert cells[0, 2].images[0].get_clim() == cells[0, 3].images[0].get_clim() == (0, peak)
    assert cells[0, 3].images[0].get_extent() == [-0.5, 31.5, 31.5, -0.5]
    # The outline runs along pixel edges: half a pixel outside the mask's outermost centers.
    corners = np.concatenate([path.vertices for path in cells[0, 1].collections[-1].get_paths()])
    np.testing.assert_allclose(corners.min(axis=0), [3.5, 7.5], atol=0.1)
    np.testing.assert_allclose(corners.max(axis=0), [11.5, 19.5], atol=0.1)


@pytest.mark.parametrize(
    ("channels", "expected", "note"),
    [
        (1, lambda p: p[0], ""),
        (2, lambda p: p[[0, 1, 1]].permute(1, 2, 0), "channel 1 is red, channel 2 cyan"),
        (13, lambda p: p[:3].permute(1, 2, 0), "channels 1–3 of 13"),
    ],
)
def test_images_with_any_number_of_channels_are_shown(
    channels: int, expected: Callable[[torch.Tensor], torch.Tensor], note: str
) -> None:
    images = noise(1, channels, 16)
    figure = attention_figure(images, torch.rand(1, 1, 4, 4), None, None)
    assert [axes.get_title() for axes in figure.axes] == ["image", "attention,\nnow"]
    assert np.array_equal(shown(figure.axes[0]), expected(images[0]).numpy())
    assert note in figure.texts[-1].get_text()


def test_crops_sheet_undoes_the_normalization() -> None:
    image, crop, small = noise(1, 3, 32)[0], noise(1, 3, 32)[0], noise(1, 3, 16)[0]
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]

    def normalized(pixels: torch.Tensor) -> torch.Tensor:
        return (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    figure = crops_figure([(image, [normalized(crop), small, small])], mean=mean, std=std)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["image", "global 1\n32 px", "local 1\n16 px", "local 2\n16 px"]
    assert np.array_equal(shown(figure.axes[1]), crop.permute(1, 2, 0).numpy())


def test_sheets_have_enough_pixels_in_small_files(tmp_path: Path) -> None:
    plot_attention(noise(2, 3, 32), torch.rand(2, 2, 8, 8), None, None, tmp_path / "a" / "attention.png")
    with Image.open(tmp_path / "a" / "attention.png") as attention:
        assert attention.width == 720
        assert attention.height > 2 * 150  # each 32-pixel image takes more than 150 pixels
    # Noise is the worst that PNG can get.
    plot_crops([(noise(1, 3, 160)[0], list(noise(5, 3, 160)))] * 4, tmp_path / "crops.png")
    assert (tmp_path / "crops.png").stat().st_size < FILE_LIMIT
