"""Part ``kernels``: the kernels of ``rmn_jax.ops.mosaic`` checked and timed on the device, then whole steps with them.

In the order of what tells most, each line written when it is known:

1. The four layers of ResNet-18 with the most work: each pass with the block sizes of the rules, checked against an
   oracle over several loads and timed beside the library's plain convolution. Then the move of rows between stages.
2. Whole steps of ResNet-18: plain, ``mosaic``, ``tiles``, ``sliced``. Their kernels, from the profiler, summed by kind.
3. A short list of other block sizes for these layers.
4. The other layers, then the layers and steps of the other networks.

Arrays are laid out, and arguments sliced, outside of what is timed. Loads are data: one compiled program serves all of
them. ``--apply=LINES`` writes the fastest right block sizes of a file of lines to ``rmn_jax/ops/mosaic_blocks.py``, and
whether Hopper GPUs use the kernels by default: if all kernels are right and every step is faster than in tiles.
Without a Hopper GPU (a dry run) the kernels cannot run: the same code then measures the backend "slots".
"""

import functools
import json
import pathlib
import re
import tempfile
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.gpu.layers import PASSES, Layer, layers_of, work
from benchmarks.gpu.record import Record, read
from benchmarks.gpu.settings import Group, Settings, backbone_of, num_classes_of
from benchmarks.gpu.timing import first_line, seconds_per_call
from rmn_jax.bench.measure import load_assignment, summary
from rmn_jax.bench.step import Step, random_batch
from rmn_jax.ops import choose, mosaic, mosaic_blocks, slots
from rmn_jax.ops.window import Window, convolve, subsampled
from rmn_jax.routing.layout import make_slots, sort_by_unit, to_layout

# A right result differs from the oracle's by rounding to bfloat16 once, 1.7e-3; TF32 in the oracle adds 3e-4.
WRONG = 5e-3
LOADS = ("random", "all-to-one", "zipf", "balanced")
# Seconds that a piece of work is allowed; one that would not fit is not begun.
_KERNEL_SECONDS, _STEP_SECONDS = 15, 130
# Layers that come before whole steps.
_LARGEST = 4
_OUT = pathlib.Path(mosaic_blocks.__file__)


def run(settings: Settings, record: Record) -> None:
    """All of it, as far as the time goes."""
    for number, group in enumerate(settings.groups):
        layers = _layers(group, settings)
        largest, others = layers[:_LARGEST], layers[_LARGEST:]
        _measure_layers(group, largest, settings, record, only_rule=True)
        _measure_steps(group, settings, record)
        if number == 0:
            _measure_layers(group, largest, settings, record, only_rule=False)
        _measure_layers(group, others, settings, record, only_rule=True)


def _measure_layers(group: Group, layers, settings: Settings, record: Record, only_rule: bool) -> None:
    for layer, count in layers:
        for which in PASSES:
            _measure(group, layer, count, which, settings, record, only_rule)
        if only_rule:
            _measure_move(group, layer, settings, record)


def _layers(group: Group, settings: Settings) -> list[tuple[Layer, int]]:
    """Routed layers that the kernels are for, those with the most work first, each with how often it is there."""
    found = layers_of(backbone_of(group.backbone, group.image_size), group.image_size).items()
    wanted = [(layer, count) for layer, count in found if layer.routed and not layer.depthwise and layer.size > 1]
    if not settings.dry:
        wanted = [(layer, count) for layer, count in wanted if layer.channels % 64 == layer.features % 64 == 0]
    wanted.sort(key=lambda pair: -pair[1] * work(pair[0], "fwd", 1, None).operations)
    return wanted[: settings.conv_layers]


def _begin(record: Record, identity: str, seconds: float) -> bool:
    """Whether a piece of work is missing and fits."""
    left = record.time_left()
    return identity not in record and (left is None or left > seconds)


