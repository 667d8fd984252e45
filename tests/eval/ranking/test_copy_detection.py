from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from dino_exp.config.evaluation_schema import CopyDetectionConfig
from dino_exp.errors import UserError
from dino_exp.eval.ranking.copy_detection import CopyDetection, descriptor, whitening
from tests.eval import published_layouts as layouts
from tests.eval.subjects import NO_DATA, subject, tiny_vit


def copy_detection(root: Path | None, **changes: Any) -> CopyDetection:
    return CopyDetection(CopyDetectionConfig(**dict(root=root and str(root), image_size=16) | changes))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three originals; the copies of the first find it first and second, that of the last first."""
    for name, degrees in (("200000", 0), ("200100", 60), ("200200", 80)):
        layouts.save(layouts.flat(degrees), tmp_path / "original" / f"{name}.jpg")
    for name, degrees in (("200001", 10), ("200002", 35), ("200201", 75)):
        layouts.save(layouts.flat(degrees, (16, 24)), tmp_path / "strong" / f"{name}.jpg")
    return tmp_path


def test_the_figure_is_that_of_the_known_order(root: Path, tmp_path: Path) -> None:
    chosen = subject(layouts.MeanColor())
    plain = copy_detection(root)
    plain.check(chosen, NO_DATA)
    found = plain.evaluate(chosen, NO_DATA, tmp_path / "out")
    assert found.figures == pytest.approx({"map_strong": 100 * (1 + (0 + 1 / 2) / 2 + 1) / 3})
    assert found.details == {"copies": 3, "originals": 3, "distractors": 0, "whitening_images": 0}
    assert "10,000 distractors" in found.notes[0]

    # One distractor before the original of the second copy, and 20 before that of the last.
    for number in range(20):
        layouts.save(layouts.flat(75 if number else 40), root / "others" / "a" / f"{number}.png")
    found = copy_detection(root, distractors=str(root / "others")).evaluate(chosen, NO_DATA, tmp_path / "out")
    assert found.details["distractors"] == 20
    assert found.figures == pytest.approx({"map_strong": 100 * (1 + (0 + 1 / 3) / 2 + (0 + 1 / 20) / 2) / 3})
    layouts.save(layouts.flat(75), root / "others" / "20.jpg")
    found = copy_detection(root, distractors=str(root / "others")).evaluate(chosen, NO_DATA, tmp_path / "out")
    assert found.figures == pytest.approx({"map_strong": 100 * (1 + (0 + 1 / 3) / 2 + 0) / 3})


def test_what_systems_leave_is_no_image(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(2):
        layouts.save(layouts.flat(90), root / "others" / f"{number}.jpg")
    (root / "others" / "2.svg").write_text("<svg/>")
    evaluation, chosen = copy_detection(root, distractors=str(root / "others")), subject(layouts.MeanColor())
    before = evaluation.evaluate(chosen, NO_DATA, tmp_path / "out")
    for part in ("original", "strong", "others"):
        layouts.leave_litter(root / part)
    evaluation.check(chosen, NO_DATA)
    found = evaluation.evaluate(chosen, NO_DATA, tmp_path / "out")
    assert (found.figures, found.details) == (before.figures, before.details)
    assert caplog.messages == [f"copy_detection.distractors = {root}/others: skipped 1 .svg (2.svg)."]


def test_whitening_subtracts_the_mean_and_makes_second_moments_equal() -> None:
    torch.manual_seed(0)
    learned_on = torch.randn(500, 3) @ torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.1]]) + 1
    whiten = whitening(learned_on)
    whitened = whiten(learned_on + learned_on.mean(dim=0))  # the mean is subtracted again
    torch.testing.assert_close(whitened.t() @ whitened / 500, torch.eye(3), atol=1e-4, rtol=0)
    # NumPy's eigenvectors give the same products, whatever their signs.
    strengths, directions = np.linalg.eigh((learned_on.t() @ learned_on / 500).double().numpy())
    centered = (learned_on - learned_on.mean(dim=0)).double().numpy()
    expected = centered @ directions / strengths**0.5
    np.testing.assert_allclose(
        whiten(learned_on) @ whiten(learned_on).t(), expected @ expected.T, atol=1e-2, rtol=1e-3
    )
    flat = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    assert whitening(flat)(flat + torch.tensor([[0.0, 1.0]])).isfinite().all()


def test_whitening_is_used(root: Path, tmp_path: Path) -> None:
    for degrees in range(0, 360, 30):
        layouts.save(layouts.flat(degrees), root / "others" / f"{degrees}.jpg")
    chosen = subject(layouts.MeanColor())
    whitened = copy_detection(root, whitening=str(root / "others"), distractors=str(root / "others"))
    whitened.check(chosen, NO_DATA)
    found = whitened.evaluate(chosen, NO_DATA, tmp_path / "out")
    assert found.details["whitening_images"] == found.details["distractors"] == 12
    assert 0 < found.figures["map_strong"] <= 100
    assert len(found.notes) == 0


def test_descriptors_are_class_token_and_pooled_patches(root: Path) -> None:
    network, evaluation = tiny_vit(), copy_detection(root, image_size=24)
    chosen = subject(network)
    files = sorted((root / "strong").iterdir())
    layouts.save(layouts.noise(0, (40, 20)), files[0])
    found = evaluation._features(files, chosen)
    with Image.open(files[0]) as image:
        values = np.array(image.resize((24, 24), Image.Resampling.BICUBIC))
    tokens = network.intermediate_tokens(chosen.normalized(torch.tensor(values).permute(2, 0, 1)[None]), 1)
    patches = tokens[0][0, 1:].clamp(min=1e-6)
    assert patches.shape == (36, 16)
    torch.testing.assert_close(found[0], torch.cat((tokens[0][0, 0], (patches**4).mean(dim=0) ** 0.25)))


def test_networks_without_class_token_pool_their_last_feature_map() -> None:
    network: Any = timm.create_model("resnet10t", num_classes=0).eval()
    batch = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found, spatial = descriptor(network, batch), network.forward_features(batch)
        own = network(batch)
    pooled = (spatial.clamp(min=1e-6) ** 4).mean(dim=(2, 3)) ** 0.25
    torch.testing.assert_close(found, torch.cat((own, pooled), dim=1))


def test_bad_input_is_named(root: Path) -> None:
    def refused(evaluation: CopyDetection, message: str) -> None:
        with pytest.raises(UserError, match=message):
            evaluation.check(subject(tiny_vit()), NO_DATA)

    refused(copy_detection(None), r"copy_detection.root = null.*root/original")
    refused(
        copy_detection(root, image_size=18), r"copy_detection.image_size = 18: .*patch_size = 4.*16 and 20"
    )
    refused(copy_detection(root / "strong"), r"strong/original: no images there")
    refused(
        copy_detection(root, whitening=str(root / "none")), r"copy_detection.whitening = .*no such folder"
    )
    (root / "empty").mkdir()
    refused(
        copy_detection(root, distractors=str(root / "empty")), r"copy_detection.distractors = .*no images"
    )
    layouts.save(layouts.flat(0), root / "strong" / "200301.jpg")
    refused(copy_detection(root), r"200301.jpg: no original 2003\*.jpg in .*original")


def test_a_network_for_another_size_is_named(root: Path) -> None:
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, embed_dim=24, depth=1)
    with pytest.raises(UserError, match=r"copy_detection.image_size = 48: the network cannot take .*48x48"):
        copy_detection(root, image_size=48).check(subject(network), NO_DATA)
