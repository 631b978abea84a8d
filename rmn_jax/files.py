"""Writing small files whole or not at all."""

import os
import pathlib


def write_file(path: pathlib.Path, text: str) -> None:
    """Writes a text file atomically, as UTF-8: readers see the old file or the new one, never a part.

    A device or pipe (say /dev/stdout) is written to directly, because it cannot be replaced.

    Args:
      path: the file; its folder must exist.
      text: its whole content.

    Raises:
      OSError: it cannot be written. The old file stays, and no partial file is left.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        path.write_text(text, encoding="utf-8")
        return
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
