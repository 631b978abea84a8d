"""The branches of the backend "loop" that only large kernels or large maps take."""

from unit_oracle import BATCH, UNITS, check_all_passes

from rmn_jax.ops import loop


def test_tiles_of_two_lengths_as_for_large_kernels(rng, monkeypatch):
    monkeypatch.setattr(loop, "_TWO_LENGTHS", 0)
    assert loop.tile_lengths(BATCH, 42, UNITS, 1) == (8, 16)
    check_all_passes("loop", 3, 1, rng, "two lengths")


def test_a_pointwise_layer_row_by_row_as_for_large_maps(rng, monkeypatch):
    monkeypatch.setattr(loop, "_ROW_BY_ROW", 1)
    check_all_passes("loop", 1, 1, rng, "row by row")


def test_a_tile_of_a_small_kernel_is_no_longer_than_a_units_share():
    # 512 inputs, maps of 4x4: 64, 16 and 8 inputs for each of 8, 32 and 64 units.
    assert [loop.tile_lengths(512, 16, units, 9 * 32 * 32) for units in (8, 32, 64)] == [(32,), (16,), (8,)]
    assert loop.tile_lengths(512, 16, 256, 9 * 32 * 32) == (8,)
