"""Features of images: a network's, in memory or in a file that is kept, and raw pixels as the baseline."""

from __future__ import annotations

import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from dino_exp.atomic import complete_folder, remove
from dino_exp.backbone.tokens import block_tokens, has_block_tokens
from dino_exp.config.targets import images_of
from dino_exp.data.labeled import short_digest
from dino_exp.data.source import ImageSource, Splits
from dino_exp.errors import UserError, in_words
from dino_exp.eval.features import evaluating, gathered
from dino_exp.eval.subject import BlockFeatures, Subject
from dino_exp.parallel import distributed
from dino_exp.paths import cache_root
from dino_exp.runs.run_directory import to_json

log = logging.getLogger(__name__)

FORMAT = 1
"""Version of the files; part of their names."""
FLOAT = 4
"""Bytes of a float32."""
CHUNK = 2**20
FILES = ("values.0", "indices.pt")


def blocks_of(backbone: nn.Module) -> int:
    """Return how many blocks a transformer with a class token has; 0 for other networks."""
    return len(cast(Any, backbone).blocks) if has_block_tokens(backbone) else 0


def block_rows(backbone: nn.Module, images: Tensor, blocks: int) -> Tensor:
    """Return `BlockFeatures.values` (B, rows, D) of normalized images (B, C, H, W); blocks = 0 is one row."""
    tokens = block_tokens(backbone, images, blocks) if blocks else None
    if tokens is None:
        return backbone(images).unsqueeze(1)
    return torch.stack([*(each.class_token for each in tokens), tokens[-1].patches.mean(dim=1)], dim=1)


def batches_of_rows(
    subject: Subject, source: ImageSource, indices: Sequence[int], blocks: int = 0, title: str = ""
) -> Iterator[tuple[Tensor, list[int]]]:
    """Yield features (B, rows, D) on the CPU and the indices of their images, batch by batch, in order.

    The backbone runs in eval mode, so batch-norm statistics are used and not moved. With a title a bar shows
    how far it is.
    """
    done = TextColumn("{task.completed:,.0f} of {task.total:,.0f}")
    columns = (TextColumn(title), BarColumn(), done, TimeRemainingColumn())
    shown = bool(title) and distributed.is_main()
    console = distributed.console_for_a_run()
    bar = Progress(*columns, console=console, transient=True, disable=not shown)
    with evaluating(subject.backbone), bar as progress:
        task = progress.add_task("", total=len(indices))
        for images, readable in subject.still_images(source, indices):
            with subject.autocast():
                rows = block_rows(subject.backbone, subject.normalized(images), blocks)
            yield rows.float().cpu(), readable
            progress.advance(task, len(readable))


def extract(
    subject: Subject,
    source: ImageSource,
    indices: Sequence[int] | None = None,
    *,
    blocks: int = 0,
    title: str = "",
) -> BlockFeatures:
    """Return the features of the images at `indices` (by default all), in their order, in memory.

    Several processes share the work, and all of them get all features. Afterwards the backbone is back in
    its modes.

    Raises:
        UserError: not one image can be read.
    """
    indices = range(len(source)) if indices is None else indices
    parts = list(batches_of_rows(subject, source, distributed.share_of(indices), blocks, title))
    kept = [index for _, readable in parts for index in readable]
    values = gathered([rows for rows, _ in parts])
    kept = [index for each in distributed.from_all(kept) for index in each]
    _refuse_empty(kept, source, indices)
    return BlockFeatures(values, torch.tensor(kept, dtype=torch.int64))


def pixels(
    subject: Subject,
    bank: ImageSource,
    bank_indices: Sequence[int],
    queries: ImageSource,
    query_indices: Sequence[int],
) -> tuple[BlockFeatures, BlockFeatures]:
    """Return raw pixels of bank and queries as features (N, 1, C · image_size²), minus the bank's mean image.

    Without the mean, all cosine similarities are near 1 and the baseline is weaker than it should be.
    An image takes 4 · C · image_size² bytes: keep image_size small.
    """

    def flat(source: ImageSource, indices: Sequence[int]) -> BlockFeatures:
        batches = list(subject.still_images(source, indices))
        kept = [index for _, readable in batches for index in readable]
        _refuse_empty(kept, source, indices)
        rows = torch.cat([images.flatten(1).float() / 255 for images, _ in batches])
        return BlockFeatures(rows.unsqueeze(1), torch.tensor(kept, dtype=torch.int64))

    bank_pixels, query_pixels = flat(bank, bank_indices), flat(queries, query_indices)
    mean_image = bank_pixels.values.mean(dim=0)
    bank_pixels.values.sub_(mean_image)
    query_pixels.values.sub_(mean_image)
    return bank_pixels, query_pixels


