"""Table of parameters and multiply-adds: every backbone on every benchmark, beside the paper's figures.

Our figures are counted from the networks (``rmn_jax.analysis.counts``). The paper's are those that it prints for N = 8,
in millions and billions, rounded or truncated to the digits shown here. It has four of the backbones.
"""

import functools
from typing import Any, NamedTuple

import jax
from rich.table import Table

from rmn_jax.analysis import paper
from rmn_jax.analysis.counts import Shapes, count_parameters, trace_shapes
from rmn_jax.models import RMN, create_backbone, parse_stages
from rmn_jax.training.cloning import is_procedural

NUM_UNITS = 8
# Image size in pixels, and number of classes.
BENCHMARKS = {"CIFAR-100": (32, 100), "Tiny ImageNet": (64, 200), "ImageNet": (224, 1000)}
BACKBONES = {
    "vgg16_bn": "VGG-16",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "efficientnet_b0": "EfficientNet-B0",
    # The paper does not have these.
    "resnet34": "ResNet-34",
    "resnet101": "ResNet-101",
    "mobilenet_v2": "MobileNetV2",
    "convnext_tiny": "ConvNeXt-T",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"routed": False},
    "RMN": {},
    "RMN+CA": {"attention": "conditional"},
}


class Row(NamedTuple):
    """One network on one benchmark.

    Attributes:
      benchmark: a key of ``BENCHMARKS``.
      backbone: a key of ``BACKBONES``.
      variant: a key of ``VARIANTS``.
      parameters: number of trained values, of all units.
      multiply_adds: for one image, on the active path.
      paper_parameters: the paper's figure, in millions; None if it does not have the backbone.
      paper_multiply_adds: the paper's figure, in billions; None if it prints none.
      notes: keys of ``rmn_jax.analysis.paper.NOTES`` that explain a difference.
      num_units: N of the routed networks.
    """

    benchmark: str
    backbone: str
    variant: str
    parameters: int
    multiply_adds: int
    paper_parameters: float | None
    paper_multiply_adds: float | None
    notes: tuple[str, ...]
    num_units: int = NUM_UNITS

    @property
    def parameter_difference(self) -> float | None:
        """Our figure minus the paper's, in millions; None if the paper prints none."""
        return None if self.paper_parameters is None else self.parameters / 1e6 - self.paper_parameters

    @property
    def multiply_add_difference(self) -> float | None:
        """Our figure minus the paper's, in billions; None if the paper prints none."""
        return None if self.paper_multiply_adds is None else self.multiply_adds / 1e9 - self.paper_multiply_adds


@functools.cache
def rows(routed_stages: str = "all", num_units: int = NUM_UNITS) -> tuple[Row, ...]:
    """The counts of all networks. No network is computed.

    Args:
      routed_stages: as ``config.model.routed_stages``. The paper's figures, for all stages, stay beside the counts.
      num_units: N. With another N than the paper's 8, its figures for routed networks are left out.

    Raises:
      UserError: not the stages of every backbone.
    """
    return tuple(_row(*names, routed_stages, num_units) for names in _all_names())


def _all_names() -> list[tuple[str, str, str]]:
    return [(bench, name, variant) for bench in BENCHMARKS for name in BACKBONES for variant in VARIANTS]


def _row(benchmark: str, backbone: str, variant: str, routed_stages: str, num_units: int) -> Row:
    parameters, multiply_adds = _counts(benchmark, backbone, routed_stages, num_units, **VARIANTS[variant])
    if variant != "plain" and num_units != NUM_UNITS:
        return Row(benchmark, backbone, variant, parameters, multiply_adds, None, None, (), num_units)
    printed = paper.FIGURES.get((benchmark, backbone), (None,) * 4)
    operations = {"plain": printed[3], "RMN": None, "RMN+CA": None}
    if benchmark == "Tiny ImageNet" and backbone in paper.ATTENTION_MULTIPLY_ADDS:
        operations["RMN+CA"] = paper.ATTENTION_MULTIPLY_ADDS[backbone]
    quantities = ("parameters", "multiply_adds")
    noted = (paper.NOTED.get((backbone, benchmark, quantity)) for quantity in quantities)
    return Row(
        benchmark,
        backbone,
        variant,
        parameters,
        multiply_adds,
        printed[list(VARIANTS).index(variant)],
        operations[variant],
        tuple(note for variants, note in filter(None, noted) if variant in variants),
        num_units,
    )


