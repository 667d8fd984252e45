"""Runs that share their batches train on the very batches that they would make alone."""

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dino_exp.data import shared_batches
from dino_exp.data.loader import BatchOrder, CropBatch, CropBatches, batches
from dino_exp.data.shared_batches import HEADER, MAGIC, SharedBatches
from dino_exp.data.source import Shrink
from tests.data.sources import Album
from tests.data.test_loader import dataset, numbered, same

STEPS, SIZE = 15, 8
"""Two and a half epochs of 50 images."""
STREAM = "0123456789abcdef" * 2


class Counted(Album):
    """Images that note each time that one is read, by whichever process."""

    def __init__(self, record: Path) -> None:
        super().__init__(numbered(50).images, unreadable={7})
        self.record = record
        record.touch()

    def read(self, index: int, shrink: Shrink | None = None) -> torch.Tensor:
        with self.record.open("a") as file:
            file.write(f"{index}\n")
        return super().read(index)

    @property
    def reads(self) -> int:
        return len(self.record.read_text().split())


class Run:
    """One run's part in a stream, in this process."""

    def __init__(
        self, memory: Path, source: Album, workers: int = 0, start: int = 0, part: tuple[int, int] = (0, 1)
    ) -> None:
        made: CropBatches = dataset(source)
        order = BatchOrder(50, SIZE, 0, start, STEPS, *part)
        memory.mkdir(exist_ok=True)
        self.shared = SharedBatches(memory, STREAM, made.layout(order.part), start, STEPS)
        self.loader = batches(made, order, workers, pin_memory=False, shared=self.shared)

    def take(self, count: int = STEPS) -> list[CropBatch]:
        """Return the next batches."""
        return [batch for _, batch in zip(range(count), self.loader, strict=False)]

    def end(self) -> None:
        """End it, with its loader processes."""
        self.loader = iter(())
        self.shared.leave()


def alone(part: tuple[int, int] = (0, 1), start: int = 0) -> list[CropBatch]:
    """Return the batches of a run that shares nothing."""
    made = dataset(Album(numbered(50).images, unreadable={7}))
    return list(batches(made, BatchOrder(50, SIZE, 0, start, STEPS, *part), 0, pin_memory=False))


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for others however busy the machine is."""
    monkeypatch.setattr(shared_batches, "LEAST_PATIENCE", 60)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder for batches, in which nothing is left at the end."""
    yield tmp_path / "memory"
    assert list((tmp_path / "memory").iterdir()) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_is_decoded_once_for_all_runs(memory: Path, tmp_path: Path, workers: int) -> None:
    expected = alone()
    assert [7] in [batch.corrupt.tolist() for batch in expected]
    once = Counted(tmp_path / "once")
    single = Run(memory, once)
    single.take()
    single.end()
    source = Counted(tmp_path / "both")
    runs = [Run(memory, source, workers) for _ in range(3)]
    made: list[list[CropBatch]] = [[], [], []]
    for lead in (1, 5, 2, 4, 3):
        for number, run in enumerate(runs):
            made[number] += run.take(lead if number else 3)
    assert all(same(each, expected) for each in made)
    assert source.reads == once.reads
    assert sum(run.shared.taken for run in runs) == 2 * STEPS
    for run in runs:
        run.end()


def test_the_processes_of_a_run_share_with_those_of_the_same_rank(memory: Path, tmp_path: Path) -> None:
    source = Counted(tmp_path / "reads")
    runs = [Run(memory, source, part=(1, 2)) for _ in range(2)]
    made = [run.take() for run in runs]
    assert all(same(each, alone((1, 2))) for each in made)
    assert runs[1].shared.taken == STEPS
    for run in runs:
        run.end()


def test_a_laggard_makes_what_is_gone_and_is_waited_for_by_nobody(
    memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_batches, "MOST_BATCHES", 4)
    source = Counted(tmp_path / "reads")
    leader, laggard = (Run(memory, source) for _ in range(2))
    expected = alone()
    assert same(leader.take(10), expected[:10])
    assert sorted(int(path.stem) for path in leader.shared.folder.glob("*.batch")) == [0, 1, 2, 3]
    assert same(laggard.take(9), expected[:9])
    assert laggard.shared.taken == 4
    assert list(laggard.shared.folder.glob("*.batch")) == []  # nobody needs what it makes
    assert same(leader.take(), expected[10:])  # there is room again
    assert same(laggard.take(), expected[9:])
    assert laggard.shared.taken == 4 + 3
    for run in (leader, laggard):
        run.end()


def test_a_run_that_comes_back_finds_the_others(memory: Path, tmp_path: Path) -> None:
    source = Counted(tmp_path / "reads")
    first, second = (Run(memory, source) for _ in range(2))
    first.take(9)
    second.take(4)
    second.end()
    resumed = Run(memory, source, start=3)
    assert same(resumed.take(), alone(start=3))
    assert same(first.take(), alone(start=9))
    for run in (first, resumed):
        run.end()


