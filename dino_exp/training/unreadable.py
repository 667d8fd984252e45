"""Images that cannot be read: skipped, counted, and an error when there are too many."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from dino_exp.data.source import CorruptImageError, ImageSource
from dino_exp.errors import UserError
from dino_exp.parallel import distributed

log = logging.getLogger(__name__)


class UnreadableImages:
    """The unreadable images that all processes have met, by index.

    Args:
        source: the training images.
        limit: largest share of them that may be unreadable (`data.max_corrupt`).
    """

    def __init__(self, source: ImageSource, limit: float) -> None:
        self.source, self.limit = source, limit
        self.known: set[int] = set()
        """As of the last `count`."""
        self._new: set[int] = set()

    def add(self, indices: Iterable[int]) -> None:
        """Remember what this process could not read."""
        self._new.update(indices)

    def count(self) -> None:
        """Join what the processes have met since the last call; all of them call it.

        Raises:
            AgreedError: more than `limit` of the images cannot be read.
        """
        new = set().union(*distributed.from_all(list(self._new))) - self.known
        self._new.clear()
        if not new:
            return
        if not self.known:
            log.warning("Skipped: %s. Others are skipped without a message and counted.", self._why(min(new)))
        self.known |= new
        with distributed.agreed():
            if len(self.known) > self.limit * len(self.source):
                names = ", ".join(self.source.name(index) for index in sorted(self.known)[:5])
                raise UserError(
                    f"data.max_corrupt = {self.limit}: {len(self.known)} of {len(self.source)} images cannot "
                    f"be read ({names}, ...). Raise data.max_corrupt to resume without them; or repair or "
                    "remove them, and train anew with resume=never."
                )

    def names(self) -> list[str]:
        """Return the names of all of them."""
        return [self.source.name(index) for index in sorted(self.known)]

    def _why(self, index: int) -> str:
        """Return the image's name and the reason, which loader processes keep to themselves."""
        try:
            self.source.read(index)
        except CorruptImageError as error:
            return str(error)
        return self.source.name(index)
