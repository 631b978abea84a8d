"""Unusable examples: the run stops at the first, or skips up to ``config.data.skip_corrupt`` of them."""

import logging

from rmn_jax.errors import UserError

_log = logging.getLogger(__name__)


class SkippedExamples:
    """Counts the distinct unusable examples of a data set. Raises UserError if there are more than ``limit``."""

    def __init__(self, limit: int):
        if limit < 0:
            raise UserError(f"config.data.skip_corrupt is {limit}; it must be 0 (stop at the first) or more.")
        self.limit = limit
        self._problems: dict[str, str] = {}

    @property
    def count(self) -> int:
        """Number of distinct examples skipped so far."""
        return len(self._problems)

    def add(self, example: str, reason: str) -> None:
        """Records that ``example`` is unusable and why. The same example counts once.

        Raises:
          UserError: more distinct examples than ``limit``; the message names the example.
        """
        if example in self._problems:
            return
        self._problems[example] = reason
        if self.limit == 0:
            raise UserError(f"{example}: {reason}. To skip up to n such examples, set config.data.skip_corrupt=n.")
        if self.count > self.limit:
            raise UserError(
                f"{example}: {reason}. It is unusable example number {self.count}; "
                f"config.data.skip_corrupt allows {self.limit}."
            )
        _log.warning("Skipping %s: %s (%d of at most %d).", example, reason, self.count, self.limit)
