"""Linear classifiers against torch's own SGD and scikit-learn's optimum, and how their setting is chosen."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from dino_exp.config.evaluation_schema import LinearConfig
from dino_exp.data.source import Splits
from dino_exp.errors import UserError
from dino_exp.eval.extraction import block_rows
from dino_exp.eval.finetune.training_images import training_images
from dino_exp.eval.linear.linear_data import AugmentedRows, Choice, LabeledRows, choices
from dino_exp.eval.linear.linear_probe import Linear, best, usual_epochs
from dino_exp.eval.linear.linear_sweep import Classifiers, train
from tests.data.sources import held_out, labels_of
from tests.eval.subjects import GivenData, block_features, images, labeled_data, subject, tiny_vit

CPU = torch.device("cpu")


def linear(**changes: Any) -> Linear:
    fields: dict[str, Any] = dict(blocks=[1, 3], epochs=20, batch_size=64)
    return Linear(LinearConfig(**fields | changes))


def clouds(
    each: int, classes: int = 6, *, rows: int = 4, seed: int = 1, spread: float = 1.8
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (N, rows, 8) around a center per class and row, classes in turn, and the labels."""
    centers = torch.randn(classes, rows, 8, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(each * classes) % classes
    noise = torch.randn(len(labels), rows, 8, generator=torch.Generator().manual_seed(seed))
    return centers[labels] + spread * noise, labels


def usual() -> GivenData:
    return labeled_data(*clouds(50), *clouds(40, seed=2))


def rows_of(features: torch.Tensor, labels: torch.Tensor) -> LabeledRows:
    return LabeledRows.of(block_features(features), 99, images(labels.numpy(), size=4), CPU)


def trained(rows: LabeledRows, chosen: list[Choice], lrs: list[float], **changes: Any) -> list[Classifiers]:
    settings: dict[str, Any] = dict(classes=6, momentum=0.9, weight_decay=0.01, seed=3, device=CPU) | changes
    classifiers = [Classifiers(rows.columns(choice), lrs, **settings) for choice in chosen]
    train(classifiers, lambda epoch: rows.epoch(epoch, 5, 64), epochs=4, batch_size=64)
    return classifiers


def test_a_classifier_equals_torchs_with_the_released_loop() -> None:
    features, labels = clouds(25)
    rows = rows_of(features, labels)
    ours = trained(rows, [Choice(1, True)], [0.3])[0]

    theirs = nn.Linear(16, 6)
    initial = Classifiers(
        slice(0, 16), [1.0], classes=6, momentum=0, weight_decay=0, seed=3, device=CPU
    ).weight[:, 0]
    assert initial.std().item() == pytest.approx(0.01, rel=0.3)
    with torch.no_grad():
        theirs.weight.copy_(initial)
        theirs.bias.zero_()
    sgd = torch.optim.SGD(theirs.parameters(), 0.3 * 64 / 256, momentum=0.9, weight_decay=0.01)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 4, eta_min=0)
    for epoch in range(4):
        for batch, targets in rows.epoch(epoch, 5, 64):
            loss = nn.CrossEntropyLoss()(theirs(batch[:, 16:]), targets)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        cosine.step()
    torch.testing.assert_close(ours.weight[:, 0], theirs.weight.detach(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.bias[:, 0], theirs.bias.detach(), atol=1e-6, rtol=1e-5)


def test_a_classifier_does_not_depend_on_the_others_in_the_sweep() -> None:
    rows = rows_of(*clouds(25))
    lrs = [0.01, 0.1, 1.0, 1e30]
    together = trained(rows, choices([1, 3], [False, True], 3), lrs)
    for position, choice in enumerate(choices([1, 3], [False, True], 3)):
        for number, lr in enumerate(lrs[:-1]):
            alone = trained(rows, [choice], [lr])[0]
            torch.testing.assert_close(
                together[position].weight[:, number], alone.weight[:, 0], atol=1e-6, rtol=0
            )
    assert not together[0].logits(torch.ones(1, 32))[:, 3].isfinite().all()


def test_choices_are_the_last_class_tokens_in_order_and_then_the_mean() -> None:
    features = torch.arange(4.0).view(1, 4, 1).expand(6, 4, 2)  # three class tokens 0, 1, 2, and the mean 3
    rows = rows_of(features, torch.arange(6))
    seen = {
        choice: next(rows.batches(1))[0][0, rows.columns(choice)].tolist()
        for choice in choices([1, 3], [False, True], 3)
    }
    assert seen == {
        (1, False): [2, 2],
        (1, True): [2, 2, 3, 3],
        (3, False): [0, 0, 1, 1, 2, 2],
        (3, True): [0, 0, 1, 1, 2, 2, 3, 3],
    }


def test_an_epoch_reads_each_image_once_and_does_not_copy_a_mapped_file(tmp_path: Path) -> None:
    values, labels = clouds(25)
    values.numpy().tofile(tmp_path / "values")
    mapped = torch.from_file(str(tmp_path / "values"), size=values.numel()).view(values.shape)
    known = LabeledRows.of(block_features(mapped), 1, images(labels.numpy(), size=4), CPU)
    assert known.values.untyped_storage().data_ptr() == mapped.untyped_storage().data_ptr()
    part = replace(known, rows=np.arange(10, 110))
    read = [torch.cat([features for features, _ in part.epoch(epoch, 0, 32)]) for epoch in (0, 1)]
    assert not read[0].equal(read[1])
    for features in read:
        torch.testing.assert_close(
            features.sort(dim=0).values, values[10:110, 2:].flatten(1).sort(dim=0).values
        )


def test_sgd_and_logistic_regression_come_close_to_the_optimum(tmp_path: Path) -> None:
    data, given_subject = labeled_data(*clouds(200), *clouds(200, seed=2)), subject()
    train_features, test_features = (
        data.features(split).values.flatten(1).numpy() for split in ("train", "test")
    )
    scaler = StandardScaler().fit(train_features)
    labels, test_labels = labels_of(data.splits.train), labels_of(held_out(data.splits))
    optimum = LogisticRegression(C=0.1, max_iter=2000).fit(scaler.transform(train_features), labels)
    expected = 100 * optimum.score(scaler.transform(test_features), test_labels)
    assert 80 < expected < 99  # neither too hard nor too easy
    for method, standardize in (("sgd", False), ("sgd", True), ("logistic", False)):
        evaluation = linear(method=method, standardize=standardize)
        evaluation.check(given_subject, data)
        found = evaluation.evaluate(given_subject, data, tmp_path)
        assert set(found.figures) == {"top1", "top5", "val_top1"}
        assert found.figures["top1"] == pytest.approx(expected, abs=1.0)
        assert found.figures["top5"] > found.figures["top1"]
        assert found.details["blocks"] == 3
        assert found.details["images"] == {"train": 1200, "validation": 120, "test": 1200}
        assert len(found.details["settings"]) == 4 * (13 if method == "sgd" else 5)
        assert max(each["val_top1"] for each in found.details["settings"]) == found.figures["val_top1"]


def test_standardizing_helps_where_a_common_mean_hides_the_classes(tmp_path: Path) -> None:
    (features, labels), (unseen, test_labels) = clouds(100), clouds(100, seed=2)
    hidden = labeled_data(10 + 0.05 * features, labels, 10 + 0.05 * unseen, test_labels)
    raw, standardized = (
        linear(standardize=choice).evaluate(subject(), hidden, tmp_path).figures["top1"]
        for choice in (False, True)
    )
    assert raw < 60
    assert standardized > 85
    scaling = rows_of(features, labels).own_scaling(64)
    expected = StandardScaler().fit(features.flatten(1).numpy())
    np.testing.assert_allclose(scaling.mean, expected.mean_, atol=1e-5)
    np.testing.assert_allclose(scaling.deviation, expected.scale_, rtol=1e-5)
    features[:, 2] = 7.7
    constant = rows_of(features, labels).own_scaling(64)
    assert constant(features.flatten(1))[:, 16:24].abs().max() < 1e-5


@pytest.mark.parametrize("method", ["sgd", "logistic"])
def test_held_out_images_choose_nothing(tmp_path: Path, method: str) -> None:
    data = usual()
    found = linear(method=method).evaluate(subject(), data, tmp_path)
    wrong = labeled_data(*clouds(50), clouds(40, seed=2)[0], (clouds(40)[1] + 1) % 6)
    poisoned = linear(method=method).evaluate(subject(), wrong, tmp_path)
    assert poisoned.details == found.details
    assert poisoned.figures["val_top1"] == found.figures["val_top1"]
    assert poisoned.figures["top1"] < 20 < found.figures["top1"]


def test_diverged_classifiers_are_not_chosen(tmp_path: Path) -> None:
    found = linear(lrs=[1e-2, 1e38], standardize=False).evaluate(subject(), usual(), tmp_path)
    assert found.details["lr"] == 1e-2
    assert found.figures["top1"] > 80
    assert found.notes[0] == "4 of 8 classifiers diverged."
    assert [each["val_top1"] for each in found.details["settings"]][1::2] == [None] * 4
    hopeless = linear(lrs=[1e38, 2e38], standardize=False).evaluate(subject(), usual(), tmp_path)
    assert math.isnan(hopeless.figures["top1"])
    assert hopeless.notes[0].startswith("The classifier is not finite")
    features, labels = clouds(20)
    features[7] = math.nan
    for method in ("sgd", "logistic"):
        broken = linear(method=method).evaluate(
            subject(), labeled_data(features, labels, features, labels), tmp_path
        )
        assert math.isnan(broken.figures["top1"])


def test_ties_go_to_the_smaller_strength_and_then_to_the_smaller_feature() -> None:
    assert best([0.1, 0.2, 0.1, 0.2], np.array([50.0, 70.0, 70.0, 70.0])) == 2
    assert best([0.2, 0.1, 0.1], np.array([math.nan, 0.0, 0.0])) == 1
    assert best([0.1, 0.2], np.array([math.nan, math.nan])) == 0


def test_a_note_says_that_the_best_strength_is_at_the_end_of_its_list(tmp_path: Path) -> None:
    found = linear(lrs=[1e-6, 1e-3]).evaluate(subject(), usual(), tmp_path)
    assert found.notes == [
        "The best learning rate, 0.001, is the largest in linear.lrs; try larger ones too."
    ]


def test_a_backbone_without_class_token_has_one_feature(tmp_path: Path) -> None:
    convnet = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    (features, labels), (unseen, test_labels) = clouds(20, 3, rows=1), clouds(20, 3, rows=1, seed=2)
    data = labeled_data(features, labels, unseen, test_labels)
    evaluation = linear(lrs=[0.01, 0.1])
    evaluation.check(subject(convnet), data)
    found = evaluation.evaluate(subject(convnet), data, tmp_path)
    assert set(found.figures) == {"top1", "val_top1"}  # three classes: no top5
    assert (found.details["blocks"], found.details["patch_mean"]) == (None, None)
    assert len(found.details["settings"]) == 2
    assert "no class token" in found.notes[0]


def test_augmented_images_have_the_features_of_their_epoch() -> None:
    source, network = images([0, 1, 2] * 7, size=40), subject(tiny_vit())
    indices = torch.tensor([number for number in range(21) if number != 4])
    rows = AugmentedRows(network, source, indices, 2)
    epochs = [list(rows.epoch(epoch, 0, 8)) for epoch in (0, 1)]
    assert [len(labels) for _, labels in epochs[0]] == [8, 8, 4]
    settings: dict[str, Any] = dict(seed=0, image_size=32, scale=(0.08, 1.0), batch_size=20, workers=0)
    for epoch, batches in enumerate(epochs):
        cut, order = next(training_images(source, indices.tolist(), epoch=epoch, **settings))
        expected = block_rows(network.backbone, network.normalized(cut), 2).flatten(1)
        features, labels = (torch.cat(each) for each in zip(*batches, strict=True))
        nearest = torch.cdist(features, expected).argmin(dim=1)
        assert sorted(nearest.tolist()) == list(range(20))
        torch.testing.assert_close(features, expected[nearest], atol=1e-5, rtol=0)
        assert labels.tolist() == (torch.tensor(order)[nearest] % 3).tolist()
    assert not epochs[0][0][0].allclose(epochs[1][0][0])


def test_the_released_protocol_and_a_sweep_over_it(tmp_path: Path) -> None:
    train, test = images([0, 1] * 10), images([0, 1] * 6)
    network = subject()
    data = GivenData(Splits(train, test))
    for name, source in (("train", train), ("test", test)):
        data.given[name] = block_features(block_rows(network.backbone, network.normalized(source.images), 3))
    released = linear(blocks=[3], patch_mean=[False], lrs=[0.001], epochs=2, val_share=0.0, augment=True)
    released.check(network, data)
    found = released.evaluate(network, data, tmp_path)
    assert set(found.figures) == {"top1"}
    assert found.details["images"] == {"train": 20, "validation": 0, "test": 12}
    swept = linear(lrs=[0.001, 0.1], epochs=2, val_share=0.2, augment=True).evaluate(network, data, tmp_path)
    assert swept.details["images"] == {"train": 16, "validation": 4, "test": 12}
    assert swept.notes[-1].startswith("Trained without the 4 images")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(val_share=0.0), r"linear.val_share = 0: nothing would choose among 52 settings"),
        (dict(val_share=0.0, method="logistic"), r"among 20 settings.*linear.cs"),
        (dict(lrs=[]), r"linear.lrs = \[\]: give at least one value"),
        (dict(val_share=0.001), r"linear.val_share = 0.001: too small a share of 300 training images"),
        (dict(method="logistic", augment=True), r"linear.augment = true: only linear.method=sgd"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        linear(**changes).check(subject(), usual())


def test_images_without_two_classes_are_refused() -> None:
    labels = images([0, 1] * 5)
    nameless = images([0, 1] * 5)
    nameless.labels = None
    for splits, message in (
        (Splits(labels, None), "no held-out images"),
        (Splits(nameless, labels), "training images have no labels"),
        (Splits(images([1] * 8), images([1] * 4)), "All 8 training images have the same label (1)"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            linear().check(subject(), GivenData(splits))


def test_too_large_a_number_of_blocks_means_all_of_them(tmp_path: Path) -> None:
    found = linear(blocks=[1, 9]).evaluate(subject(), usual(), tmp_path)
    assert {each["blocks"] for each in found.details["settings"]} == {1, 3}
    assert found.notes[0].startswith("linear.blocks = [1, 9]: the backbone has 3; more means all.")


def test_usual_epochs_make_12500_steps_within_bounds() -> None:
    assert usual_epochs(1_281_167, 1024) == 10
    assert usual_epochs(1_000, 1024) == 100
    assert usual_epochs(300_000, 1024) == 43  # of 293 steps