def test_a_claim_is_taken_over_from_the_dead_and_not_waited_for_long(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_batches, "LEAST_PATIENCE", 0.2)
    run, other = (Run(memory, Album(numbered(50).images, {7})) for _ in range(2))
    (run.shared.folder / "2.claim").write_bytes(b"torn")
    suspended = os.open(run.shared.folder / "5.claim", os.O_RDWR | os.O_CREAT)
    fcntl.flock(suspended, fcntl.LOCK_EX)
    looks: list[float] = []
    run.shared.while_waiting = looks.append
    assert same(run.take(), alone())
    published = {int(path.stem) for path in run.shared.folder.glob("*.batch")}
    assert published == set(range(STEPS)) - {5}
    assert same(other.take(), alone())
    assert other.shared.taken == STEPS - 1
    os.close(suspended)
    for each in (run, other):
        each.end()


def test_who_waits_makes_the_next_batches_meanwhile_and_looks_at_signals(memory: Path) -> None:
    run, other = (Run(memory, numbered(50)) for _ in range(2))
    claim = os.open(run.shared.folder / "0.claim", os.O_RDWR | os.O_CREAT)
    fcntl.flock(claim, fcntl.LOCK_EX)

    def stop(waited: float) -> None:
        raise KeyboardInterrupt

    run.loader = batches(dataset(numbered(50)), BatchOrder(50, SIZE, 0, 0, STEPS), 0, False, stop, run.shared)
    with pytest.raises(KeyboardInterrupt):
        run.take(1)
    assert {int(path.stem) for path in run.shared.folder.glob("*.batch")} == set(range(1, STEPS))
    os.close(claim)
    for each in (run, other):
        each.end()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        HEADER.pack(MAGIC, b"", 3, 0),
        HEADER.pack(MAGIC, b"", 3, 2**62) + b"x",
        HEADER.pack(b"another", b"", 3, 0) + bytes(50_000),
        HEADER.pack(MAGIC, b"", 4, 0) + bytes(50_000),
    ],
    ids=["empty", "cut", "of absurd length", "of another program", "of another step"],
)
def test_a_damaged_batch_is_made_again(memory: Path, content: bytes) -> None:
    run, other = (Run(memory, Album(numbered(50).images, {7})) for _ in range(2))
    (run.shared.folder / "3.batch").write_bytes(content)
    made = run.take()
    assert same(made, alone())
    assert run.shared.taken == 0
    assert same(other.take(), alone())
    assert other.shared.taken == STEPS
    for each in (run, other):
        each.end()


def test_without_memory_a_run_makes_its_batches_and_says_so_once(
    memory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run, other = (Run(memory, Album(numbered(50).images, {7})) for _ in range(2))
    assert same(run.take(4), alone()[:4])
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        assert same(run.take(), alone()[4:])
    assert [record.getMessage() for record in caplog.records] == [
        f"{memory}: no memory is left; this run makes all its batches itself."
    ]
    assert list(run.shared.folder.glob("*.claim")) == []
    assert same(other.take(), alone())
    assert other.shared.taken == 4
    for each in (run, other):
        each.end()


def test_memory_that_is_missing_too_small_or_not_ones_own_is_refused(
    memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.mkdir()
    layout = dataset(numbered(50)).layout(SIZE)
    with pytest.raises(FileNotFoundError):
        SharedBatches(tmp_path / "missing", STREAM, layout, 0, STEPS)
    own = memory / f"dino-exp-{os.getuid()}"
    own.mkdir(0o755)
    with pytest.raises(OSError, match="yours alone"):
        SharedBatches(memory, STREAM, layout, 0, STEPS)
    own.chmod(0o700)
    monkeypatch.setattr(shared_batches, "MOST_BYTES", 30_000)
    with pytest.raises(OSError, match=r"too little is free for batches of 0\.0 MiB"):
        SharedBatches(memory, STREAM, layout, 0, STEPS)
    own.rmdir()


def test_memory_that_somebody_clears_ends_the_sharing_alone(memory: Path) -> None:
    run, other = (Run(memory, Album(numbered(50).images, {7})) for _ in range(2))
    run.take(4)
    for path in run.shared.folder.iterdir():
        path.unlink()
    run.shared.folder.rmdir()
    assert same(run.take(), alone()[4:])
    assert same(other.take(), alone())
    for each in (run, other):
        each.end()


def test_what_killed_runs_have_left_is_removed_and_nothing_else(memory: Path) -> None:
    living = Run(memory, numbered(50))
    left = living.shared.folder.with_name("f" * 32)
    left.mkdir()
    for name in (f"{'0' * 32}.run", "3.claim", "4.batch"):
        (left / name).write_bytes(b"x")
    kept = living.shared.folder.with_name("mine")
    kept.mkdir()
    (kept / "notes.batch").touch()
    Run(memory, numbered(50)).end()
    assert sorted(path.name for path in living.shared.folder.parent.iterdir()) == [STREAM, "mine"]
    assert [path.name for path in kept.iterdir()] == ["notes.batch"]
    (kept / "notes.batch").unlink()
    kept.rmdir()
    living.end()