def _counts(
    benchmark: str, backbone: str, routed_stages: str, num_units: int, routed: bool = True, attention: str = "none"
) -> tuple[int, int]:
    """Parameters and multiply-adds of a network, both from its plain form, which is fast to trace.

    Routing adds N - 1 copies of each leaf below a routed stage, and N C products for each routed stage. A test compares
    both with traced routed networks.
    """
    plain, stages = _plain_shapes(benchmark, backbone, attention, routed_stages, num_units)
    if not routed:
        return count_parameters(plain.variables), plain.multiply_adds
    leaves = jax.tree_util.tree_leaves_with_path(plain.variables["params"])
    parameters = sum(leaf.size * (num_units if is_procedural(path, stages) else 1) for path, leaf in leaves)
    distances = sum(num_units * plain.outputs.pooled[stage - 1].shape[-1] for stage in stages)
    return parameters, plain.multiply_adds + distances


@functools.cache
def _plain_shapes(
    benchmark: str, backbone: str, attention: str, routed_stages: str, num_units: int
) -> tuple[Shapes, tuple[int, ...]]:
    """The shapes of the plain network, and the numbers of the stages that routing would have units for."""
    size, classes = BENCHMARKS[benchmark]
    network = create_backbone(backbone, classes, size)
    stages = parse_stages(routed_stages, len(network.stages))
    model = RMN(network, num_units, routed=False, attention=attention, routed_stages=stages)
    return trace_shapes(model, size), model.stages_with_units


def to_json(table: tuple[Row, ...]) -> list[dict[str, Any]]:
    """One dictionary for each row: its fields, both differences, and the text of the notes."""
    return [
        {
            **row._asdict(),
            "parameter_difference": _rounded(row.parameter_difference, 3),
            "multiply_add_difference": _rounded(row.multiply_add_difference, 4),
            "notes": [paper.NOTES[note] for note in row.notes],
        }
        for row in table
    ]


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


_COLUMNS = (
    "Backbone",
    "Network",
    "Parameters",
    "M",
    "Paper",
    "Difference",
    "MACs, B",
    "Paper",
    "Difference",
    "Note",
)


def _cells(row: Row, numbers: dict[str, int]) -> tuple[str, ...]:
    parameters, operations = row.paper_parameters, row.paper_multiply_adds
    return (
        BACKBONES[row.backbone],
        row.variant,
        f"{row.parameters:,}",
        f"{row.parameters / 1e6:.2f}",
        "" if parameters is None else f"{parameters:.1f}",
        "" if parameters is None else f"{row.parameter_difference:+.2f}",
        f"{row.multiply_adds / 1e9:.3f}",
        "" if operations is None else f"{operations:.2f}",
        "" if operations is None else f"{row.multiply_add_difference:+.3f}",
        ", ".join(f"[{numbers[note]}]" for note in row.notes),
    )


def _numbered(table: tuple[Row, ...]) -> dict[str, int]:
    """The number of each note, from 1, in the order in which the table uses them."""
    used = dict.fromkeys(note for row in table for note in row.notes)
    return {note: i + 1 for i, note in enumerate(used)}


def to_terminal(table: tuple[Row, ...]) -> tuple[list[Table], list[str]]:
    """A rich table for each benchmark, and the notes as lines ``[1] ...``."""
    numbers, tables = _numbered(table), []
    for benchmark, (size, classes) in BENCHMARKS.items():
        page = Table(title=f"{benchmark}, {size}x{size}, {classes} classes, N = {table[0].num_units}")
        for i, column in enumerate(_COLUMNS):
            page.add_column(column, justify="left" if i < 2 else "right")
        for row in table:
            if row.benchmark == benchmark:
                page.add_row(*_cells(row, numbers), end_section=row.variant == "RMN+CA")
        tables.append(page)
    return tables, [f"[{number}] {paper.NOTES[note]}" for note, number in numbers.items()]


_HEADING = """# Parameters and multiply-adds beside the paper's

Written by `rmn table --markdown`; a test checks that it is up to date. N = {num_units}. Parameters are those of all
units. Multiply-adds are for one image on its active path: convolutions, linear layers (with those of conditional
attention) and, in a routed network, the distances to the memories. The counts of plain networks with 1000 classes equal
torchvision's to the last digit. A difference is our figure minus the paper's. The paper prints one decimal of a million
and two decimals of a billion. It does not have ResNet-34, ResNet-101, MobileNetV2 and ConvNeXt-T.
"""


def to_markdown(table: tuple[Row, ...]) -> str:
    """The page ``docs/table.md``."""
    numbers, lines = _numbered(table), [_HEADING.format(num_units=table[0].num_units)]
    for benchmark, (size, classes) in BENCHMARKS.items():
        lines += [f"## {benchmark} ({size}x{size}, {classes} classes)\n", "| " + " | ".join(_COLUMNS) + " |"]
        lines.append("|---|---|" + "--:|" * (len(_COLUMNS) - 3) + "---|")
        lines += ["| " + " | ".join(_cells(row, numbers)) + " |" for row in table if row.benchmark == benchmark]
        lines.append("")
    lines += ["## Notes\n"] + [f"- [{number}] {paper.NOTES[note]}" for note, number in numbers.items()]
    return "\n".join(lines) + "\n"
