"""A damaged journal of a search is mended, and kept beside it as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState

from dino_exp.errors import UserError
from launchers.search import JOURNAL
from tests.launchers.searches import FIXED, TEMPERATURE, FakeTraining, run_search, trials, well


def damage(lines: list[bytes], how: str) -> list[bytes]:
    """Return the lines of a journal of complete trials, with some in the middle damaged."""
    made = [number for number, line in enumerate(lines) if b'"op_code":4' in line]
    ended = [number for number, line in enumerate(lines) if b'"op_code":6' in line]
    changed = list(lines)
    if how == "study lost":
        del changed[0]
    elif how == "trial lost":
        del changed[made[2]]
    elif how == "result lost":
        del changed[ended[2]]
    elif how == "byte flipped in a trial":
        changed[made[2]] = changed[made[2]].replace(b":", b"\xba", 1)
    elif how == "zeros over two trials":
        block = b"".join(lines[made[2] : made[4]])
        changed[made[2] : made[4]] = [bytes(len(block) - 1) + b"\n"]
    elif how == "unknown operations":
        changed[made[3] : made[3]] = [b'{"op_code":99,"worker_id":"x"}\n', b"[]\n", b"\n", b'{"op_code":5}\n']
    return changed


@pytest.mark.parametrize(
    ("how", "repeated"),
    [
        ("study lost", 0),
        ("trial lost", 0),
        ("result lost", 1),  # a launcher shows the finished run instead of training it again
        ("byte flipped in a trial", 0),
        ("zeros over two trials", 2),
        ("unknown operations", 0),
    ],
)
def test_a_damaged_journal_is_mended_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, repeated: int
) -> None:
    command, journal = [*FIXED, TEMPERATURE], tmp_path / JOURNAL
    first, again = FakeTraining(well), FakeTraining(well)
    run_search(tmp_path, first, command, n_trials=6)
    before = {trial.user_attrs["run"]: trial.value for trial in trials(tmp_path)}
    damaged = b"".join(damage(journal.read_bytes().splitlines(keepends=True), how))
    journal.write_bytes(damaged)
    run_search(tmp_path, again, command, n_trials=6)
    assert len(again.jobs) == repeated
    after = {
        t.user_attrs["run"]: t.value
        for t in trials(tmp_path)
        if t.state == TrialState.COMPLETE and t.user_attrs
    }
    assert len(before.items() & after.items()) >= 6 - repeated
    said, kept = "damaged. " in capsys.readouterr().err, tmp_path / f"{JOURNAL}.damaged"
    assert (said, kept.exists()) == (how != "result lost", how != "result lost")
    assert not said or kept.read_bytes() == damaged
    run_search(tmp_path, FakeTraining(well), command, n_trials=6)
    assert "damaged" not in capsys.readouterr().err


def test_a_journal_that_cannot_be_mended_is_named(tmp_path: Path) -> None:
    journal = tmp_path / JOURNAL
    journal.write_text('{"op_code": 99}\n' * 200)
    with pytest.raises(UserError, match=rf"{journal}: not a journal .* Move it away"):
        run_search(tmp_path, FakeTraining(well), [*FIXED, TEMPERATURE], n_trials=1)
    journal.unlink()
    journal.symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match=rf"{journal}: a link, which is not followed"):
        run_search(tmp_path, FakeTraining(well), [*FIXED, TEMPERATURE], n_trials=1)
    assert not (tmp_path / "victim").exists()