class Extracted:
    """`LabeledData` whose features are kept in files, for the images of a `data` node.

    The files are in `cache_root()`, named by a digest of the weights, the images and the preprocessing, so
    that the next evaluation of the same finds them. They may be deleted at any time.

    Args:
        subject: the network.
        node: the `data` group of the configuration.
        blocks: number of last blocks to extract; 0 is the backbone's feature alone.
        progress: whether to show a progress bar.
        title: name of the images in the bar; by default the split.
    """

    def __init__(
        self, subject: Subject, node: Any, *, blocks: int = 0, progress: bool = False, title: str = ""
    ) -> None:
        self.subject, self.node, self.progress, self.title = subject, node, progress, title
        self.blocks = min(blocks, blocks_of(subject.backbone))
        self._known: dict[str, BlockFeatures] = {}
        self._unreadable: dict[str, tuple[int, int]] = {}

    @cached_property
    def images(self) -> Splits:
        """All images of the node, looked up at first use."""
        return images_of(self.node)

    @property
    def splits(self) -> Splits:
        """The images that features are judged by."""
        return self.images.evaluated

    def features(self, split: str) -> BlockFeatures:
        """Return the features of `train` or `test`; all processes call it, and all get all features."""
        if split not in self._known:
            source = self.splits.train if split == "train" else self.splits.test
            if source is None:
                raise UserError("There are no held-out images; set data.val_root.")
            folder = Path(distributed.from_main(self._folder(source) if distributed.is_main() else ""))
            with lock_of(folder):  # a process that waited finds the features
                features = self._found(folder) or self._extracted(folder, source, split)
            self._count_unreadable(split, source, features)
            self._known[split] = features  # not before the check, or a second evaluation would skip it
        return self._known[split]

    def skipped(self) -> list[str]:
        """Return a sentence per split about images that were skipped because they cannot be read."""
        return [
            f"{number:,} of {total:,} images of {split} could not be read and were skipped."
            for split, (number, total) in self._unreadable.items()
        ]

    def _count_unreadable(self, split: str, source: ImageSource, features: BlockFeatures) -> None:
        number, total = len(source) - len(features.indices), len(source)
        limit = self.node["max_corrupt"] if self.node is not None else 1.0
        if number > limit * total:
            readable = set(features.indices.tolist())
            names = ", ".join(source.name(index) for index in range(total) if index not in readable)
            names = names if len(names) < 200 else f"{names[:200]}..."
            raise UserError(
                f"data.max_corrupt = {limit:g}: {number:,} of {total:,} images of {split} cannot be read "
                f"({names}); repair or remove them, or raise data.max_corrupt."
            )
        if number:
            self._unreadable[split] = number, total

    # ---- files ----------------------------------------------------------------------------------

    def _folder(self, source: ImageSource) -> str:
        """Return the path of a source's features, which ends in the number of blocks."""
        subject = self.subject
        between = (subject.image_size, subject.crop_ratio, subject.mean, subject.std, subject.autocast_type)
        name = short_digest(FORMAT, subject.digest, source.fingerprint(), between)
        return str(cache_root() / "features" / f"{name}-{self.blocks}")

    def _found(self, wanted: Path) -> BlockFeatures | None:
        """Return features that were kept earlier, perhaps of more blocks; None where there are none."""
        found = None
        if distributed.is_main():
            others = wanted.parent.glob(f"{wanted.name.partition('-')[0]}-*")
            numbered = [(other.name.partition("-")[2], other) for other in others]
            known = {int(number): other for number, other in numbered if number.isdecimal()}
            enough = (known[blocks] for blocks in sorted(known) if blocks >= self.blocks)
            found = next((str(folder) for folder in enough if is_intact(folder)), None)
        found = distributed.from_main(found)
        if found is None:
            return None
        features = read(Path(found))
        everyone = all(distributed.from_all(features is not None))
        return features if everyone else None

    def _extracted(self, folder: Path, source: ImageSource, split: str) -> BlockFeatures:
        """Extract the features: each process writes its share to a file, and rank 0 joins the files.

        Where the processes have no common folder to write to, the features stay in memory.
        """
        temporary: Path | None = None
        with ExitStack() as stack:
            if distributed.is_main():
                try:
                    temporary = stack.enter_context(complete_folder(folder))
                except OSError as error:
                    log.warning("The features are not kept: %s.", in_words(error))
            shared = distributed.from_main(None if temporary is None else str(temporary))
            temporary = None if shared is None else Path(shared)
            kept = (
                temporary is not None
                and all(distributed.from_all(temporary.is_dir()))
                and self._into(temporary, source, split)
            )
            if temporary is not None and not kept and distributed.is_main():
                remove(temporary)
        if not kept:
            return extract(self.subject, source, blocks=self.blocks, title=self._title(split))
        distributed.from_main(None)
        found = read(folder)
        assert found is not None
        return found

    def _title(self, split: str) -> str:
        return f"features of {self.title or split}" if self.progress else ""

    def _into(self, temporary: Path, source: ImageSource, split: str) -> bool:
        """Extract the features into a folder, and return whether they could be written."""
        kept: list[int] = []
        shape: tuple[int, ...] = (0, 0)
        part = temporary / f"values.{distributed.rank()}"
        problem = None
        try:
            with part.open("wb") as file:
                mine, title = distributed.share_of(range(len(source))), self._title(split)
                for rows, readable in batches_of_rows(self.subject, source, mine, self.blocks, title):
                    shape = tuple(rows.shape[1:])
                    file.write(rows.contiguous().numpy().tobytes())
                    kept += readable
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            problem = in_words(error)
        problem = next((each for each in distributed.from_all(problem) if each), None)
        if problem:
            log.warning("The features are not kept in %s: %s.", temporary.parent, problem)
            return False
        kept = [index for each in distributed.from_all(kept) for index in each]
        shape = max(distributed.from_all(shape))
        _refuse_empty(kept, source, range(len(source)))
        if distributed.is_main():
            with (temporary / "values.0").open("ab") as joined:
                for number in range(1, distributed.count()):
                    with (temporary / f"values.{number}").open("rb") as file:
                        shutil.copyfileobj(file, joined, 2**24)
                    (temporary / f"values.{number}").unlink()
            torch.save(torch.tensor(kept, dtype=torch.int64), temporary / "indices.pt")
            shown = {"weights": self.subject.name, "images": source.name(kept[0])}
            about = {"shape": [len(kept), *shape], "crc32": check_sums(temporary), **shown}
            (temporary / "about.json").write_text(to_json(about), "utf-8")
        return True


