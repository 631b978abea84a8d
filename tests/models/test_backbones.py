"""Every backbone x image size x {plain, RMN, RMN with attention}: shapes of outputs and variables, traced only."""

import jax
import pytest

from rmn_jax.analysis.counts import count_parameters, trace_shapes
from rmn_jax.errors import UserError
from rmn_jax.models import BACKBONES, RMN, create_backbone
from rmn_jax.models.build import option_names
from rmn_jax.training.cloning import is_procedural

CLASSES = {32: 100, 64: 200, 224: 1000}
UNITS = 3

# (height and width, channels) of f_1 .. f_S, by hand: how often each size is halved, and the paper's channels.
RESNET18 = (64, 128, 256, 512)
RESNET50 = (256, 512, 1024, 2048)
VGG = (128, 256, 512, 512)
EFFICIENTNET = (16, 24, 40, 112, 1280)
MOBILENET = (16, 24, 32, 96, 1280)
CONVNEXT = (96, 192, 384, 768)
MAPS = {
    ("resnet8", 32): ((32, 16), (16, 32), (8, 64)),
    ("resnet8", 64): ((64, 16), (32, 32), (16, 64)),
    ("resnet8", 224): ((224, 16), (112, 32), (56, 64)),
    # On small images the stem has no stride and no max-pool; stages 2-4 halve the size.
    ("resnet10", 32): tuple(zip((32, 16, 8, 4), RESNET18, strict=True)),
    ("resnet10", 64): tuple(zip((64, 32, 16, 8), RESNET18, strict=True)),
    ("resnet10", 224): tuple(zip((56, 28, 14, 7), RESNET18, strict=True)),
    ("resnet18", 32): tuple(zip((32, 16, 8, 4), RESNET18, strict=True)),
    ("resnet18", 64): tuple(zip((64, 32, 16, 8), RESNET18, strict=True)),
    ("resnet18", 224): tuple(zip((56, 28, 14, 7), RESNET18, strict=True)),
    ("resnet50", 32): tuple(zip((32, 16, 8, 4), RESNET50, strict=True)),
    ("resnet50", 64): tuple(zip((64, 32, 16, 8), RESNET50, strict=True)),
    ("resnet50", 224): tuple(zip((56, 28, 14, 7), RESNET50, strict=True)),
    ("resnet34", 32): tuple(zip((32, 16, 8, 4), RESNET18, strict=True)),
    ("resnet34", 64): tuple(zip((64, 32, 16, 8), RESNET18, strict=True)),
    ("resnet34", 224): tuple(zip((56, 28, 14, 7), RESNET18, strict=True)),
    ("resnet101", 32): tuple(zip((32, 16, 8, 4), RESNET50, strict=True)),
    ("resnet101", 64): tuple(zip((64, 32, 16, 8), RESNET50, strict=True)),
    ("resnet101", 224): tuple(zip((56, 28, 14, 7), RESNET50, strict=True)),
    # Five pools, the first in the stem. At 64 pixels those of the stem and of the first stage are dropped.
    ("vgg16_bn", 32): tuple(zip((8, 4, 2, 1), VGG, strict=True)),
    ("vgg16_bn", 64): tuple(zip((64, 32, 16, 8), VGG, strict=True)),
    ("vgg16_bn", 224): tuple(zip((56, 28, 14, 7), VGG, strict=True)),
    # On small images the stem and the stage of 24 channels have stride 1.
    ("efficientnet_b0", 32): tuple(zip((32, 32, 16, 8, 4), EFFICIENTNET, strict=True)),
    ("efficientnet_b0", 64): tuple(zip((64, 64, 32, 16, 8), EFFICIENTNET, strict=True)),
    ("efficientnet_b0", 224): tuple(zip((112, 56, 28, 14, 7), EFFICIENTNET, strict=True)),
    ("mobilenet_v2", 32): tuple(zip((32, 32, 16, 8, 4), MOBILENET, strict=True)),
    ("mobilenet_v2", 64): tuple(zip((64, 64, 32, 16, 8), MOBILENET, strict=True)),
    ("mobilenet_v2", 224): tuple(zip((112, 56, 28, 14, 7), MOBILENET, strict=True)),
    # The stem has stride 4, on small images 1; stages 2-4 halve the size.
    ("convnext_tiny", 32): tuple(zip((32, 16, 8, 4), CONVNEXT, strict=True)),
    ("convnext_tiny", 64): tuple(zip((64, 32, 16, 8), CONVNEXT, strict=True)),
    ("convnext_tiny", 224): tuple(zip((56, 28, 14, 7), CONVNEXT, strict=True)),
}

# Of torchvision's networks at 1000 classes: parameters, and billions of multiply-adds to three digits.
PUBLISHED = {
    "resnet18": (11_689_512, 1.814),
    "resnet34": (21_797_672, 3.664),
    "resnet50": (25_557_032, 4.089),
    "resnet101": (44_549_160, 7.801),
    "vgg16_bn": (138_365_992, 15.470),
    "mobilenet_v2": (3_504_872, 0.301),
    "efficientnet_b0": (5_288_548, 0.386),
    "convnext_tiny": (28_589_128, 4.456),
}
NO_STATISTICS = {"convnext_tiny"}  # layer norm


