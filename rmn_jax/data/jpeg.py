"""The header of a JPEG: its size, and how to decode no more than its first rows."""

import struct
from collections.abc import Iterator

import numpy as np

_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = (0xC0, 0xC1)  # frames with Huffman codes in which every block is coded once, from top to bottom
_START_OF_SCAN = 0xDA
_RESTART_INTERVAL = 0xDD
_END = 0xD9


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, position of its 0xFF byte) of the segments of the header, up to the first scan."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # padding between segments
            position += 1
            continue
        yield marker, position
        if marker == _START_OF_SCAN:
            return
        position += 2 + struct.unpack_from(">H", data, position + 2)[0]


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(H, W) from the frame header of a JPEG, ten times as fast as Pillow. None if there is no frame header."""
    for marker, position in _segments(data):
        if marker in _START_OF_FRAME:
            return struct.unpack_from(">HH", data, position + 5) if position + 9 <= len(data) else None
    return None


def first_rows(data: bytes, rows: int) -> bytearray | None:
    """A JPEG whose first ``rows`` rows are exactly those of ``data``, and which is not much higher.

    Only the header is new: it states a smaller height, so a decoder stops early and saves all work on the rows below.
    Their data stay, but without the end marker, at which libjpeg would print a warning about them.

    Returns:
      The JPEG; None if it saves nothing or is not possible: a progressive JPEG, a scan for each color, restart markers,
      or more than one end marker (a thumbnail, data after the image).
    """
    segments = dict(_segments(data))
    frame = next((position for marker, position in segments.items() if marker in _SEQUENTIAL), None)
    scan = segments.get(_START_OF_SCAN)
    if frame is None or scan is None or _RESTART_INTERVAL in segments:
        return None
    height, colors = struct.unpack_from(">HxxB", data, frame + 5)
    all_in_one_scan = data[scan + 4 : scan + 5] == bytes([colors])
    sampling = [factors & 15 for factors in data[frame + 11 : frame + 11 + 3 * colors : 3]]
    if not all_in_one_scan or not sampling or min(sampling) == 0 or not _ends_once(data):
        return None  # with a damaged header too: the decoder says what is wrong
    block = 8 * max(sampling)
    # Colors may be stored at half the resolution. Then a row depends on the two rows below it.
    kept = -(-(rows + 2) // block) * block
    if kept >= height:
        return None
    part = bytearray(data)
    struct.pack_into(">H", part, frame + 5, kept)
    part[-2:] = bytes(2)
    return part


def _ends_once(data: bytes) -> bool:
    """Whether the last two bytes are the only end marker."""
    values = np.frombuffer(data, np.uint8)  # five times as fast as bytes.find
    ends = (values[:-1] == 0xFF) & (values[1:] == _END)
    return bool(ends[-1]) and np.count_nonzero(ends) == 1
