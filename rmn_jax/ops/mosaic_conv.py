"""Mosaic GPU kernel for Hopper: output and input gradient of a routed convolution on a map in slots.

Both passes are one implicit matrix product. For a target map (the output, or the input's gradient)

    target[q, r, :] = sum over taps t of source[s q + shift(t), r, :] kernel[unit(r), t]

with pixels q and slots r. A *tile* is 16 or 32 pixels of the 8 slots of one group, times 64 to 256 channels. Its rows
belong to one unit, so a tile has one kernel for each tap, whatever the load is. The 8 slots of a pixel are one block of
shared memory as wgmma reads it: a tap shifts whole blocks. So a source is loaded once, with a border, and all taps that
see it read it there (``halo``). Pixels out of range are read as zeros by TMA and are not written.

A thread block takes tiles in turn. One of its warp groups loads and runs ahead into the next tile, two compute. The
weights arrive in their order in memory in both passes: the input gradient reads them transposed.

JAX's interpreter has no reshaped references and no zeros before the first pixel. There (``interpret``) rows are copied
to a scratch buffer and the source has a border of zeros in memory.

Axes: H W height and width, R slots, C channels in, O channels out, N units (see ``rmn_jax``).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from rmn_jax.ops.window import Window
from rmn_jax.routing.layout import GROUP

# Channels in a step of the product: a row of 128 bytes, which is what the memory's swizzle takes.
DEPTH = 64
# Pixels whose 8 slots are the 64 rows of a warp group's wgmma.
RUN = 8
# Warp groups that compute.
CONSUMERS = 2
# Registers of a thread that computes and of one that loads; 2 x 128 and 128 threads have 65,536 together.
MANY_REGISTERS, FEW_REGISTERS = 232, 40


# Not every version of JAX exports the name to type checkers.
ACCUMULATOR: Any = getattr(plgpu, "ACC", None)


class Blocks(NamedTuple):
    """Block sizes of a tile.

    Attributes:
      columns: channels of the target: 64, 128 or 256.
      runs: runs of 8 pixels for each of the two warp groups.
      sources: stages of source pixels in shared memory, 2 or more.
      kernels: stages of kernels, 2 or more.
      halo: load a source once with a border, not once a tap. Needs a map at least 8 pixels wide.
    """

    columns: int
    runs: int
    sources: int
    kernels: int
    halo: bool


class Tap(NamedTuple):
    """A tap along an axis: its ``number``, and the pixel ``strides (q + shift) + residue`` of the source it sees."""

    number: int
    residue: int
    shift: int


class Axis(NamedTuple):
    """How one axis of the target sees the source.

    Attributes:
      taps: for each residue of the target's pixels, its taps.
      source_strides: pixels of the source for one of the target.
    """

    taps: tuple[tuple[Tap, ...], ...]
    source_strides: int


def output_axis(size: int, strides: int, padding: int) -> Axis:
    """The output's: y[q] = sum over t of x[s q + t - p] k[t]."""
    taps = [Tap(t, (t - padding) % strides, (t - padding) // strides) for t in range(size)]
    return Axis((tuple(taps),), strides)


def input_gradient_axis(size: int, strides: int, padding: int) -> Axis:
    """The input gradient's: dx[s q + a] = sum over t of dy[q + (a + p - t) / s] k[t], where s divides a + p - t."""
    seen = lambda a: [t for t in range(size) if (a + padding - t) % strides == 0]  # noqa: E731
    of = lambda a: tuple(Tap(t, 0, (a + padding - t) // strides) for t in seen(a))  # noqa: E731
    return Axis(tuple(of(a) for a in range(strides)), 1)


class _Source(NamedTuple):
    """A box of source pixels, and the taps that read it as (row, column) in the box and the tap's index."""

    residue: tuple[int, int]
    origin: tuple[int, int]
    taps: tuple[tuple[int, int, int], ...]


def _sources(rows: tuple[Tap, ...], columns: tuple[Tap, ...], width: int, halo: bool) -> list[_Source]:
    pairs = [(row, column) for row in rows for column in columns]
    if not halo:
        return [
            _Source(
                (row.residue, column.residue), (row.shift, column.shift), ((0, 0, row.number * width + column.number),)
            )
            for row, column in pairs
        ]
    found = []
    for residue in sorted({(row.residue, column.residue) for row, column in pairs}):
        mine = [(row, column) for row, column in pairs if (row.residue, column.residue) == residue]
        top, left = min(row.shift for row, _ in mine), min(column.shift for _, column in mine)
        taps = ((row.shift - top, column.shift - left, row.number * width + column.number) for row, column in mine)
        found.append(_Source(residue, (top, left), tuple(taps)))
    return found


def tile_pixels(height: int, width: int, pixels: int, halo: bool) -> tuple[int, int]:
    """Rows and columns of a tile of ``pixels`` pixels: those that cover the map with the fewest tiles."""
    shapes = [(pixels // columns, columns) for columns in (8, 16, 4, 2, 32, 1) if pixels % columns == 0]
    shapes = [shape for shape in shapes if not halo or shape[1] >= RUN]
    return min(shapes, key=lambda shape: -(-height // shape[0]) * -(-width // shape[1]))


class _Plan(NamedTuple):
    """Everything static of one kernel."""

    axes: tuple[Axis, Axis]
    targets: tuple[tuple[tuple[int, int], tuple[_Source, ...]], ...]
    tile: tuple[int, int]
    box: tuple[int, int]
    across: int
    pixel_tiles: int
    column_tiles: int
    groups: int
    chunks: int
    channels: int
    transposed: bool
    blocks: Blocks
    thread_blocks: int
    interpreted: bool
    border: int


# Under jit with static sizes, so that equal layers of a network are traced and lowered once.
_compiled_once = functools.partial(jax.jit, static_argnames=("window", "blocks", "interpret", "thread_blocks"))


@_compiled_once
def forward(
    x, kernel, unit_of_group, used, window: Window, blocks: Blocks, interpret=None, thread_blocks=132
) -> jax.Array:
    """The output: [H, W, R, C] and [N, kh, kw, C, O] bfloat16, [R / 8] and [1] int32 -> [OH, OW, R, O] bfloat16.

    ``unit_of_group`` has the unit of each group of 8 slots. The first ``used`` groups are computed, others are zeros.
    """
    axes = tuple(
        output_axis(size, window.strides, padding[0])
        for size, padding in zip((window.height, window.width), window.padding, strict=True)
    )
    size = tuple(length // window.strides for length in x.shape[:2])
    return _product(x, kernel, unit_of_group, used, axes, size, False, blocks, interpret, thread_blocks)


@_compiled_once
def input_gradient(dy, kernel, unit_of_group, used, window: Window, blocks: Blocks, interpret=None, thread_blocks=132):
    """The input gradient: [OH, OW, R, O] -> [H, W, R, C] with H = OH strides; for the rest see ``forward``."""
    axes = tuple(
        input_gradient_axis(size, window.strides, padding[0])
        for size, padding in zip((window.height, window.width), window.padding, strict=True)
    )
    return _product(dy, kernel, unit_of_group, used, axes, dy.shape[:2], True, blocks, interpret, thread_blocks)


def _product(
    source, kernel, unit_of_group, used, axes, size, transposed: bool, blocks: Blocks, interpret, thread_blocks
):
    """The product, for a target of ``size`` pixels of each residue."""
    if min(blocks.sources, blocks.kernels) < 2:  # a stage is free when the next one is being read
        raise ValueError(f"fewer than 2 stages would wait for each other forever: {blocks}")
    num_units, height, width, channels, features = kernel.shape
    depth, outputs = (features, channels) if transposed else (channels, features)
    num_slots = source.shape[2]
    strides, residues = axes[0].source_strides, len(axes[0].taps)
    targets = [
        ((a, b), tuple(_sources(rows, columns, width, blocks.halo)))
        for a, rows in enumerate(axes[0].taps)
        for b, columns in enumerate(axes[1].taps)
    ]
    every = [one for _, sources in targets for one in sources]
    tile = tile_pixels(size[0], size[1], RUN * CONSUMERS * blocks.runs, blocks.halo)
    reach = [max(tap[axis] for one in every for tap in one.taps) for axis in (0, 1)]
    box = (tile[0] + reach[0], tile[1] + reach[1])
    border = 0
    if interpret is not None:  # no zeros before the first pixel
        border = max(0, *(-one.origin[axis] for one in every for axis in (0, 1)))
        source = jnp.pad(source, ((strides * border, 0), (strides * border, 0), (0, 0), (0, 0)))
    across = -(-size[1] // tile[1])
    plan = _Plan(
        axes=axes,
        targets=tuple(targets),
        tile=tile,
        box=box,
        across=across,
        pixel_tiles=-(-size[0] // tile[0]) * across,
        column_tiles=outputs // blocks.columns,
        groups=num_slots // GROUP,
        chunks=depth // DEPTH,
        channels=channels,
        transposed=transposed,
        blocks=blocks,
        thread_blocks=thread_blocks,
        interpreted=interpret is not None,
        border=border,
    )
    target = jax.ShapeDtypeStruct(
        _view((size[0] * residues, size[1] * residues, num_slots, outputs), residues), source.dtype
    )

    def routed_product(*references):  # the kernel's name in profiles
        _entry(plan, *references)

    y = plgpu.kernel(
        routed_product,
        out_type=target,
        grid=(thread_blocks,),
        grid_names=("block",),
        num_threads=CONSUMERS + 1,
        thread_name="warp_group",
        **({} if interpret is None else {"interpret": interpret}),
    )(
        source.reshape(_view(source.shape, strides)),
        kernel.reshape(num_units, height * width * channels, features),
        unit_of_group,
        used,
    )
    return y.reshape(size[0] * residues, size[1] * residues, num_slots, outputs)


def _view(shape: tuple[int, ...], strides: int) -> tuple[int, ...]:
    """The shape of a map [H, W, R, C] whose residues, groups and chunks of 64 channels have axes of their own."""
    height, width, num_slots, channels = shape
    pixels = (height, width) if strides == 1 else (height // strides, strides, width // strides, strides)
    return (*pixels, num_slots // GROUP, GROUP, channels // DEPTH, DEPTH)


def _at(rows, columns, residue: Any, strides: int, group, chunk) -> tuple[Any, ...]:
    """An index into such a view: a box of pixels of the 8 slots of a group, 64 channels."""
    pixels = (rows, columns) if strides == 1 else (rows, residue[0], columns, residue[1])
    return (*pixels, group, slice(None), chunk, slice(None))


def _entry(plan: _Plan, source_ref, kernel_ref, unit_ref, used_ref, target_ref):
    """Allocates shared memory and barriers for the block."""
    blocks, dtype = plan.blocks, jnp.bfloat16
    tiling, swizzle = plgpu.TilingTransform((8, DEPTH)), plgpu.SwizzleTransform(128)
    pixels = (plgpu.TilingTransform((1, 1, 8, DEPTH)), swizzle)
    weights = (blocks.columns, DEPTH) if plan.transposed else (DEPTH, blocks.columns)
    buffers = [
        plgpu.SMEM((blocks.sources, *plan.box, GROUP, DEPTH), dtype, transforms=pixels),
        plgpu.SMEM((blocks.kernels, *weights), dtype, transforms=(tiling, swizzle)),
        plgpu.SMEM((CONSUMERS, blocks.columns // DEPTH, *run_shape(plan.tile), GROUP, DEPTH), dtype, transforms=pixels),
    ]
    barriers = [
        plgpu.Barrier(num_arrivals=1, num_barriers=blocks.sources),
        plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=blocks.sources),
        plgpu.Barrier(num_arrivals=1, num_barriers=blocks.kernels),
        plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=blocks.kernels),
    ]
    if plan.interpreted:
        buffers.append(plgpu.SMEM((CONSUMERS, blocks.runs, RUN * GROUP, DEPTH), dtype))
    pl.run_scoped(
        lambda buffers, barriers: _body(
            plan, source_ref, kernel_ref, unit_ref, used_ref, target_ref, buffers, barriers
        ),
        buffers,
        barriers,
        collective_axes="warp_group",
    )


def run_shape(tile: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a run of 8 pixels within a tile."""
    return (1, RUN) if tile[1] >= RUN else (RUN // tile[1], tile[1])


def _body(plan: _Plan, source_ref, kernel_ref, unit_ref, used_ref, target_ref, buffers, barriers):
    blocks = plan.blocks
    warp_group, block = lax.axis_index("warp_group"), lax.axis_index("block")
    per_target = [len(sources) * plan.chunks for _, sources in plan.targets]
    taps_per_target = [sum(len(one.taps) for one in sources) * plan.chunks for _, sources in plan.targets]
    tiles_of_group = plan.pixel_tiles * len(plan.targets) * plan.column_tiles
    used = used_ref[0] * tiles_of_group  # the groups that hold rows come first

    def place_of(index):
        """The target of a tile, and its (group, first row, first column, tile of channels)."""
        column, rest = lax.rem(index, plan.column_tiles), index // plan.column_tiles
        target, rest = lax.rem(rest, len(plan.targets)), rest // len(plan.targets)
        pixel, group = lax.rem(rest, plan.pixel_tiles), rest // plan.pixel_tiles
        return target, (group, pixel // plan.across * plan.tile[0], lax.rem(pixel, plan.across) * plan.tile[1], column)

    def share(tiles):
        """How many of these tiles this thread block has: every ``thread_blocks``-th."""
        return (tiles - block + plan.thread_blocks - 1) // plan.thread_blocks

    def each_tile(do):
        """``do(target, its tile, loads before it)`` for all tiles of this thread block; returns the loads of all."""

        def turn(i, before):
            target, place = place_of(block + i * plan.thread_blocks)
            sources_before, kernels_before = before
            if len(plan.targets) == 1:
                do(0, place, before)
                return sources_before + per_target[0], kernels_before + taps_per_target[0]
            for t in range(len(plan.targets)):
                pl.when(target == t)(functools.partial(do, t, place, before))
                sources_before = sources_before + jnp.where(target == t, per_target[t], 0)
                kernels_before = kernels_before + jnp.where(target == t, taps_per_target[t], 0)
            return sources_before, kernels_before

        return lax.fori_loop(0, share(used), turn, (jnp.int32(0), jnp.int32(0)))

    @pl.when(warp_group < CONSUMERS)
    def _compute():
        plgpu.set_max_registers(MANY_REGISTERS, action="increase")
        each_tile(functools.partial(_compute_tile, plan, target_ref, buffers, barriers, warp_group))

        @pl.loop(0, share(plan.groups * tiles_of_group - used))
        def _empty(i):
            target, place = place_of(used + block + i * plan.thread_blocks)
            for t, (residue, _) in enumerate(plan.targets):
                store = functools.partial(_store_tile, plan, target_ref, buffers, warp_group, residue, place, None)
                store() if len(plan.targets) == 1 else pl.when(target == t)(store)

        plgpu.wait_smem_to_gmem(0)

    @pl.when(warp_group == CONSUMERS)
    def _load():
        plgpu.set_max_registers(FEW_REGISTERS, action="decrease")
        load = functools.partial(_load_tile, plan, source_ref, kernel_ref, unit_ref, buffers, barriers)
        sources, kernels = each_tile(load)
        # A block may end only when all barriers have been waited for.
        for free, count, stages in ((barriers[1], sources, blocks.sources), (barriers[3], kernels, blocks.kernels)):

            @pl.loop(lax.max(0, count - stages), count)
            def _drain(i, free=free, stages=stages):
                plgpu.barrier_wait(free.at[lax.rem(i, stages)])


def _load_tile(plan: _Plan, source_ref, kernel_ref, unit_ref, buffers, barriers, t: int, place, before):
    source_smem, kernel_smem = buffers[:2]
    full_sources, free_sources, full_kernels, free_kernels = barriers
    group, top, left, column = place
    _, sources = plan.targets[t]
    unit, first_column = unit_ref[group], column * plan.blocks.columns
    sources_before, kernels_before = before
    for number, one in enumerate(sources):
        first_kernel = kernels_before + sum(len(earlier.taps) for earlier in sources[:number]) * plan.chunks

        @pl.loop(0, plan.chunks)
        def _chunk(c, number=number, one=one, first_kernel=first_kernel):
            load = sources_before + number * plan.chunks + c
            stage = lax.rem(load, plan.blocks.sources)
            _wait_if(load >= plan.blocks.sources, free_sources.at[stage])
            rows = pl.ds(top + one.origin[0] + plan.border, plan.box[0])
            columns = pl.ds(left + one.origin[1] + plan.border, plan.box[1])
            pixels = source_ref.at[_at(rows, columns, one.residue, plan.axes[0].source_strides, group, c)]
            plgpu.copy_gmem_to_smem(pixels, source_smem.at[stage], full_sources.at[stage])
            for number_of_tap, (_, _, tap) in enumerate(one.taps):
                load = first_kernel + c * len(one.taps) + number_of_tap
                stage = lax.rem(load, plan.blocks.kernels)
                _wait_if(load >= plan.blocks.kernels, free_kernels.at[stage])
                deep, wide = (c * DEPTH, DEPTH), (first_column, plan.blocks.columns)
                first, second = (wide, deep) if plan.transposed else (deep, wide)
                first_row = tap * plan.channels + first[0]
                weights = kernel_ref.at[unit, pl.ds(first_row, first[1]), pl.ds(second[0], second[1])]
                plgpu.copy_gmem_to_smem(weights, kernel_smem.at[stage], full_kernels.at[stage])


def _wait_if(condition, barrier):
    pl.when(condition)(lambda: plgpu.barrier_wait(barrier))


def _compute_tile(plan: _Plan, target_ref, buffers, barriers, warp_group, t: int, place, before):
    source_smem, kernel_smem, _, *scratch = buffers
    full_sources, free_sources, full_kernels, free_kernels = barriers
    blocks, (residue, sources) = plan.blocks, plan.targets[t]
    sources_before, kernels_before = before
    runs = [warp_group * blocks.runs + m for m in range(blocks.runs)]

    def accumulate(*sums):
        for number, one in enumerate(sources):
            first_kernel = kernels_before + sum(len(earlier.taps) for earlier in sources[:number]) * plan.chunks

            @pl.loop(0, plan.chunks)
            def _chunk(c, number=number, one=one, first_kernel=first_kernel):
                source = sources_before + number * plan.chunks + c
                stage = lax.rem(source, blocks.sources)
                plgpu.barrier_wait(full_sources.at[stage])
                for number_of_tap, (row, column, _) in enumerate(one.taps):
                    load = first_kernel + c * len(one.taps) + number_of_tap
                    kernel_stage = lax.rem(load, blocks.kernels)
                    plgpu.barrier_wait(full_kernels.at[kernel_stage])
                    weights = kernel_smem.at[kernel_stage]
                    weights = weights.transpose((1, 0)) if plan.transposed else weights
                    for m, sum_ref in enumerate(sums):
                        rows = _run(source_smem.at[stage], plan, runs[m], row, column)
                        if scratch:
                            scratch[0][warp_group, m] = rows
                            rows = scratch[0].at[warp_group, m]
                        plgpu.wgmma(sum_ref, rows, weights)
                    plgpu.wgmma_wait(len(sums))  # the step before this one is done

                    @pl.when(load > kernels_before)
                    def _release(load=load, source=source, first=number_of_tap == 0):
                        plgpu.barrier_arrive(free_kernels.at[lax.rem(load - 1, blocks.kernels)])
                        if first:
                            plgpu.barrier_arrive(free_sources.at[lax.rem(source - 1, blocks.sources)])

        plgpu.wgmma_wait(0)
        num_sources = len(sources) * plan.chunks
        num_kernels = sum(len(one.taps) for one in sources) * plan.chunks
        plgpu.barrier_arrive(free_sources.at[lax.rem(sources_before + num_sources - 1, blocks.sources)])
        plgpu.barrier_arrive(free_kernels.at[lax.rem(kernels_before + num_kernels - 1, blocks.kernels)])
        return [sum_ref[...] for sum_ref in sums]

    accumulators = [ACCUMULATOR((RUN * GROUP, blocks.columns), jnp.float32)] * blocks.runs
    sums = pl.run_scoped(accumulate, *accumulators)
    _store_tile(plan, target_ref, buffers, warp_group, residue, place, sums)


def _store_tile(plan: _Plan, target_ref, buffers, warp_group, residue, place, sums):
    """Writes a warp group's sums of a tile, or zeros where there are none."""
    _, _, target_smem, *scratch = buffers
    blocks, (group, top, left, column) = plan.blocks, place
    height, width = run_shape(plan.tile)
    strides = len(plan.axes[0].taps)
    for m in range(blocks.runs):
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        first = (warp_group * blocks.runs + m) * RUN
        rows = pl.ds(top + first // plan.tile[1], height)
        columns = pl.ds(left + lax.rem(first, plan.tile[1]), width)
        for j in range(blocks.columns // DEPTH):
            if sums is None:
                part = plgpu.layout_cast(jnp.zeros((RUN * GROUP, DEPTH), target_ref.dtype), plgpu.Layout.WGMMA)
            else:
                part = sums[m][:, DEPTH * j : DEPTH * (j + 1)].astype(target_ref.dtype)
            if scratch:
                target_smem[warp_group, j] = part.reshape(height, width, GROUP, DEPTH)
            else:
                target_smem.at[warp_group, j].reshape(RUN * GROUP, DEPTH)[...] = part
        plgpu.commit_smem()
        for j in range(blocks.columns // DEPTH):
            at = _at(rows, columns, residue, strides, group, column * (blocks.columns // DEPTH) + j)
            plgpu.copy_smem_to_gmem(target_smem.at[warp_group, j], target_ref.at[at])


def _run(box, plan: _Plan, run, row: int, column: int):
    """The 64 rows that a tap reads for a run: a reference [64, 64], in the interpreter their values."""
    first = run * RUN
    top, left = first // plan.tile[1] + row, lax.rem(first, plan.tile[1]) + column
    if plan.interpreted:
        height, width = run_shape(plan.tile)
        return box[pl.ds(top, height), pl.ds(left, width)].reshape(RUN * GROUP, DEPTH)
    pixels = plan.box[0] * plan.box[1]
    return box.reshape(pixels * GROUP, DEPTH).at[pl.ds((top * plan.box[1] + left) * GROUP, RUN * GROUP)]