class _Layer:
    """The arrays of one layer: rows in batch order for the oracle, slots for the kernels."""

    def __init__(self, layer: Layer, batch: int, settings: Settings):
        self.dtype, self.num_units = jnp.dtype(settings.dtype), settings.num_units
        noise = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape, self.dtype)  # noqa: E731
        x = noise(0, batch, layer.size, layer.size, layer.channels)
        window = Window.make(layer.kernel, layer.kernel, layer.strides, None)
        # A strided 1x1 layer takes its pixels before the kernel, in the plain network as well.
        self.x, self.window = subsampled(x, window)
        self.kernel = noise(1, self.num_units, layer.kernel, layer.kernel, layer.channels, layer.features) * 0.05
        self.dy = noise(2, batch, layer.out_size, layer.out_size, layer.features)
        self.layouts = {load: self._layout(load, batch) for load in LOADS}
        self.plain_kernel = self.kernel[0]
        self.plain_passes = _Once(self.plain)

    def _layout(self, load: str, batch: int):
        return make_slots(sort_by_unit(jnp.asarray(load_assignment(load, batch, self.num_units)), self.num_units))

    def plain(self, which: str):
        """The library's plain pass, compiled, with its arguments bound."""
        function = {
            "fwd": lambda x, k, dy: convolve(x, k, self.window),
            "dgrad": lambda x, k, dy: jax.vjp(lambda x: convolve(x, k, self.window), x)[1](dy)[0],
            "wgrad": lambda x, k, dy: jax.vjp(lambda k: convolve(x, k, self.window), k)[1](dy)[0],
        }[which]
        compiled = jax.jit(function).lower(self.x, self.plain_kernel, self.dy).compile()
        return functools.partial(compiled, self.x, self.plain_kernel, self.dy)

    @functools.cached_property
    def _moved(self):
        return jax.jit(lambda rows, layout: to_layout(rows, None, layout))

    def in_slots(self, load: str):
        layout = self.layouts[load]
        return self._moved(self.x, layout), self.kernel, self._moved(self.dy, layout), layout

    def pass_in_slots(self, which: str, backend):
        """One pass of a backend, as a function of ``in_slots``."""
        if which == "fwd":
            return lambda x, kernel, dy, layout: backend.forward(x, kernel, layout, self.window)
        if which == "dgrad":
            return lambda x, kernel, dy, layout: backend.input_gradient(dy, kernel, layout, self.window, x.shape)
        return lambda x, kernel, dy, layout: backend.kernel_gradient(x, dy, layout, self.window, kernel.shape)

    @functools.cached_property
    def _oracle(self):
        """Pass by pass over all rows with each unit's kernel in turn, in float32, of which a row's unit is kept."""

        def of_unit(which, x, kernel, dy, mine):
            x, dy = x.astype(jnp.float32), jnp.where(mine, dy.astype(jnp.float32), 0.0)
            y, pull = jax.vjp(lambda x, k: convolve(x, k, self.window), x, kernel.astype(jnp.float32))
            dx, dkernel = pull(dy)
            return {"fwd": jnp.where(mine, y, 0.0), "dgrad": dx, "wgrad": dkernel}[which]

        def oracle(which, x, kernel, dy, unit):
            mine = lambda j: (unit == j)[:, None, None, None]  # noqa: E731
            if which == "wgrad":
                return lax.map(lambda j: of_unit(which, x, kernel[j], dy, mine(j)), jnp.arange(self.num_units))
            shape = jax.eval_shape(lambda: of_unit(which, x, kernel[0], dy, mine(0)))
            add = lambda j, total: total + of_unit(which, x, kernel[j], dy, mine(j))  # noqa: E731
            return lax.fori_loop(0, self.num_units, add, jnp.zeros(shape.shape, shape.dtype))

        return jax.jit(oracle, static_argnums=0)

    def difference(self, which: str, compiled, load: str) -> float:
        """The relative distance of a pass from the oracle."""
        layout = self.layouts[load]
        found = compiled(*self.in_slots(load)).astype(jnp.float32)
        if which != "wgrad":
            found = to_layout(found, layout, None)
        unit = layout.unit[layout.slot_of_row]
        expected = self._oracle(which, self.x, self.kernel, self.dy, unit)
        return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))


class _Once(dict):
    """Values of a function, each computed when it is first asked for."""

    def __init__(self, function):
        super().__init__()
        self._function = function

    def __missing__(self, key):
        self[key] = self._function(key)
        return self[key]


@functools.lru_cache(maxsize=1)  # the passes of one layer share their arrays
def _arrays(layer: Layer, batch: int, settings: Settings) -> _Layer:
    return _Layer(layer, batch, settings)


