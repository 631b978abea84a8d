"""A file of JSON lines that grows with each measurement, so that a stopped benchmark can continue.

The ``id`` of a line identifies the measurement. A line that is in the file is not measured again. This module imports
the standard library alone, so a process that only starts other processes does not occupy the GPU.
"""

import json
import pathlib
import re
import sys
import time
from typing import Any

# Names of earlier releases in "id" and "side" -> current names.
RENAMED = {"visits": "scan", "layers of an update": "layers of a step"}


class Record:
    """The lines of one file, and the time that this process may use.

    Args:
      path: the file, created if it does not exist; None keeps the lines in memory.
      seconds: the time, from now on; None is no limit.
    """

    def __init__(self, path: str | None, seconds: float | None = None):
        self.lines: list[dict[str, Any]] = []
        self._path = None if path is None else pathlib.Path(path)
        self._started = self._last = time.monotonic()
        self._seconds, self._longest = seconds, 0.0
        if self._path is not None and self._path.exists():
            self.lines = read(self._path)
        self._ids = {line["id"] for line in self.lines}

    def __contains__(self, identity: str) -> bool:
        return identity in self._ids

    def missing(self, identities) -> list[str]:
        """The identities that are not in the file, in their order."""
        return [identity for identity in identities if identity not in self]

    def add(self, line: dict[str, Any]) -> None:
        """Prints a line and appends it to the file, unless the file has a line of the same ``id``."""
        if line["id"] in self:
            return
        self.lines.append(line)
        self._ids.add(line["id"])
        text = json.dumps(line)
        print(text, flush=True)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # A killed process may have left an incomplete line.
            content = self._path.read_bytes() if self._path.exists() else b""
            incomplete = bool(content) and not content.endswith(b"\n")
            with self._path.open("a") as file:
                file.write(("\n" if incomplete else "") + text + "\n")

    def time_left(self) -> float | None:
        """Seconds that are left; None without a limit."""
        return None if self._seconds is None else self._seconds - (time.monotonic() - self._started)

    def go_on(self, what: str = "") -> bool:
        """Whether the next measurement fits into the time if it takes as long as the longest so far.

        Call it before each measurement: it also takes the time of the last one. It prints ``what`` comes next.
        """
        now = time.monotonic()
        self._longest, self._last = max(self._longest, now - self._last), now
        left = self.time_left()
        if left is None or left > self._longest:
            if what:
                print(f"# {now - self._started:.0f} s: {what}", file=sys.stderr, flush=True)
            return True
        before = what or "the next measurement"
        print(f"# out of time before {before}; run the same command again to continue", file=sys.stderr, flush=True)
        return False


def read(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """The complete lines of a file, with current names (see ``RENAMED``)."""
    lines = []
    for text in pathlib.Path(path).read_text().splitlines():
        try:
            lines.append(_with_current_names(json.loads(text)))
        except json.JSONDecodeError:
            print(f"# ignored an incomplete line in {path}", file=sys.stderr)
    return lines


def _with_current_names(line: dict[str, Any]) -> dict[str, Any]:
    for key in ("id", "side"):
        for old, new in RENAMED.items():
            if key in line:
                line[key] = re.sub(rf"\b{old}\b", new, line[key])
    return line
