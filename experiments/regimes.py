"""Where does routing by memory win? Which stages are routed, whose statistics, when cloned, on how much data.

    python -m experiments.regimes --scale=cpu --minutes=60     # repeat until it exits with status 0
    python -m experiments.regimes --scale=cpu --finished       # trains nothing; the tables of what is finished

Rows are networks: Original, Original with squeeze-and-excitation (the control of conditional attention), and RMNs by
the stages that are routed and by whose statistics their batch norms use. Columns are the share of the training after
which the network is cloned. There is a table for each data set and width:

    20 classes, width 16      90 epochs, 10,000 training and 1,000 held-out images
    200 classes, width 4      30 epochs, 100,000 and 10,000
    200 classes, width 8      the same

Every RMN is compared with Original of the same seed. A cell has three seeds. If their differences in training accuracy
do not have the same sign, it gets two more. ``CORE`` is trained first: one choice changed at a time, then the pairs
that the hypotheses in docs/results.md are about.
"""

import argparse
import functools
import json
import math
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from experiments import suite
from experiments.pairs import binomial_error, correct_images, mcnemar, paired
from experiments.runs import folder_of, known_result, run_once, with_settings
from rmn_jax.errors import UserError
from rmn_jax.files import write_file

SEEDS, MORE_SEEDS = (0, 1, 2), (3, 4)
STAGES = {"all": "all stages", "last2": "last two stages", "last": "last stage"}
STATISTICS = {"unit": "unit's statistics", "batch": "batch's statistics", "mixed": "mixed statistics"}
WHEN = {"1/3": (1, 3), "2/3": (2, 3), "5/6": (5, 6)}
# (routed stages, statistics, when cloned), the most informative first.
CORE = [
    ("all", "unit", "1/3"),
    ("last", "unit", "1/3"),
    ("all", "batch", "1/3"),
    ("last", "batch", "1/3"),
    ("all", "mixed", "1/3"),
    ("last", "mixed", "1/3"),
    ("last2", "unit", "1/3"),
    ("all", "unit", "2/3"),
    ("all", "batch", "2/3"),
    ("last", "batch", "2/3"),
]
ALL = [(stages, statistics, when) for when in WHEN for stages in STAGES for statistics in STATISTICS]


class Scale(NamedTuple):
    """One table: its name, held-out images, epochs, width of the network, and number of classes (0: all 200)."""

    name: str
    held_out: int
    epochs: int
    width: int
    classes: int


SCALES = [
    Scale("20 classes, width 16", 1_000, 90, 16, 20),
    Scale("200 classes, width 4", 10_000, 30, 4, 0),
    Scale("200 classes, width 8", 10_000, 30, 8, 0),
]


class Cell(NamedTuple):
    """A network in a regime: one configuration, trained with several seeds.

    Attributes:
      scale: of its table.
      network: name of its row.
      when: its column, a key of ``WHEN``; "" for a plain network, which is in all columns.
      config: complete except for the seed.
      core: whether it is among those trained first.
    """

    scale: Scale
    network: str
    when: str
    config: ConfigDict
    core: bool

    @property
    def name(self) -> str:
        """The name of its row in the results file."""
        cloned = f", cloned at {self.when}" if self.when else ""
        return f"{self.network}{cloned}; {self.scale.name}"