@contextmanager
def lock_of(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder in rank 0, so that no other program writes it at the same time."""
    lock = FileLock(cache_root() / "locks" / f"{short_digest(str(folder.absolute()))}.lock")
    if distributed.is_main():
        try:
            Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError:
            pass  # where this program cannot write, others cannot either
    try:
        yield
    finally:
        lock.release()


def read(folder: Path) -> BlockFeatures | None:
    """Return the features in a folder; None where they are missing or incomplete."""
    try:
        shape = json.loads((folder / "about.json").read_text("utf-8"))["shape"]
        indices = torch.load(folder / "indices.pt", weights_only=True)
        values, count = folder / "values.0", shape[0] * shape[1] * shape[2]
        if values.stat().st_size != count * FLOAT or len(indices) != shape[0]:
            return None
        return BlockFeatures(torch.from_file(str(values), size=count).view(shape), indices)
    except (OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError):
        return None


def check_sums(folder: Path) -> dict[str, int]:
    """Return the CRC-32 of each file of features; it takes as long as reading them."""
    sums = dict.fromkeys(FILES, 0)
    for name in FILES:
        with (folder / name).open("rb") as file:
            while chunk := file.read(CHUNK):
                sums[name] = zlib.crc32(chunk, sums[name])
    return sums


def is_intact(folder: Path) -> bool:
    """Return whether features are complete and as they were written; a line says so if they are damaged."""
    if read(folder) is not None:
        with suppress(OSError):
            about = json.loads((folder / "about.json").read_text("utf-8"))
            if about.get("crc32") == check_sums(folder):
                return True
    log.warning("%s: damaged features, or without check sums; they are extracted again.", folder)
    return False


def _refuse_empty(kept: list[int], source: ImageSource, indices: Sequence[int]) -> None:
    if not kept:
        first = source.name(int(indices[0])) if len(indices) else "no images were requested"
        raise UserError(f"None of {len(indices):,} images could be read (the first: {first}).")
