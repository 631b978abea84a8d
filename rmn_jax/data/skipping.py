"""What to do with an example that cannot be used: stop with its name or, if asked to, skip a counted few."""

import logging

from rmn_jax.errors import UserError

_log = logging.getLogger(__name__)


class SkippedExamples:
    """Counts the distinct unusable examples of a data set; raises UserError beyond `limit`."""

    def __init__(self, limit: int):
        if limit < 0:
            raise UserError(f"config.data.skip_corrupt is {limit}; it must be 0 (stop at the first) or more.")
        self.limit = limit
        self._problems: dict[str, str] = {}

    @property
    def count(self) -> int:
        """The number of distinct examples skipped so far."""
        return len(self._problems)

    def add(self, example: str, reason: str) -> None:
        """Records a problem with `example`; a second report of the same example counts once."""
        if example in self._problems:
            return
        self._problems[example] = reason
        if self.limit == 0:
            raise UserError(f"{example}: {reason}. To skip up to n such examples, set config.data.skip_corrupt=n.")
        if self.count > self.limit:
            raise UserError(
                f"{example}: {reason}. That is unusable example number {self.count}; "
                f"config.data.skip_corrupt allows {self.limit}."
            )
        _log.warning("Skipping %s: %s (%d of at most %d).", example, reason, self.count, self.limit)