def shapes(name, size, **settings):
    model = RMN(create_backbone(name, CLASSES[size], size), UNITS, **settings)
    return trace_shapes(model, size, batch=2)


@pytest.mark.parametrize("size", CLASSES)
@pytest.mark.parametrize("name", BACKBONES)
def test_shapes_plain_routed_and_with_attention(name, size):
    maps = MAPS[name, size]
    plain = shapes(name, size, routed=False)
    routed = shapes(name, size)
    attentive = shapes(name, size, attention="conditional")

    for found in (plain, routed, attentive):
        assert found.outputs.logits.shape == (2, CLASSES[size])
        assert [f.shape for f in found.outputs.stages] == [(2, side, side, c) for side, c in maps]
        assert found.outputs.assignment.shape == (len(maps), 2)
    assert plain.outputs.distances == ()
    assert [d.shape for d in routed.outputs.distances] == [(2, UNITS)] * len(maps)

    # A routed leaf is its plain leaf with a leading axis N, at the same path. All other leaves are the same.
    assert ("batch_stats" in plain.variables) == (name not in NO_STATISTICS)
    for collection in sorted({"params", "batch_stats"} & set(plain.variables)):
        want = jax.tree_util.tree_map_with_path(
            lambda path, leaf: (UNITS, *leaf.shape) if is_procedural(path) else leaf.shape,
            plain.variables[collection],
        )
        assert jax.tree.map(lambda leaf: leaf.shape, routed.variables[collection]) == want
    stem_channels = {"resnet8": 16, "efficientnet_b0": 32, "mobilenet_v2": 32, "convnext_tiny": 96}.get(name, 64)
    inputs = (stem_channels, *(channels for _, channels in maps[:-1]))
    memories = {f"memory{i + 1}": (UNITS, channels) for i, channels in enumerate(inputs)}
    assert {k: v.shape for k, v in routed.variables["memory"].items()} == memories

    # Attention adds two linear layers for each stage and nothing else: C -> C/16 and C/16 + N -> C, without biases.
    added = sum(c * max(1, c // 16) + (max(1, c // 16) + UNITS) * c for _, c in maps)
    assert count_parameters(attentive.variables) - count_parameters(routed.variables) == added
    assert set(attentive.variables["params"]) - set(routed.variables["params"]) == {
        f"attention{i + 1}" for i in range(len(maps))
    }

    # For each stage, routing costs N C products, and attention those of its two linear layers.
    assert routed.multiply_adds - plain.multiply_adds == UNITS * sum(inputs)
    assert attentive.multiply_adds - routed.multiply_adds == added
    if size == 224 and name in PUBLISHED:
        parameters, billions = PUBLISHED[name]
        assert count_parameters(plain.variables) == parameters
        assert round(plain.multiply_adds / 1e9, 3) == billions


def test_the_width_is_the_first_stages_and_doubles_from_stage_to_stage():
    model = RMN(create_backbone("resnet10", 10, 32, width=24), UNITS, routed=False)
    assert [f.shape[-1] for f in trace_shapes(model, 32, batch=2).outputs.stages] == [24, 48, 96, 192]
    with pytest.raises(UserError, match="model.width is -1; it must be 1 or more"):
        create_backbone("resnet18", 10, 32, width=-1)


@pytest.mark.parametrize(("option", "side"), [({}, 7), ({"small_stem": "7x7"}, 7), ({"small_stem": "3x3"}, 3)])
def test_small_stem_is_the_kernel_of_the_stem_on_small_images(option, side):
    for size, expected in ((32, side), (224, 7)):
        model = RMN(create_backbone("resnet10", 10, size, **option), UNITS, routed=False)
        kernel = trace_shapes(model, size, batch=2).variables["params"]["stem"]["conv1"]["kernel"]
        assert kernel.shape == (expected, expected, 3, 64)
    with pytest.raises(UserError, match="unknown model.small_stem '5x5'"):
        create_backbone("resnet10", 10, 32, small_stem="5x5")


def test_the_options_of_a_backbone_are_its_keyword_only_arguments():
    assert option_names("resnet18") == option_names("resnet50") == option_names("resnet10") == ("small_stem", "width")
    assert option_names("resnet34") == option_names("resnet101") == ("small_stem", "width")
    assert option_names("resnet8") == option_names("convnext_tiny") == ("width",)
    for name in ("vgg16_bn", "efficientnet_b0", "mobilenet_v2", "no such backbone"):
        assert option_names(name) == ()


def test_an_option_that_the_backbone_does_not_have_is_named():
    with pytest.raises(UserError, match=r"vgg16_bn has no option small_stem \(given as '3x3'\); it has no options"):
        create_backbone("vgg16_bn", 10, 32, small_stem="3x3")
    with pytest.raises(UserError, match=r"vgg16_bn has no option width \(given as 32\)"):
        create_backbone("vgg16_bn", 10, 32, width=32)
    with pytest.raises(UserError, match="resnet8 has no option small_stem .* it has width"):
        create_backbone("resnet8", 10, 32, small_stem="3x3")


def test_an_unknown_backbone_is_refused_with_the_nearest_name():
    with pytest.raises(
        UserError, match=r"unknown backbone 'resnet19'; use one of .*vgg16_bn. Did you mean 'resnet1[08]'\?"
    ):
        create_backbone("resnet19", 10, 32)
