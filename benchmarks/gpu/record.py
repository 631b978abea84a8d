"""A file of JSON lines that grows as things are measured, so that a stopped measurement goes on where it was.

Each line has an ``id`` that says all that was measured; a line that is in the file is not measured again. Imports
nothing but the standard library: a process that only starts others leaves the GPU to them.
"""

import json
import pathlib
import sys
import time
from typing import Any


class Record:
    """The lines of one file, and the time that this process may take.

    Args:
      path: the file, made if it is not there; None keeps the lines in memory.
      seconds: from now on; None is no limit.
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
        """Those that are not in the file, in their order."""
        return [identity for identity in identities if identity not in self]

    def add(self, line: dict[str, Any]) -> None:
        """Prints a line and appends it to the file, unless one of its ``id`` is there."""
        if line["id"] in self:
            return
        self.lines.append(line)
        self._ids.add(line["id"])
        text = json.dumps(line)
        print(text, flush=True)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # A process that was killed may have left half a line.
            held = self._path.read_bytes() if self._path.exists() else b""
            broken = bool(held) and not held.endswith(b"\n")
            with self._path.open("a") as file:
                file.write(("\n" if broken else "") + text + "\n")

    def time_left(self) -> float | None:
        """Seconds, or None without a limit."""
        return None if self._seconds is None else self._seconds - (time.monotonic() - self._started)

    def go_on(self, what: str = "") -> bool:
        """Whether the next piece of work will fit if it takes as long as the longest so far; called before each."""
        now = time.monotonic()
        self._longest, self._last = max(self._longest, now - self._last), now
        left = self.time_left()
        if left is None or left > self._longest:
            if what:
                print(f"# {now - self._started:.0f} s: {what}", file=sys.stderr, flush=True)
            return True
        print(f"# stopped for time before {what or 'the next'}; the same command goes on", file=sys.stderr, flush=True)
        return False


def read(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """The whole lines of a file."""
    lines = []
    for text in pathlib.Path(path).read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            print(f"# passed over half a line in {path}", file=sys.stderr)
    return lines
