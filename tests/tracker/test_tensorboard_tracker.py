"""The TensorBoard tracker, read back with TensorBoard's own reader."""

import logging
import sys
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dino_exp.errors import UserError
from dino_exp.tracker import NoTracker, RunInfo, Tracker
from dino_exp.tracker.tensorboard import TensorboardTracker


def run_info(directory: Path, resume_step: int = 0) -> RunInfo:
    return RunInfo(directory, "small-run", None, {"loss": {"teacher_temp": 0.04}}, "abc123", resume_step)


def read_back(directory: Path) -> EventAccumulator:
    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    return events


def test_scalars_images_and_texts_are_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (8, 4), "red").save(tmp_path / "loss.png")
    tracker: Tracker = TensorboardTracker(mode="auto")
    tracker.start(run_info(tmp_path))
    tracker.log({"loss": 8.25, "step": 10, "verdict": "healthy", "knn_top1": None}, step=10)
    tracker.log({"loss": 7.5, "knn_top1": 43}, step=20)
    tracker.image("plots/loss", tmp_path / "loss.png", step=20)
    tracker.image("plots/missing", tmp_path / "missing.png", step=20)
    tracker.alert("collapse", "The teacher's entropy is ln K.")
    tracker.finish({"verdict": "healthy"}, exit_code=0)
    tracker.log({"loss": 1.0}, step=30)  # after the end, so it is ignored

    events = read_back(tmp_path)
    assert events.Tags()["scalars"] == ["loss", "knn_top1"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 8.25), (20, 7.5)]
    assert [(event.step, event.value) for event in events.Scalars("knn_top1")] == [(20, 43.0)]
    (image,) = events.Images("plots/loss")
    assert (image.step, image.width, image.height) == (20, 8, 4)
    texts = {
        tag: [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }
    assert sorted(texts) == ["alert/text_summary", "config/text_summary", "summary/text_summary"]
    assert '"teacher_temp": 0.04' in texts["config/text_summary"][0]
    assert '"exit_code": 0' in texts["summary/text_summary"][0]
    (message,) = caplog.messages
    assert "missing.png cannot be read and is skipped" in message


def test_steps_after_the_checkpoint_are_purged_on_resume(tmp_path: Path) -> None:
    tracker = TensorboardTracker(mode="auto")
    # stopped after step 5, resumed from the checkpoint of step 3
    for first_step, last_step in ((1, 5), (4, 6)):
        tracker.start(run_info(tmp_path, resume_step=first_step - 1))
        for step in range(first_step, last_step + 1):
            tracker.log({"loss": 10.0 * first_step + step}, step)
        tracker.finish({}, exit_code=0)
    scalars = [(event.step, event.value) for event in read_back(tmp_path).Scalars("loss")]
    assert scalars == [(1, 11), (2, 12), (3, 13), (4, 44), (5, 45), (6, 46)]


def test_a_missing_package_is_an_error_with_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        TensorboardTracker(mode="auto")
    TensorboardTracker(mode="disabled")


def test_an_unwritable_directory_turns_the_tracker_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    caplog.set_level(logging.INFO, logger="dino_exp.tracker")
    tracker = TensorboardTracker(mode="auto")
    tracker.start(run_info(tmp_path))
    tracker.log({"loss": 8.25}, step=10)
    tracker.finish({}, exit_code=0)
    (message,) = caplog.messages
    assert message.startswith("TensorBoard: off, because of ")


def test_disabled_and_no_tracker_write_nothing(tmp_path: Path) -> None:
    trackers: list[Tracker] = [TensorboardTracker(mode="disabled"), NoTracker()]
    for tracker in trackers:
        tracker.start(run_info(tmp_path))
        tracker.log({"loss": 8.25}, step=10)
        tracker.image("plots/loss", tmp_path / "loss.png", step=10)
        tracker.alert("collapse", "now")
        tracker.finish({}, exit_code=0)
    assert list(tmp_path.iterdir()) == [tmp_path / "home"]
