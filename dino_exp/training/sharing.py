"""Whether and with whom a run shares its batches: launchers ask for it where several runs train at once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dino_exp import data, seeding
from dino_exp.config.batch_stream import stream_settings
from dino_exp.data.shared_batches import SharedBatches
from dino_exp.errors import in_words
from dino_exp.parallel import distributed
from dino_exp.parallel.processes import SHARED_BATCHES
from dino_exp.training.trainer import Trainer

log = logging.getLogger(__name__)


@contextmanager
def sharing_batches(trainer: Trainer) -> Iterator[str]:
    """Have a trainer share its batches while the block runs, if that is wanted; yield how, in words."""
    memory = os.environ.get(SHARED_BATCHES)
    if not memory or sys.platform != "linux":  # elsewhere loader processes are not forked
        yield ""
        return
    layout = trainer.crop_batches.layout(trainer.plan.batch_size // distributed.count())
    try:
        shared = SharedBatches(Path(memory), stream_of(trainer), layout, trainer.step, trainer.plan.stop_step)
    except OSError as error:
        yield f"not shared with other runs ({in_words(error)})"
        return
    trainer.shared = shared
    try:
        others = len(shared.others)
        now = f"{others} run{'s' * (others != 1)}" if others else "none yet"
        yield f"shared with runs here of the same images, seed, crops and augmentation ({now})"
    finally:
        trainer.shared = None
        shared.leave()
        if shared.count:
            log.info("%s of %s batches were made by other runs.", f"{shared.taken:,}", f"{shared.count:,}")


def stream_of(trainer: Trainer) -> str:
    """Return a digest of everything that determines a trainer's batches: settings, processes, programs."""
    code = hashlib.sha256()
    for path in sorted([*Path(data.__file__).parent.glob("*.py"), Path(seeding.__file__)]):
        code.update(path.read_bytes())
    packages = Path(torch.__file__).parents[1]
    about = [
        stream_settings(trainer.cfg),
        [distributed.rank(), distributed.count(), len(trainer.splits.train)],
        [str(packages), packages.stat().st_mtime_ns],  # which changes with each package that is installed
        [torch.backends.cpu.get_cpu_capability(), code.hexdigest()],
    ]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
