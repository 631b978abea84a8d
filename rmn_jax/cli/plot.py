"""The command ``rmn plot``."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

from rmn_jax.cli.arguments import Command, filled, table_console


def _plot_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("runs", type=filled, nargs="+", metavar="RUN", help="folders of `rmn train`")
    parser.add_argument("--out", type=filled, default="curves.png", help="the figure (default: curves.png)")


def plot(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """``rmn plot``: the curves of runs in one figure, and a table of where they stand."""
    from rmn_jax.analysis import curves
    from rmn_jax.analysis.curves_figure import draw
    from rmn_jax.files import save_figure

    runs = curves.read_curves(arguments.runs)
    path = save_figure(draw(runs), arguments.out, "curves.png")
    table_console(200).print(curves.to_table(runs))
    return {"figure": str(path)}


PLOT = Command("draw the curves of one or several runs in one figure, with a table", plot, _plot_arguments)
