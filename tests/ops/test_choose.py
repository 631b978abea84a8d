"""The table of which code runs where."""

import jax
import jax.numpy as jnp
import pytest

from rmn_jax.ops import BACKENDS, Window, backend_name, choose, folded_form, mosaic_blocks, wants_slots, wants_tiles
from rmn_jax.ops.choose import RENAMED_BACKENDS, loop_beats_xla
from rmn_jax.ops.fold import FORMS


@pytest.mark.parametrize(("platform", "name"), [("cpu", "loop"), ("gpu", "tiles"), ("tpu", "scan"), ("other", "scan")])
def test_the_platform_decides_unless_a_backend_is_named(platform, name, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert backend_name() == backend_name("auto") == name
    for given in BACKENDS:
        assert backend_name(given) == given


def test_hopper_takes_the_kernels_in_bfloat16_once_they_are_measured_to_be_faster(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(choose, "kernels_run_here", lambda: True)
    for faster, name in ((False, "tiles"), (True, "mosaic")):
        monkeypatch.setattr(mosaic_blocks, "FASTER_THAN_TILES", faster)
        assert backend_name("auto", jnp.bfloat16) == name
        assert backend_name("auto") == "tiles"  # float32
        assert wants_slots("auto", dtype=jnp.bfloat16) is faster
        assert wants_tiles("auto", dtype=jnp.bfloat16) is not faster
    monkeypatch.setattr(choose, "kernels_run_here", lambda: False)  # another GPU
    assert backend_name("auto", jnp.bfloat16) == "tiles"


def test_an_unknown_backend_is_refused():
    with pytest.raises(
        ValueError, match=r"unknown backend 'lop'; one of \['loop', 'mosaic', 'scan', 'sliced', 'slots', 'tiles'\]"
    ):
        backend_name("lop")


def test_a_backend_has_the_three_passes_and_an_old_name_means_one_of_them():
    for backend in BACKENDS.values():
        assert all(callable(getattr(backend, name)) for name in ("forward", "input_gradient", "kernel_gradient"))
    assert set(RENAMED_BACKENDS.values()) <= set(BACKENDS)


@pytest.mark.parametrize(
    ("platform", "name", "folded", "expected"),
    [
        ("gpu", "auto", False, True),
        ("gpu", "auto", True, True),
        ("gpu", "scan", False, False),
        ("tpu", "auto", False, False),
        ("cpu", "auto", False, False),
        ("cpu", "tiles", False, True),
        ("cpu", "tiles", True, False),  # the folded forms of the CPU take sorted rows
    ],
)
def test_the_backend_tiles_wants_tiles_but_for_folded_weights_on_a_cpu(platform, name, folded, expected, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert wants_tiles(name, folded) is expected


def test_the_loop_is_for_plain_convolutions_with_many_channels_that_are_not_pointwise():
    three, strided, point = (Window.make(k, k, s, None) for k, s in ((3, 1), (1, 2), (1, 1)))
    rows = lambda channels: jnp.zeros((2, 4, 4, channels))  # noqa: E731
    assert loop_beats_xla(rows(32), three) and loop_beats_xla(rows(32), strided)
    assert not loop_beats_xla(rows(31), three) and not loop_beats_xla(rows(32), point)


def test_the_folded_form_of_a_layer():
    three, strided, point = (Window.make(k, k, s, None) for k, s in ((3, 1), (3, 2), (1, 1)))
    assert folded_form((1, 56, 56, 64), three) == folded_form((64, 56, 56, 64), three) == "winograd"
    assert folded_form((1, 7, 7, 512), three) == folded_form((1, 14, 14, 256), strided) == "im2col"
    assert folded_form((64, 7, 7, 512), three) == "winograd"
    assert folded_form((1, 56, 56, 256), point) == "im2col" and folded_form((64, 56, 56, 256), point) == "direct"
    assert folded_form((1, 224, 224, 3), Window.make(7, 7, 2, None)) == "direct"
    assert folded_form((1, 224, 224, 3), three) == "direct"  # too few channels: sums would cost as much as products
    assert folded_form((1, 56, 56, 64), three, jnp.bfloat16) == "direct"
    assert folded_form((1, 56, 56, 64), Window.make(3, 3, 1, 0)) == "direct"  # unpadded
    assert {"direct", "im2col", "winograd"} == set(FORMS)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_accelerators_use_kernels_unchanged(platform, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    for shape in ((1, 56, 56, 64), (8, 56, 56, 4, 64)):  # in tiles a map has five axes
        assert folded_form(shape, Window.make(3, 3, 1, None)) == "direct"
