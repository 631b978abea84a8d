"""Mosaic GPU kernel for Hopper: kernel gradient of a routed convolution on a map in slots.

    dk[u, t, c, o] = sum over slots r of unit u and output pixels q of x[s q + shift(t), r, c] dy[q, r, o]

A *slice* is one tap and 64 input channels: 64 rows of the gradient. A thread block has a *chunk* of consecutive groups
of one unit, a few slices and 64 to 256 output channels. A step is a run of 8 pixels of the 8 slots of one group: 64
terms of the sum. Each computing warp group has slices of its own. With stride 1 and maps at least 8 pixels wide, the
three columns of taps read one box of input pixels with a border (``shared``), each warp group one column; otherwise
each reads its own. Chunks of one unit are summed after the kernel, in a fixed order, so that results are reproducible.

Axes: H W height and width, R slots, C channels in, O channels out, N units (see ``rmn_jax``).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from rmn_jax.ops.mosaic_conv import ACCUMULATOR, DEPTH, RUN, _at, _view, run_shape, tile_pixels
from rmn_jax.ops.window import Window
from rmn_jax.routing.layout import GROUP, TileTable

# Registers of a thread that computes, by the number of such warp groups, and of one that loads. All warp groups of a
# block have 512 together. With one that computes, each thread has as many as it can have.
_REGISTERS = {2: 232, 3: 160}
_FEW_REGISTERS = 32
# Columns of float32 that go to device memory at once.
_STORED = 64


class Blocks(NamedTuple):
    """Block sizes.

    Attributes:
      columns: output channels: 64, 128 or 256.
      rows: rows of taps that a warp group sums at once where the input is shared: 1, or all.
      warp_groups: that compute; where the input is shared, as many as the kernel has columns.
      stages: of both inputs in shared memory, 2 or more.
      chunk: groups of 8 slots in a chunk, at most.
      splits: thread blocks that share the pixels of a chunk.
      shared: see the module.
    """

    columns: int
    rows: int
    warp_groups: int
    stages: int
    chunk: int
    splits: int
    shared: bool


class _Plan(NamedTuple):
    """Everything static of one kernel."""

    window: Window
    tile: tuple[int, int]
    box: tuple[int, int]
    across: int
    runs: int
    runs_of_split: int
    chunks: int
    slices: int
    blocks: Blocks
    interpreted: bool
    border: int


@functools.partial(jax.jit, static_argnames=("num_units", "window", "blocks", "interpret"))
def kernel_gradient(x, dy, table: TileTable, num_units: int, window: Window, blocks: Blocks, interpret=None):
    """The kernel gradient.

    Args:
      x: [H, W, R, C] bfloat16.
      dy: [OH, OW, R, O] bfloat16.
      table: the chunks, as tiles of ``blocks.chunk`` groups of slots (see ``rmn_jax.routing.layout.tile_table``).
      num_units: N.
      window: of the convolution.
      blocks: block sizes.
      interpret: parameters of JAX's interpreter, or None.

    Returns:
      [N, kh, kw, C, O] float32.
    """
    if blocks.stages < 2:  # a stage is free when the next one is being read
        raise ValueError(f"fewer than 2 stages would wait for each other forever: {blocks}")
    channels, features = x.shape[-1], dy.shape[-1]
    taps, chunks = window.height * window.width, channels // DEPTH
    tile = (1, RUN) if blocks.shared else tile_pixels(dy.shape[0], dy.shape[1], RUN, False)
    across = -(-dy.shape[1] // tile[1])
    runs = -(-dy.shape[0] // tile[0]) * across
    padding = window.padding[0][0]
    border = 0
    if interpret is not None and padding:  # the interpreter has no zeros before the first pixel
        border = padding
        before = (window.strides * border, 0)
        x = jnp.pad(x, (before, before, (0, 0), (0, 0)))
    plan = _Plan(
        window=window,
        tile=tile,
        box=(blocks.rows, RUN + window.width - 1) if blocks.shared else tile,
        across=across,
        runs=runs,
        runs_of_split=-(-runs // blocks.splits),
        chunks=chunks,
        slices=taps * chunks,
        blocks=blocks,
        interpreted=interpret is not None,
        border=border,
    )
    if blocks.shared:
        per_chunk = window.height // blocks.rows * chunks
    else:
        per_chunk = -(-plan.slices // blocks.warp_groups)

    def routed_kernel_gradient(*references):  # the kernel's name in profiles
        _entry(plan, *references)

    partial = plgpu.kernel(
        routed_kernel_gradient,
        out_type=jax.ShapeDtypeStruct((len(table.unit) * blocks.splits, taps * channels, features), jnp.float32),
        grid=(per_chunk, features // blocks.columns, len(table.unit) * blocks.splits),
        grid_names=("part", "column", "chunk"),
        num_threads=blocks.warp_groups + 1,
        thread_name="warp_group",
        **({} if interpret is None else {"interpret": interpret}),
    )(
        x.reshape(_view(x.shape, window.strides)),
        dy.reshape(*dy.shape[:2], -1, GROUP, features),
        table.low,
        table.high - table.low,
    )
    unit = jnp.where(table.high > table.low, table.unit, num_units)  # an empty chunk is of no unit
    member = jax.nn.one_hot(jnp.repeat(unit, blocks.splits), num_units, dtype=jnp.float32)
    total = jnp.einsum("tn,tko->nko", member, partial, precision=lax.Precision.HIGHEST)
    return total.reshape(num_units, window.height, window.width, channels, features)


def _entry(plan: _Plan, x_ref, dy_ref, low_ref, count_ref, out_ref):
    """Allocates shared memory and barriers for the block."""
    blocks, dtype = plan.blocks, jnp.bfloat16
    swizzle = plgpu.SwizzleTransform(128)
    boxes = 1 if blocks.shared else blocks.warp_groups
    buffers = [
        plgpu.SMEM(
            (blocks.stages, boxes, *plan.box, GROUP, DEPTH),
            dtype,
            transforms=(plgpu.TilingTransform((1, 1, 8, DEPTH)), swizzle),
        ),
        plgpu.SMEM(
            (blocks.stages, RUN, GROUP, blocks.columns),
            dtype,
            transforms=(plgpu.TilingTransform((1, 8, DEPTH)), swizzle),
        ),
        plgpu.SMEM(
            (blocks.warp_groups, DEPTH, _STORED),
            jnp.float32,
            transforms=(plgpu.TilingTransform((8, 32)), swizzle),
        ),
    ]
    barriers = [
        plgpu.Barrier(num_arrivals=boxes + plan.tile[0], num_barriers=blocks.stages),
        plgpu.Barrier(num_arrivals=blocks.warp_groups, num_barriers=blocks.stages),
    ]
    if plan.interpreted:
        buffers.append(plgpu.SMEM((blocks.warp_groups, blocks.rows, RUN * GROUP, DEPTH), dtype))
        buffers.append(plgpu.SMEM((blocks.warp_groups, RUN * GROUP, blocks.columns), dtype))
    pl.run_scoped(
        lambda buffers, barriers: _body(plan, x_ref, dy_ref, low_ref, count_ref, out_ref, buffers, barriers),
        buffers,
        barriers,
        collective_axes="warp_group",
    )


def _body(plan: _Plan, x_ref, dy_ref, low_ref, count_ref, out_ref, buffers, barriers):
    blocks = plan.blocks
    x_smem, dy_smem, out_smem, *scratch = buffers
    full, free = barriers
    warp_group, split_chunk = lax.axis_index("warp_group"), lax.axis_index("chunk")
    chunk, split = split_chunk // blocks.splits, lax.rem(split_chunk, blocks.splits)
    part, first_column = lax.axis_index("part"), lax.axis_index("column") * blocks.columns
    first_run = split * plan.runs_of_split
    runs = lax.min(plan.runs_of_split, lax.max(plan.runs - first_run, 0))
    steps = count_ref[chunk] * runs

    @pl.when(warp_group < blocks.warp_groups)
    def _compute():
        if blocks.warp_groups > 1:
            plgpu.set_max_registers(_REGISTERS[blocks.warp_groups], action="increase")

        def accumulate(*sums):
            @pl.loop(0, steps)
            def _step(i):
                stage = lax.rem(i, blocks.stages)
                plgpu.barrier_wait(full.at[stage])
                dy = dy_smem.at[stage]
                if plan.interpreted:
                    scratch[1][warp_group] = dy[...].reshape(RUN * GROUP, blocks.columns)
                    dy = scratch[1].at[warp_group]
                else:
                    dy = dy.reshape(RUN * GROUP, blocks.columns)
                for m, sum_ref in enumerate(sums):
                    rows = _input(plan, x_smem, stage, warp_group, m)
                    if plan.interpreted:
                        scratch[0][warp_group, m] = rows
                        rows = scratch[0].at[warp_group, m]
                    plgpu.wgmma(sum_ref, rows.transpose((1, 0)), dy)
                plgpu.wgmma_wait(len(sums))  # the step before this one is done
                pl.when(i > 0)(lambda: plgpu.barrier_arrive(free.at[lax.rem(i + blocks.stages - 1, blocks.stages)]))

            plgpu.wgmma_wait(0)

            @pl.when(steps > 0)
            def _last():
                plgpu.barrier_arrive(free.at[lax.rem(steps - 1, blocks.stages)])

            return [sum_ref[...] for sum_ref in sums]

        totals = blocks.rows if blocks.shared else 1
        sums = pl.run_scoped(accumulate, *[ACCUMULATOR((DEPTH, blocks.columns), jnp.float32)] * totals)
        for m, values in enumerate(sums):
            tap, c = _slice(plan, part, warp_group, m)
            row = (tap * plan.chunks + c) * DEPTH
            for j in range(0, blocks.columns, _STORED):
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                out_smem.at[warp_group][...] = values[:, j : j + _STORED]
                plgpu.commit_smem()
                to = out_ref.at[split_chunk, pl.ds(row, DEPTH), pl.ds(first_column + j, _STORED)]
                plgpu.copy_smem_to_gmem(out_smem.at[warp_group], to)
        plgpu.wait_smem_to_gmem(0)

    @pl.when(warp_group == blocks.warp_groups)
    def _load():
        if blocks.warp_groups > 1:
            plgpu.set_max_registers(_FEW_REGISTERS, action="decrease")

        @pl.loop(0, steps)
        def _step(i):
            stage = lax.rem(i, blocks.stages)
            pl.when(i >= blocks.stages)(lambda: plgpu.barrier_wait(free.at[stage]))
            group, run = low_ref[chunk] + i // runs, first_run + lax.rem(i, runs)
            top, left = run // plan.across * plan.tile[0], lax.rem(run, plan.across) * plan.tile[1]
            for number in range(1 if blocks.shared else blocks.warp_groups):
                at = _box(plan, part, number, group, top, left)
                plgpu.copy_gmem_to_smem(x_ref.at[at], x_smem.at[stage, number], full.at[stage])
            for row in range(plan.tile[0]):  # a row of pixels a copy: TMA has 5 dimensions
                columns = pl.ds(first_column, blocks.columns)
                at = (top + row, pl.ds(left, plan.tile[1]), group, slice(None), columns)
                to = dy_smem.at[stage, pl.ds(row * plan.tile[1], plan.tile[1])]
                plgpu.copy_gmem_to_smem(dy_ref.at[at], to, full.at[stage])

        # A block may end only when all barriers have been waited for.
        @pl.loop(lax.max(0, steps - blocks.stages), steps)
        def _drain(i):
            plgpu.barrier_wait(free.at[lax.rem(i, blocks.stages)])


def _slice(plan: _Plan, part, warp_group, m: int):
    """The tap and the chunk of 64 channels that a warp group's ``m``-th sum has."""
    blocks, width = plan.blocks, plan.window.width
    if blocks.shared:
        rows, c = part // plan.chunks * blocks.rows, lax.rem(part, plan.chunks)
        return (rows + m) * width + warp_group, c
    # Where slices are not a multiple of the warp groups, the last one is computed and written several times.
    number = lax.min(part * blocks.warp_groups + warp_group, plan.slices - 1)
    return number // plan.chunks, lax.rem(number, plan.chunks)