def _measure(group, layer: Layer, count: int, which: str, settings: Settings, record: Record, only_rule: bool) -> None:
    """The lines of one pass of one layer: plain, and the kernel by block sizes."""
    prefix = f"kernels/{layer.name}/B{group.batch}/N{settings.num_units}/{settings.dtype}/{which}"
    if only_rule and not _begin(record, f"{prefix}/rule", _KERNEL_SECONDS):
        return
    if not only_rule and not _begin(record, f"{prefix}/other block sizes", 3 * _KERNEL_SECONDS):
        return
    arrays = _arrays(layer, group.batch, settings)
    runs_kernels = choose.kernels_run_here() and mosaic.fits(
        (*arrays.x.shape[1:3], 8, layer.channels), arrays.kernel.shape, arrays.window, arrays.dtype
    )
    for name, blocks in _choices(layer, which, arrays, runs_kernels, only_rule):
        if not _begin(record, f"{prefix}/{name}", _KERNEL_SECONDS):
            continue
        figures = _figures(arrays, which, blocks, runs_kernels, settings)
        about = {"layer": layer.name, "count": count, "pass": which, "batch": group.batch}
        line = {"id": f"{prefix}/{name}", "part": "kernels", "network": group.name, **about}
        record.add({**line, "side": "mosaic" if runs_kernels else "slots", **figures})
    if not only_rule:
        record.add({"id": f"{prefix}/other block sizes", "part": "kernels", "done": True})


def _figures(arrays: _Layer, which: str, blocks, runs_kernels: bool, settings: Settings) -> dict[str, Any]:
    backend = mosaic if runs_kernels else slots
    named = {} if blocks is None else {"key": blocks[0], "blocks": blocks[1]}
    table = {} if blocks is None else {blocks[0]: blocks[1]}
    try:
        given = arrays.in_slots("random")
        with mock.patch.dict(mosaic_blocks.BLOCKS, table):
            compiled = jax.jit(arrays.pass_in_slots(which, backend)).lower(*given).compile()
        loads = LOADS if blocks is None or blocks[2] else LOADS[:2]
        differences = {load: arrays.difference(which, compiled, load) for load in loads}
        plain = arrays.plain_passes[which]
        sides = {"plain": plain, "kernel": functools.partial(compiled, *given)}
        seconds = seconds_per_call(sides, settings.rounds, settings.sample_seconds)
    except Exception as error:  # one that cannot run must not end the measurement
        return {**named, "failed": first_line(error)}
    right = all(difference < WRONG for difference in differences.values())
    return {
        **named,
        "right": bool(right),
        "plain_ms": round(1e3 * float(np.median(seconds["plain"])), 4),
        **summary(seconds["kernel"], seconds["plain"]),
        "kernel_ms": round(1e3 * float(np.median(seconds["kernel"])), 4),
        "differences": {load: float(f"{difference:.2g}") for load, difference in differences.items()},
    }


def _choices(layer: Layer, which: str, arrays: _Layer, runs_kernels: bool, only_rule: bool) -> list[tuple[str, Any]]:
    """(name, (key, block sizes, whether by rule)) of what is tried; without block sizes where kernels do not run."""
    if not runs_kernels:
        return [("rule", None)] if only_rule else []
    num_slots = arrays.layouts["random"].unit.shape[0]
    seen = arrays.x if which == "fwd" else arrays.dy
    shape = (*seen.shape[1:3], num_slots, seen.shape[-1])
    shape = mosaic.flat_shape(shape, arrays.window)
    key = mosaic.key(which, shape, arrays.kernel.shape, arrays.window)
    rule = mosaic.blocks_of(which, shape, arrays.kernel.shape, arrays.window)
    if only_rule:
        return [("rule", (key, rule._asdict(), True))]
    tried = [blocks for blocks in _others(which, rule, shape, arrays) if blocks != rule]
    name = lambda blocks: " ".join(f"{field}={value}" for field, value in blocks._asdict().items())  # noqa: E731
    return [(name(blocks), (key, blocks._asdict(), False)) for blocks in dict.fromkeys(tried)]


