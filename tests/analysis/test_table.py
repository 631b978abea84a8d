"""The table: each figure agrees with the paper's, or has a note whose arithmetic is checked here."""

import io
import json
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from rmn_jax.analysis import paper, table
from rmn_jax.analysis.counts import count_parameters, trace_shapes
from rmn_jax.models import RMN, create_backbone
from rmn_jax.models.layers import RoutedBatchNorm


@pytest.fixture(scope="module")
def by_name():
    return {(row.benchmark, row.backbone, row.variant): row for row in table.rows()}


def test_the_table_has_every_network(by_name):
    assert len(by_name) == 3 * 8 * 3


@pytest.mark.parametrize("variant", ["RMN", "RMN+CA"])
def test_counts_equal_those_of_a_traced_routed_network(by_name, variant):
    model = RMN(create_backbone("resnet18", 100, 32), 8, **table.VARIANTS[variant])
    shapes, row = trace_shapes(model, 32), by_name["CIFAR-100", "resnet18", variant]
    assert row.parameters == count_parameters(shapes.variables)
    assert row.multiply_adds == shapes.multiply_adds


def test_plain_counts_equal_those_of_torchvision(by_name):
    # Parameters, and billions of multiply-adds as torchvision rounds them.
    published = {
        "vgg16_bn": (138_365_992, 15.470),
        "resnet18": (11_689_512, 1.814),
        "resnet34": (21_797_672, 3.664),
        "resnet50": (25_557_032, 4.089),
        "resnet101": (44_549_160, 7.801),
        "mobilenet_v2": (3_504_872, 0.301),
        "efficientnet_b0": (5_288_548, 0.386),
        "convnext_tiny": (28_589_128, 4.456),
    }
    assert published.keys() == table.BACKBONES.keys()
    for backbone, counts in published.items():
        row = by_name["ImageNet", backbone, "plain"]
        assert (row.parameters, round(row.multiply_adds / 1e9, 3)) == counts


def test_rows_of_backbones_that_the_paper_does_not_have_are_without_its_figures(by_name):
    for (_, backbone, _), row in by_name.items():
        has = backbone in ("vgg16_bn", "resnet18", "resnet50", "efficientnet_b0")
        assert (row.paper_parameters is not None) == (row.parameter_difference is not None) == has
        assert has or row.paper_multiply_adds is row.multiply_add_difference is None
        assert has or row.notes == ()


def test_figures_agree_with_the_papers_or_have_a_note(by_name):
    for row in by_name.values():
        noted = set(row.notes)
        if row.parameter_difference is not None and abs(row.parameter_difference) > 0.1:
            assert noted & {
                "vgg-weights",
                "vgg-cifar",
                "resnet18-cifar",
                "resnet50-cifar",
                "efficientnet-cifar",
            }, row
        if row.multiply_add_difference is not None:
            # Half a unit of the last printed digit, and half a percent.
            near = 0.005 + 0.005 * row.paper_multiply_adds
            assert abs(row.multiply_add_difference) <= near or noted & {
                "vgg-operations",
                "norm-operations",
            }, row


@pytest.mark.parametrize(
    ("note", "backbone", "here", "there", "counted"),
    [
        ("vgg-cifar", "vgg16_bn", 102.9, 102.7, 102.8),
        ("resnet18-cifar", "resnet18", 77.1, 78.1, 78.2),
        ("resnet50-cifar", "resnet50", 160.1, 164.4, 164.5),
    ],
)
def test_routing_adds_the_same_parameters_on_every_benchmark(by_name, note, backbone, here, there, counted):
    grown = lambda bench: paper.FIGURES[bench, backbone][1] - paper.FIGURES[bench, backbone][0]  # noqa: E731
    assert grown("CIFAR-100") == pytest.approx(here)
    assert grown("ImageNet") == pytest.approx(there)
    ours = {
        by_name[bench, backbone, "RMN"].parameters - by_name[bench, backbone, "plain"].parameters
        for bench in table.BENCHMARKS
    }
    assert len(ours) == 1
    assert ours.pop() / 1e6 == pytest.approx(counted, abs=0.05)
    for figure in (here, there, counted):
        assert f"{figure}M" in paper.NOTES[note]