def _box(plan: _Plan, part, number: int, group, top, left):
    """The index of the input pixels that a box has for the output pixels from (top, left) on."""
    padding, strides = plan.window.padding[0][0], plan.window.strides
    tap, c = _slice(plan, part, 0 if plan.blocks.shared else number, 0)
    first_column = 0 if plan.blocks.shared else lax.rem(tap, plan.window.width)
    ahead = (tap // plan.window.width - padding, first_column - padding)
    residue = tuple(lax.rem(shift + 2 * strides, strides) for shift in ahead)
    shift = tuple((pixels - left_over) // strides for pixels, left_over in zip(ahead, residue, strict=True))
    rows = pl.ds(top + shift[0] + plan.border, plan.box[0])
    columns = pl.ds(left + shift[1] + plan.border, plan.box[1])
    return _at(rows, columns, residue, strides, group, c)


def _input(plan: _Plan, x_smem, stage, warp_group, m: int):
    """The 64 rows of input that a warp group's ``m``-th sum reads: a reference [64, 64], in the interpreter values."""
    if plan.blocks.shared:
        box, row, column = x_smem.at[stage, 0], m, warp_group
    else:
        box, row, column = x_smem.at[stage, warp_group], 0, 0
    if plan.interpreted:
        height, width = run_shape(plan.tile)
        return box[pl.ds(row, height), pl.ds(column, width)].reshape(RUN * GROUP, DEPTH)
    pixels = plan.box[0] * plan.box[1]
    return box.reshape(pixels * GROUP, DEPTH).at[pl.ds((row * plan.box[1] + column) * GROUP, RUN * GROUP)]
