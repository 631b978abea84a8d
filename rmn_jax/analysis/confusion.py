"""A confusion matrix as a figure and as a table, with the accuracy of each class.

Axes: K classes (see ``rmn_jax``).
"""

import csv
import io
import pathlib

import numpy as np
from matplotlib.figure import Figure

from rmn_jax.analysis.charts import shorten
from rmn_jax.errors import UserError
from rmn_jax.files import write_file

_MOST_LABELS = 40  # classes; with more, the axes have numbers


def write(confusion: np.ndarray, class_names: tuple[str, ...], folder: pathlib.Path) -> dict[str, str]:
    """Writes ``confusion.png`` and ``confusion.csv``.

    Args:
      confusion: [K, K] int, images by true class (rows) and predicted class (columns).
      class_names: K names.
      folder: is created if absent.

    Returns:
      ``{"figure": path, "csv": path}``.

    Raises:
      UserError: the files cannot be written.
    """
    figure, table = folder / "confusion.png", folder / "confusion.csv"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(table, to_csv(confusion, class_names))
        draw(confusion, class_names).savefig(figure)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}.") from None
    return {"figure": str(figure), "csv": str(table)}


def per_class(confusion: np.ndarray) -> np.ndarray:
    """The accuracy of each class, [K] float; NaN for a class without images."""
    total = confusion.sum(axis=1)
    return np.where(total > 0, confusion.diagonal() / np.maximum(total, 1), np.nan)


def to_csv(confusion: np.ndarray, class_names: tuple[str, ...]) -> str:
    """A header, then for each true class its images, its accuracy, and its images by predicted class."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["class", "images", "accuracy", *class_names])
    for name, row, share in zip(class_names, confusion, per_class(confusion), strict=True):
        table.writerow([name, int(row.sum()), "" if np.isnan(share) else f"{share:.6f}", *row.tolist()])
    return text.getvalue()


def draw(confusion: np.ndarray, class_names: tuple[str, ...]) -> Figure:
    """The shares of each true class (a row) by predicted class."""
    num_classes = len(class_names)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = min(12.0, max(4.0, 0.28 * num_classes + 2))
    figure = Figure(figsize=(side, side), dpi=120, layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(share, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    figure.colorbar(picture, ax=axis, shrink=0.8, label="share of the true class")
    axis.set(xlabel="predicted class", ylabel="true class")
    if num_classes <= _MOST_LABELS:
        names = [shorten(name) for name in class_names]
        axis.set_xticks(range(num_classes), names, rotation=90)
        axis.set_yticks(range(num_classes), names)
    return figure
