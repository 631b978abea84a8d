"""Images and charts as self-contained HTML: ``data:`` URIs and inline SVG.

Colours are CSS classes, so the style of the page sets them for its light and its dark scheme: ``u0``, ``u1``, .. for
units, ``heat`` for a heat map.

Axes: N units, K classes, H W height and width of an image, E epochs (see ``rmn_jax``).
"""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from PIL import Image

LARGEST_IMAGE = 96  # longest side of an image on the page, in pixels
LOSSLESS = 48  # images up to this side, in pixels, are PNG; larger ones are JPEG
_LEVELS = 20  # colour levels of a heat map
_LABEL_HEIGHT = 13  # height of a line of small text, in pixels
# With more units than this a chart shows only those that receive images.
MANY_UNITS = 16


def data_uri(image: np.ndarray) -> str:
    """An image, uint8 [H, W, 3], as a ``data:`` URI; scaled down if a side is longer than ``LARGEST_IMAGE``."""
    picture = Image.fromarray(image)
    picture.thumbnail((LARGEST_IMAGE, LARGEST_IMAGE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if max(picture.size) <= LOSSLESS:
        kind = "png"
        picture.save(file, "PNG", optimize=True)
    else:
        kind = "jpeg"
        picture.save(file, "JPEG", quality=88, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def load_chart(epochs: Sequence[int], load: np.ndarray) -> str:
    """Stacked bars of the units' shares at one stage: a column for each epoch, unit 0 at the top.

    Args:
      epochs: E numbers.
      load: [E, N], number of inputs that each unit received.

    Returns:
      An SVG element.
    """
    share = load / np.maximum(load.sum(axis=1, keepdims=True), 1)
    ends = 100 * np.cumsum(share, axis=1)
    width = 0.92 if len(epochs) <= 60 else 1  # no gaps of less than a pixel between narrow bars: they flicker
    bars = []
    for unit in range(load.shape[1]):
        boxes = [
            _box(column + (1 - width) / 2, ends[column, unit] - 100 * part, width, 100 * part)
            for column, part in enumerate(share[:, unit])
            if part > 0
        ]
        bars.append(f'<path class="u{unit}" d="{"".join(boxes)}"/>')
    titles = [escape(_shares(f"epoch {epoch}", row)) for epoch, row in zip(epochs, share, strict=True)]
    columns = [
        f'<rect class="over" x="{column}" width="1" height="100"><title>{title}</title></rect>'
        for column, title in enumerate(titles)
    ]
    return (
        f'<svg class="load" viewBox="0 0 {len(epochs)} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="share of each unit, epochs {epochs[0]} to {epochs[-1]}">{"".join(bars + columns)}</svg>'
    )


class _Grid(NamedTuple):
    """Positions of the cells of a heat map, in pixels.

    Attributes:
      left: left edge of the strip of unit colours; the cells begin 10 pixels to its right.
      top: upper edge of the first row.
      cell: width of a column.
      row: height of a row.
    """

    left: float
    top: float
    cell: float
    row: float

    def x(self, unit: int) -> float:
        return self.left + 10 + unit * self.cell

    def y(self, row: int) -> float:
        return self.top + row * self.row


def heat_map(counts: np.ndarray, names: Sequence[str], dead: np.ndarray) -> str:
    """Heat map of one stage: a row for each class, a column for each unit, the unit's share of the class as colour.

    Classes are sorted by the unit that receives most of them. With many classes the rows are thin and only some have a
    label; the tooltip of a row shows its class and shares. Of many units only those with images have a column.

    Args:
      counts: [K, N], number of images of each class that each unit received.
      names: of the K classes.
      dead: [N] bool, units without images.

    Returns:
      An SVG element.
    """
    num_classes, num_units = counts.shape
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    order = class_order(share)
    share, ordered = share[order], [names[index] for index in order]
    many = num_units > MANY_UNITS
    units = np.flatnonzero(~dead) if many else np.arange(num_units)
    row_height = min(20.0, max(1.0, 660 / num_classes))
    rows_per_label = int(np.ceil(_LABEL_HEIGHT / row_height))
    labels = {row: shorten(ordered[row]) for row in range(0, num_classes, rows_per_label)}
    left = 8 + max(map(_text_width, labels.values()))
    grid = _Grid(left, 30 if many or dead.any() else 20, min(40, max(15, 180 / max(1, len(units)))), row_height)
    columns = _upright_columns(grid, units) if many else _columns(grid, dead)
    parts = columns + _cells(grid, share[:, units]) + _rows(grid, share, ordered, labels, len(units))
    width, height = grid.x(len(units)) + 2, grid.y(num_classes) + 2
    return (
        f'<svg class="heatmap" viewBox="0 0 {_number(width)} {_number(height)}" width="{_number(width)}" role="img" '
        f'aria-label="share of each class by unit">{"".join(parts)}</svg>'
    )


def _columns(grid: _Grid, dead: np.ndarray) -> list[str]:
    parts = []
    for unit, is_dead in enumerate(dead):
        middle = _number(grid.x(unit) + grid.cell / 2)
        cross = f'<tspan x="{middle}" dy="12">✕</tspan><title>dead unit</title>' if is_dead else ""
        parts.append(f'<text class="column{" dead" if is_dead else ""}" x="{middle}" y="13">{unit}{cross}</text>')
    return parts


def _upright_columns(grid: _Grid, units: np.ndarray) -> list[str]:
    """Numbers with three digits do not fit side by side; these are read from below."""
    parts = []
    for column, unit in enumerate(units):
        at = f"translate({_number(grid.x(column) + grid.cell / 2)} {_number(grid.top - 4)}) rotate(-90)"
        parts.append(f'<text class="column upright" transform="{at}">{unit}</text>')
    return parts


def _cells(grid: _Grid, share: np.ndarray) -> list[str]:
    """One path for all cells of the same level. With a thousand classes there are thousands of cells."""
    levels = np.ceil(share * _LEVELS - 1e-9).astype(int)
    parts = []
    for level in np.unique(levels[levels > 0]):
        boxes = [
            _box(grid.x(unit), grid.y(row), grid.cell - 1, grid.row - (grid.row > 6))
            for row, unit in np.argwhere(levels == level)
        ]
        parts.append(f'<path class="heat" fill-opacity="{level / _LEVELS:g}" d="{"".join(boxes)}"/>')
    return parts


def _rows(grid: _Grid, share: np.ndarray, names: Sequence[str], labels: dict[int, str], num_columns: int) -> list[str]:
    """For each class a strip in the colour of its main unit, a label if it has one, and a tooltip."""
    parts, whole = [], _number(grid.x(num_columns))
    for row, name in enumerate(names):
        place = f'y="{_number(grid.y(row))}" height="{_number(grid.row)}"'
        parts.append(f'<rect class="u{share[row].argmax()}" x="{_number(grid.left)}" width="4" {place}/>')
        if row in labels:
            at = f'x="{_number(grid.left - 5)}" y="{_number(grid.y(row) + grid.row / 2)}"'
            parts.append(f'<text class="row" {at}>{escape(labels[row])}</text>')
        title = escape(_shares(name, share[row]))
        parts.append(f'<rect class="over" width="{whole}" {place}><title>{title}</title></rect>')
    return parts


def class_order(share: np.ndarray) -> np.ndarray:
    """Classes sorted by their main unit, then by their share there, largest first: [K, N] -> [K] int."""
    return np.lexsort((-share.max(axis=1), share.argmax(axis=1)))


def shorten(name: str, longest: int = 17) -> str:
    """A name that fits beside a chart. Of several names separated by commas (as in ImageNet) the first is kept."""
    if len(name) > longest:
        name = name.split(",")[0]
    return name if len(name) <= longest else name[: longest - 1].rstrip() + "…"


def _shares(title: str, share: np.ndarray) -> str:
    return "\n".join([title, *(f"unit {unit}: {part:.1%}" for unit, part in enumerate(share) if part > 0)])


def _text_width(text: str) -> float:
    """Approximate width of small text, in pixels; Chinese, Japanese and Korean characters are square."""
    return sum(12 if ord(letter) > 0x2E7F else 7 for letter in text)


def _box(x: float, y: float, width: float, height: float) -> str:
    """A rectangle as a part of a path, which is shorter than an element."""
    return f"M{_number(x)} {_number(y)}h{_number(width)}v{_number(height)}h{_number(-width)}z"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