@functools.cache
def cells(scale: Scale) -> list[Cell]:
    """All cells of a table, in the order in which they are trained."""

    def config(variant: str, when: str = "", **settings: Any) -> ConfigDict:
        share = WHEN[when or "1/3"]
        training = {"epochs": scale.epochs, "stem_epochs": scale.epochs * share[0] // share[1], "batch_size": 256}
        data = {"data__classes": scale.classes, "data__augment": "resized_crop_flip"}
        return suite.cpu_config(variant, **training, **data, model__width=scale.width, **settings)

    plain = [
        Cell(scale, "Original", "", config("plain"), True),
        Cell(scale, "Original with SE", "", config("plain", model__attention="se"), True),
    ]
    routed = [
        Cell(
            scale,
            f"RMN, {STAGES[stages]}, {STATISTICS[statistics]}",
            when,
            config("rmn_no_ca", when, model__routed_stages=stages, model__statistics=statistics),
            (stages, statistics, when) in CORE,
        )
        for stages, statistics, when in [*CORE, *(cell for cell in ALL if cell not in CORE)]
    ]
    attended = Cell(scale, "RMN with CA, all stages, unit's statistics", "1/3", config("rmn", "1/3"), True)
    return [plain[0], *routed[: len(CORE)], plain[1], attended, *routed[len(CORE) :]]


Found = dict[str, list[dict[str, Any]]]


def plan(found: Found, everything: bool) -> Iterator[tuple[Cell, int]]:
    """The runs in order. What comes next depends on the results in ``found``, which grow meanwhile.

    Args:
      found: the results by the name of the cell.
      everything: also the cells outside ``CORE``.
    """
    for core in (True, False) if everything else (True,):
        for scale in SCALES:
            chosen = [cell for cell in cells(scale) if cell.core == core]
            for seed in SEEDS:
                yield from ((cell, seed) for cell in chosen)
            original = cells(scale)[0]
            for seed in MORE_SEEDS:
                open_cells = [cell for cell in chosen if cell.when and not decided(found, cell)]
                if open_cells:
                    yield original, seed
                yield from ((cell, seed) for cell in open_cells)


def decided(found: Found, cell: Cell) -> bool:
    """Whether three or more seeds agree on the sign of the difference to Original in training accuracy."""
    original = cells(cell.scale)[0].name
    difference = paired(found.get(cell.name, []), found.get(original, []), "train_top1")
    return len(difference.seeds) >= len(SEEDS) and difference.agree


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains the runs of ``plan``, writes the results file after each, and prints the tables.

    Raises:
      UserError: see ``Run``; or ``--finished`` finds no finished run.
      Preempted: ``--minutes`` are over, or asked to stop. The state is saved; the same command goes on.
    """
    root = arguments.workdir or suite.default_root(arguments.scale)
    out = arguments.out or suite.default_out(arguments, root)
    until = time.monotonic() + 60 * arguments.minutes if arguments.minutes else float("inf")
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str((root / "compiled").absolute()))
    found: Found = {}
    summary: dict[str, Any] = {}
    for cell, seed in plan(found, arguments.everything):
        if not _wanted(cell, seed, arguments):
            continue
        config = with_settings(cell.config, seed=seed, data__data_dir=arguments.data_dir)
        if arguments.epochs:
            config = with_settings(config, epochs=arguments.epochs, stem_epochs=max(1, arguments.epochs // 3))
        slug = suite.Row(cell.name, config).slug
        if arguments.finished:
            result = known_result(folder_of(config, root, slug))
        else:
            result = run_once(config, root, slug, until, also=correct_images)
        if result is not None:
            found.setdefault(cell.name, []).append(result)
            summary = summarise(arguments, found)
            if not arguments.finished:
                out.parent.mkdir(parents=True, exist_ok=True)
                write_file(out, json.dumps(summary, indent=1) + "\n")
    if not summary and arguments.finished and out.exists():  # the published results, where no runs are
        summary = json.loads(out.read_text())
    if not summary:
        raise UserError(f"no finished run in {root}; leave out --finished to train.")
    print(to_markdown(summary))
    print(json.dumps({"results": str(out)}))
    return summary


def _wanted(cell: Cell, seed: int, arguments: argparse.Namespace) -> bool:
    words = [word.lower() for word in arguments.rows or [""]]
    named = any(word in cell.name.lower() for word in words)
    return (named or cell.network == "Original") and seed in (arguments.seeds or (*SEEDS, *MORE_SEEDS))


def summarise(arguments: argparse.Namespace, found: Found) -> dict[str, Any]:
    """The content of the results file: as ``suite.summarise``, and for each row its comparison with Original."""
    every = [cell for scale in SCALES for cell in cells(scale)]
    rows = [suite.Row(cell.name, cell.config) for cell in every]
    summary = suite.summarise(arguments, rows, {row.name: found.get(row.name, []) for row in rows})
    of_name = {cell.name: cell for cell in every}
    for row in summary["rows"]:
        cell = of_name[row["row"]]
        row |= {"scale": cell.scale.name, "network": cell.network, "cloned_at": cell.when}
        row["held_out"] = cell.scale.held_out
        if cell.network != "Original":
            row["against_original"] = compare(row["runs"], found.get(cells(cell.scale)[0].name, []))
    return summary


def compare(runs: list[dict[str, Any]], original: list[dict[str, Any]]) -> dict[str, Any]:
    """Differences to Original in points, seed by seed, with mean and standard error; and McNemar's test by seed."""
    found: dict[str, Any] = {}
    for key in ("top1", "train_top1"):
        difference = paired(runs, original, key)
        found["seeds"] = difference.seeds
        found[key] = {
            "by_seed": [round(value, 2) for value in difference.differences],
            "mean": round(difference.mean, 2) if difference.seeds else None,
            "standard_error": None if difference.standard_error is None else round(difference.standard_error, 2),
            "agree": difference.agree if difference.seeds else None,
        }
    answers = {run["seed"]: run.get("correct") for run in original}
    tests = {run["seed"]: (run.get("correct"), answers.get(run["seed"])) for run in runs}
    found["mcnemar"] = {str(seed): mcnemar(*pair)._asdict() for seed, pair in sorted(tests.items()) if all(pair)}
    return found


def to_markdown(summary: dict[str, Any]) -> str:
    """For each data set and width: networks by regimes, and the differences to Original seed by seed."""
    parts = []
    for scale in SCALES:
        rows = [row for row in summary["rows"] if row["scale"] == scale.name]
        if rows:
            parts.append(_matrix(scale, rows) + "\n" + _differences(rows))
    return "\n".join(parts)


def _matrix(scale: Scale, rows: list[dict[str, Any]]) -> str:
    found = {
        (row["network"], column): row for row in rows for column in ([row["cloned_at"]] if row["cloned_at"] else WHEN)
    }
    lines = [
        f"\n{scale.name}, {scale.epochs} epochs: top-1 % / training top-1 % (seeds), by the share of the "
        f"training after which the network is cloned. Standard error of one accuracy on {scale.held_out:,} held-out "
        f"images: {binomial_error(rows[0]['top1_mean'], scale.held_out):.1f} points.\n",
        "| network | " + " | ".join(f"cloned at {when}" for when in WHEN) + " |",
        "|---" + "|---:" * len(WHEN) + "|",
    ]
    for network in dict.fromkeys(row["network"] for row in rows):
        cells_of = [_cell(found.get((network, when))) for when in WHEN]
        lines.append("| " + " | ".join([network, *cells_of]) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    spread = "" if row["top1_std"] is None else f" ± {row['top1_std']:.2f}"
    training = math.fsum(run["train_top1"] for run in row["runs"]) / len(row["runs"])
    return f"{row['top1_mean']:.2f}{spread} / {training:.1f} ({row['seeds']})"


def _differences(rows: list[dict[str, Any]]) -> str:
    lines = [
        "\n| less Original, points | training, by seed | mean ± SE | held out, by seed | mean ± SE | McNemar, p |",
        "|---" + "|---:" * 5 + "|",
    ]
    for row in rows:
        found = row.get("against_original")
        if not found or not found["seeds"]:
            continue
        named = f"{row['network']}, {row['cloned_at']}" if row["cloned_at"] else row["network"]
        tests = ", ".join(f"{test['p_value']:.2f}" for test in found["mcnemar"].values()) or "-"
        cells_of = [named, *_signed(found["train_top1"]), *_signed(found["top1"]), tests]
        lines.append("| " + " | ".join(cells_of) + " |")
    return "\n".join(lines) + "\n"


def _signed(found: dict[str, Any]) -> tuple[str, str]:
    error = "" if found["standard_error"] is None else f" ± {found['standard_error']:.2f}"
    return ", ".join(f"{value:+.1f}" for value in found["by_seed"]), f"{found['mean']:+.2f}{error}"


def main() -> int:
    parser = suite.parser(__doc__.splitlines()[0], "regimes")
    parser.add_argument(
        "--everything",
        action="store_true",
        help="after the core cells also all other combinations, about as many hours",
    )
    arguments = parser.parse_args()

    def work() -> dict[str, Any]:
        if arguments.scale != "cpu":
            raise UserError("regimes has --scale=cpu alone; `python -m experiments.ladder` has the rows for a GPU.")
        return run(arguments)

    return suite.main(work)


if __name__ == "__main__":
    sys.exit(main())
