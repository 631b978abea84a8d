"""Every backbone x size x {plain, RMN, RMN with CA}: shapes of outputs and variables; none is run."""

import jax
import pytest

from rmn_jax.analysis.counts import count_parameters, trace_shapes
from rmn_jax.cloning import is_procedural
from rmn_jax.errors import UserError
from rmn_jax.models import BACKBONES, RMN, create_backbone

CLASSES = {32: 100, 64: 200, 224: 1000}
UNITS = 3

# (height and width, channels) of f_1 .. f_S, by hand: how often each size is halved, and the paper's
# channels.
RESNET18 = (64, 128, 256, 512)
RESNET50 = (256, 512, 1024, 2048)
VGG = (128, 256, 512, 512)
EFFICIENTNET = (16, 24, 40, 112, 1280)
MAPS = {
    ("resnet8", 32): ((32, 16), (16, 32), (8, 64)),
    ("resnet8", 64): ((64, 16), (32, 32), (16, 64)),
    ("resnet8", 224): ((224, 16), (112, 32), (56, 64)),
    # Stride 2 and max-pool before stage 1 are dropped on small images; stages 2-4 halve.
    ("resnet10", 32): tuple(zip((32, 16, 8, 4), RESNET18, strict=True)),
    ("resnet10", 64): tuple(zip((64, 32, 16, 8), RESNET18, strict=True)),
    ("resnet10", 224): tuple(zip((56, 28, 14, 7), RESNET18, strict=True)),
    ("resnet18", 32): tuple(zip((32, 16, 8, 4), RESNET18, strict=True)),
    ("resnet18", 64): tuple(zip((64, 32, 16, 8), RESNET18, strict=True)),
    ("resnet18", 224): tuple(zip((56, 28, 14, 7), RESNET18, strict=True)),
    ("resnet50", 32): tuple(zip((32, 16, 8, 4), RESNET50, strict=True)),
    ("resnet50", 64): tuple(zip((64, 32, 16, 8), RESNET50, strict=True)),
    ("resnet50", 224): tuple(zip((56, 28, 14, 7), RESNET50, strict=True)),
    # Five pools, one in the stem; at 64 the stem's and the first stage's are dropped.
    ("vgg16_bn", 32): tuple(zip((8, 4, 2, 1), VGG, strict=True)),
    ("vgg16_bn", 64): tuple(zip((64, 32, 16, 8), VGG, strict=True)),
    ("vgg16_bn", 224): tuple(zip((56, 28, 14, 7), VGG, strict=True)),
    # Strides 2 in the stem and the 24-channel stage are dropped on small images.
    ("efficientnet_b0", 32): tuple(zip((32, 32, 16, 8, 4), EFFICIENTNET, strict=True)),
    ("efficientnet_b0", 64): tuple(zip((64, 64, 32, 16, 8), EFFICIENTNET, strict=True)),
    ("efficientnet_b0", 224): tuple(zip((112, 56, 28, 14, 7), EFFICIENTNET, strict=True)),
}

# torchvision's plain networks; 1000 classes.
PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "vgg16_bn": 138_365_992,
    "efficientnet_b0": 5_288_548,
}


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

    # A routed leaf is its plain leaf with one axis N in front, at the same path; the others are the same.
    for collection in ("params", "batch_stats"):
        want = jax.tree_util.tree_map_with_path(
            lambda path, leaf: (UNITS, *leaf.shape) if is_procedural(path) else leaf.shape,
            plain.variables[collection],
        )
        assert jax.tree.map(lambda leaf: leaf.shape, routed.variables[collection]) == want
    stem_channels = {"resnet8": 16, "efficientnet_b0": 32}.get(name, 64)
    inputs = (stem_channels, *(channels for _, channels in maps[:-1]))
    memories = {f"memory{i + 1}": (UNITS, channels) for i, channels in enumerate(inputs)}
    assert {k: v.shape for k, v in routed.variables["memory"].items()} == memories

    # One attention a stage and nothing else is added; C -> C/16 and C/16 + N -> C, without biases.
    added = sum(c * max(1, c // 16) + (max(1, c // 16) + UNITS) * c for _, c in maps)
    assert count_parameters(attentive.variables) - count_parameters(routed.variables) == added
    assert set(attentive.variables["params"]) - set(routed.variables["params"]) == {
        f"attention{i + 1}" for i in range(len(maps))
    }

    # Routing costs N C products a stage, attention its two linear layers.
    assert routed.multiply_adds - plain.multiply_adds == UNITS * sum(inputs)
    assert attentive.multiply_adds - routed.multiply_adds == added
    if size == 224 and name in PUBLISHED:
        assert count_parameters(plain.variables) == PUBLISHED[name]


def test_a_width_doubles_from_stage_to_stage_and_is_for_resnets():
    model = RMN(create_backbone("resnet10", 10, 32, width=24), UNITS, routed=False)
    assert [f.shape[-1] for f in trace_shapes(model, 32, batch=2).outputs.stages] == [24, 48, 96, 192]
    for name, width in (("vgg16_bn", 32), ("resnet18", -1)):
        with pytest.raises(UserError, match=f"model.width is {width} for {name}"):
            create_backbone(name, 10, 32, width=width)