def test_arithmetic_of_the_vgg_notes(by_name):
    # By hand: the 3x3 kernels of the 13 convolutions, and the kernels of the linear layers on each benchmark.
    channels = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    kernels = [9 * a * b for a, b in zip(channels, channels[1:], strict=False)]
    stages = sum(kernels[2:])
    attention = sum(c * c // 16 + (c // 16 + 8) * c for c in (128, 256, 512, 512))
    for benchmark, grid, classes, routed, attentive in (
        ("Tiny ImageNet", 7, 200, 237.77, 237.86),
        ("ImageNet", 7, 1000, 241.05, 241.13),
    ):
        linear = 512 * grid**2 * 4096 + 4096 * 4096 + 4096 * classes
        millions = (sum(kernels) + linear + 7 * stages) / 1e6
        assert millions == pytest.approx(routed, abs=0.005)
        assert millions + attention / 1e6 == pytest.approx(attentive, abs=0.005)
        figures = paper.FIGURES[benchmark, "vgg16_bn"]
        assert figures[1] == pytest.approx(millions, abs=0.1)
        assert figures[2] == pytest.approx(millions + attention / 1e6, abs=0.1)
        assert f"{routed}M" in paper.NOTES["vgg-weights"] and f"{attentive}M" in paper.NOTES["vgg-weights"]


def norm_values(backbone, size, classes):
    """Number of values that pass through batch norms, for one image."""
    total = 0

    def count(next_call, args, kwargs, context):
        nonlocal total
        output = next_call(*args, **kwargs)
        if isinstance(context.module, RoutedBatchNorm) and context.method_name == "__call__":
            total += math.prod(output.shape)
        return output

    model = RMN(create_backbone(backbone, classes, size), routed=False)
    with nn.intercept_methods(count):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    return total


@pytest.mark.parametrize(
    ("benchmark", "backbone", "operations_per_value", "billions"),
    [
        # Two operations for the norm, one for the bias of the convolution before it.
        ("ImageNet", "vgg16_bn", 3, 15.51),
        ("Tiny ImageNet", "vgg16_bn", 3, 15.10),
        ("CIFAR-100", "vgg16_bn", 3, 0.33),
        ("Tiny ImageNet", "resnet50", 2, 5.25),
        ("Tiny ImageNet", "efficientnet_b0", 1, 0.47),
    ],
)
def test_arithmetic_of_the_notes_on_multiply_adds(by_name, benchmark, backbone, operations_per_value, billions):
    counted = by_name[benchmark, backbone, "plain"].multiply_adds
    counted += operations_per_value * norm_values(backbone, *table.BENCHMARKS[benchmark])
    assert counted / 1e9 == pytest.approx(billions, abs=0.005)
    assert f"{billions:.2f}B" in paper.NOTES["vgg-operations"] + paper.NOTES["norm-operations"]


def test_another_number_of_units(by_name, monkeypatch):
    monkeypatch.setattr(table, "BACKBONES", {"resnet18": "ResNet-18"})
    monkeypatch.setattr(table, "BENCHMARKS", {"Tiny ImageNet": (64, 200)})
    rows = table.rows(num_units=128)
    plain, routed, attentive = rows
    eight = [by_name["Tiny ImageNet", "resnet18", variant] for variant in table.VARIANTS]
    assert plain._replace(num_units=8) == eight[0]
    # Seven more copies of the routed stages are 78.2 M more, so 127 are 127/7 of that.
    assert routed.parameters == eight[0].parameters + 127 * (eight[1].parameters - eight[0].parameters) // 7
    # The stages have 64, 64, 128 and 256 channels at their entrance: 120 more distances to each.
    assert routed.multiply_adds - eight[1].multiply_adds == 120 * (64 + 64 + 128 + 256)
    assert attentive.parameters > routed.parameters
    for row in (routed, attentive):  # the paper has N = 8
        assert row.paper_parameters is None and row.paper_multiply_adds is None and row.notes == ()
    assert "N = 128." in table.to_markdown(rows) and "N = 128" in table.to_terminal(rows)[0][0].title


def test_docs_table_is_up_to_date():
    page = pathlib.Path(__file__).parents[2] / "docs" / "table.md"
    assert page.read_text() == table.to_markdown(table.rows()), "run: rmn table --markdown > docs/table.md"


def test_json_and_terminal_tables():
    rows = table.rows()
    first = json.loads(json.dumps(table.to_json(rows)))[0]
    assert first["backbone"] == "vgg16_bn"
    assert first["parameter_difference"] == pytest.approx(first["parameters"] / 1e6 - 33.8, abs=1e-3)
    assert first["notes"][0].startswith("The paper's figures are inconsistent")
    tables, notes = table.to_terminal(rows)
    console = Console(width=160, file=io.StringIO())
    for page in tables:
        console.print(page)
    text = console.file.getvalue()
    assert "138,365,992" in text and "Tiny ImageNet, 64x64" in text
    assert notes[0].startswith("[1] ")
