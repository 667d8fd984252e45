"""What a training from Python returns: where the run is, how it ended, and its network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dino_exp.backbone.given import Given, offered
from dino_exp.config.compose_evaluation import check
from dino_exp.config.hydra_loader import override_text
from dino_exp.data.adapted import as_source
from dino_exp.errors import UserError
from dino_exp.eval.opening import open_subject
from dino_exp.eval.subject import Subject
from dino_exp.runs.metrics_lines import read_metrics
from dino_exp.runs.run_directory import RunDirectory


@dataclass(frozen=True)
class TrainedRun:
    """A run that has ended; its directory has all of it, also for `report.py` and `evaluate.py`."""

    directory: Path
    state: str
    """finished, collapsed (`trainer.on_collapse=stop`) or failed."""
    message: str
    """Verdict and k-NN, or the error."""
    swept: dict[str, Any] = field(default_factory=dict)
    """This run's values of the keys of a grid."""
    _network: tuple[str, Given] | None = field(default=None, repr=False, compare=False)
    """The network that was given, with its digest."""

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json: verdict, evidence, knn_top1 and final diagnostics; {} without one."""
        return RunDirectory(self.directory).read_summary()

    @property
    def verdict(self) -> str | None:
        """The verdict's word, such as healthy; None for a run without a summary."""
        return self.summary.get("verdict")

    @property
    def knn_top1(self) -> float | None:
        """k-NN accuracy of the teacher in percent; None without labeled held-out images."""
        return self.summary.get("knn_top1")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one per logged step: `pandas.DataFrame(run.metrics)`."""
        return read_metrics(RunDirectory(self.directory).metrics_file)

    def backbone(self, network: str = "teacher", checkpoint: str = "last") -> nn.Module:
        """Return the trained backbone, (B, C, S, S) -> (B, D), without gradients and in eval mode.

        Args:
            network: teacher or student.
            checkpoint: last, or best by k-NN.
        """
        return self._subject(network, checkpoint).backbone

    @torch.no_grad()
    def features(
        self, images: Any, network: str = "teacher", checkpoint: str = "last", batch_size: int = 256
    ) -> torch.Tensor:
        """Return the features of images, float32 (N, D) on the CPU: resized, center-cropped, normalized.

        Args:
            images: as `data` of `dino_exp.train`.
            network, checkpoint: as in `backbone`.
            batch_size: images per forward pass.

        Raises UserError if one of them cannot be read.
        """
        subject = self._subject(network, checkpoint)
        source = as_source(images, subject.channels, decoding=subject.decoding)
        found, read = [], 0
        for batch, indices in subject.still_images(source, range(len(source)), batch_size=batch_size):
            with subject.autocast():
                found.append(subject.backbone(subject.normalized(batch)).float().cpu())
            read += len(indices)
        if read < len(source):
            raise UserError(f"{len(source) - read:,} of {len(source):,} images cannot be read.")
        return torch.cat(found)

    def _subject(self, network: str, checkpoint: str) -> Subject:
        words = [override_text("run", str(self.directory)), f"network={network}", f"checkpoint={checkpoint}"]
        with nullcontext() if self._network is None else offered(*self._network):
            checked = check(words)
            if checked.problems or checked.cfg is None:
                raise UserError("\n".join(checked.problems))
            return open_subject(checked.cfg)[0]  # type: ignore[arg-type]  # a DictConfig with these fields


@dataclass(frozen=True)
class TrainedSweep:
    """The runs of a sweep, in the order of its grid; its directory is what `report.py` takes."""

    directory: Path
    runs: list[TrainedRun]

    def __iter__(self) -> Iterator[TrainedRun]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> TrainedRun:
        return self.runs[index]

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each run, `pandas.DataFrame(sweep.table())`: the swept values and the result."""
        rows = []
        for run in self.runs:
            result = {"state": run.state, "verdict": run.verdict, "knn_top1": run.knn_top1}
            rows.append(run.swept | result | {"directory": str(run.directory)})
        return rows