def _others(which: str, rule, shape: tuple[int, ...], arrays: _Layer) -> list[Any]:
    """A short list of other block sizes that shared memory holds."""
    _, _, width, channels, features = arrays.kernel.shape
    if which == "wgrad":
        tried = [rule._replace(columns=columns) for columns in (64, 128, 256) if features % columns == 0]
        tried += [rule._replace(chunk=max(1, rule.chunk // 2)), rule._replace(chunk=2 * rule.chunk)]
        tried += [rule._replace(stages=3)]
        if rule.shared:
            tried += [rule._replace(rows=width, columns=64), rule._replace(rows=1, warp_groups=3, shared=False)]
        tried = [blocks._replace(stages=stages) for blocks in tried for stages in (blocks.stages, 3, 2)]
        fitting = [blocks for blocks in tried if mosaic.kernel_gradient_fits(blocks)]
        return [next(one for one in fitting if one._replace(stages=0) == key) for key in
                dict.fromkeys(blocks._replace(stages=0) for blocks in fitting)]  # fmt: skip
    outputs = channels if which == "dgrad" else features
    strides = arrays.window.strides if which == "fwd" else 1
    tried = [
        rule._replace(columns=columns, runs=runs, halo=halo, sources=sources, kernels=kernels)
        for columns, runs in ((256, 1), (128, 2), (128, 1), (64, 2))
        for halo in ((True, False) if not arrays.window.pointwise else (False,))
        for sources, kernels in (((2, 4), (2, 3), (2, 2)) if halo else ((5, 5), (4, 4), (3, 3)))
        if outputs % columns == 0
    ]
    size = (shape[0] // strides, shape[1] // strides)
    fitting = [blocks for blocks in tried if mosaic.product_fits(blocks, *size)]
    forms = dict.fromkeys((blocks.columns, blocks.runs, blocks.halo) for blocks in fitting)
    return [next(one for one in fitting if (one.columns, one.runs, one.halo) == form) for form in forms]


def _measure_move(group: Group, layer: Layer, settings: Settings, record: Record) -> None:
    """The move of a layer's input from one load's slots to another's, as between two stages."""
    identity = f"kernels/move @{layer.size} {layer.channels}/B{group.batch}/N{settings.num_units}/{settings.dtype}"
    if layer.kernel == 1 or not _begin(record, identity, _KERNEL_SECONDS):
        return
    arrays = _arrays(layer, group.batch, settings)
    source, target = arrays.layouts["random"], arrays.layouts["balanced"]
    x = arrays.in_slots("random")[0]
    move = jax.jit(to_layout).lower(x, source, target).compile()
    seconds = seconds_per_call(
        {"move": functools.partial(move, x, source, target)}, settings.rounds, settings.sample_seconds
    )["move"]
    moved = 2 * x.nbytes / float(np.median(seconds)) / 1e9
    line = {"id": identity, "part": "kernels", "network": group.name, "move": f"@{layer.size} {layer.channels}"}
    record.add({**line, **summary(seconds), "gigabytes_a_second": round(moved, 1)})


def _measure_steps(group: Group, settings: Settings, record: Record) -> None:
    """Whole steps: plain, then in slots with kernels, then in tiles, each beside the plain one."""
    plain: Step | None = None
    data = None
    for backend in settings.backends or ("mosaic", "tiles", "sliced"):
        identity = f"kernels/step/{group.name}/B{group.batch}/N{settings.num_units}/{settings.dtype}/{backend}"
        if not _begin(record, identity, _STEP_SECONDS):
            continue
        line = {"id": identity, "part": "kernels", "network": group.name, "step": backend, "batch": group.batch}
        try:
            data = data or random_batch(group.batch, group.image_size, num_classes_of(group.image_size))
            new = functools.partial(Step, backbone_of(group.backbone, group.image_size), data)
            plain = plain or new(None, dtype=jnp.dtype(settings.dtype))
            routed = new(settings.num_units, dtype=jnp.dtype(settings.dtype), backend=backend)
            seconds = seconds_per_call({"plain": plain, "routed": routed}, settings.rounds, settings.sample_seconds)
            by_kind = {"plain": time_by_kind(plain), "routed": time_by_kind(routed)}
        except Exception as error:
            record.add({**line, "failed": first_line(error)})
            continue
        record.add(
            {
                **line,
                "plain_ms": round(1e3 * float(np.median(seconds["plain"])), 3),
                "routed_ms": round(1e3 * float(np.median(seconds["routed"])), 3),
                **summary(seconds["routed"], seconds["plain"]),
                "compile_seconds": {
                    "plain": round(plain.compile_seconds, 1),
                    "routed": round(routed.compile_seconds, 1),
                },
                "planned_megabytes": {
                    "plain": round(plain.planned_bytes / 1e6),
                    "routed": round(routed.planned_bytes / 1e6),
                },
                "ms_by_kind": by_kind,
            }
        )


# Kinds of a device's kernels by name, the first that fits.
KINDS = (
    ("kernels of mosaic", r"mosaic|routed_"),
    ("cuDNN's slices", r"nhwcSlice|SliceC"),
    ("gathers", r"gather"),
    ("convolutions", r"conv|xmma|cudnn|cutlass|wgrad|dgrad|fprop|nvjet|gemm"),
    ("reductions", r"reduce"),
    ("copies", r"copy|memcpy|memset|transpose|concatenate|pad|slice"),
    ("element-wise", r"fusion|loop|wrapped|add|multiply"),
)


def time_by_kind(step: Any, steps: int = 2) -> dict[str, float]:
    """Milliseconds a step of the device's kernels by ``KINDS``, from the profiler; empty where it shows no device."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                loss = step()
            jax.block_until_ready(loss)
        totals: dict[str, float] = {}
        for path in pathlib.Path(folder).rglob("*.xplane.pb"):
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
                if not plane.name.startswith("/device:GPU"):
                    continue
                for line in plane.lines:
                    if not line.name.startswith("Stream"):
                        continue
                    for event in line.events:
                        kind = kind_of(event.name)
                        totals[kind] = totals.get(kind, 0.0) + event.duration_ns / 1e6 / steps
    return {kind: round(total, 3) for kind, total in sorted(totals.items(), key=lambda pair: -pair[1])}


def kind_of(name: str) -> str:
    """The kind of a kernel by its name."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, name, re.IGNORECASE)), "others")


def apply(lines: str, out: pathlib.Path = _OUT) -> dict[str, dict[str, Any]]:
    """Writes the fastest right block sizes of each key in a file of lines to ``out``, and returns them.

    Writes ``FASTER_THAN_TILES`` too. What the file does not have keeps what is committed.
    """
    measured = list(read(lines))
    best: dict[str, tuple[float, dict[str, Any]]] = {}
    for line in measured:
        if line.get("side") == "mosaic" and line.get("right") and "blocks" in line:
            key, found = line["key"], (line["kernel_ms"], line["blocks"])
            if key not in best or found[0] < best[key][0]:
                best[key] = found
    table = {**mosaic_blocks.BLOCKS, **{key: blocks for key, (_, blocks) in best.items()}}
    text = pathlib.Path(mosaic_blocks.__file__).read_text()
    head = text[: text.index("BLOCKS:")].replace(" Nothing has been\nmeasured yet.", "")
    faster = faster_than_tiles(measured)
    if faster is not None:
        head = re.sub(r"(?m)^FASTER_THAN_TILES = .*$", f"FASTER_THAN_TILES = {faster}", head)
    rows = [f"    {json.dumps(key)}: {_as_python(blocks)},\n" for key, blocks in sorted(table.items())]
    body = "{\n" + "".join(rows) + "}\n" if rows else "{}\n"
    out.write_text(f"{head}BLOCKS: dict[str, dict[str, int | bool]] = {body}")
    return table


def faster_than_tiles(lines: list[dict[str, Any]]) -> bool | None:
    """Whether all kernels by rule are right and all steps with them faster than in tiles; None without such steps."""
    ratios = {(line["network"], line["batch"], line["step"]): line.get("ratio") for line in lines if line.get("step")}
    pairs = [(ratio, ratios.get((*key, "tiles"))) for (*key, step), ratio in ratios.items() if step == "mosaic"]
    pairs = [(kernels, tiles) for kernels, tiles in pairs if tiles is not None]
    if not pairs:
        return None
    by_rule = [line for line in lines if line.get("side") == "mosaic" and line["id"].endswith("/rule")]
    right = bool(by_rule) and all(line.get("right") for line in by_rule)
    return right and all(kernels is not None and kernels < tiles for kernels, tiles in pairs)


def _as_python(blocks: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{json.dumps(name)}: {value!r}" for name, value in blocks.items()) + "}"
