"""The commands ``rmn bench KIND``: ratios, measured side by side in one process and printed as JSON lines."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from rmn_jax.cli.arguments import Command, add_config, filled, positive
from rmn_jax.cli.pages import load_config
from rmn_jax.errors import UserError


def _add_timing(parser: ArgumentParser, batch: int, rounds: int) -> None:
    parser.add_argument("--batch", type=positive, default=batch, help=f"B (default: {batch})")
    parser.add_argument("--rounds", type=positive, default=rounds, help=f"rounds of timing (default: {rounds})")
    parser.add_argument("--out", type=filled, help="also write all lines to this JSON file, with machine and versions")


def _add_network(parser: ArgumentParser, image_size: int) -> None:
    parser.add_argument("--backbone", default="resnet18", help="(default: resnet18)")
    parser.add_argument("--image_size", type=positive, default=image_size, help=f"in pixels (default: {image_size})")


def bench_input(arguments: Namespace, overrides: Sequence[str]) -> None:
    """``rmn bench input``: images per second of both input pipelines, beside the step that consumes them."""
    import tempfile

    from rmn_jax.data.bench import bench_input as lines
    from rmn_jax.training import step as steps
    from rmn_jax.training.run import Run

    config = load_config(arguments.config, overrides)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(config, folder, quiet=True)
        routed = config.method == "rmn"
        state = run.initial_state(routed)
        train_step = run.networks.train_step(routed)

        def step(batch):
            nonlocal state
            state, loss = train_step(state, batch, run.key)
            return loss

        lines(
            config.data,
            batch_size=config.batch_size,
            seed=config.seed,
            sharding=steps.batch_sharding(run.mesh),
            step=step,
        )


def _conv_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--num_units", type=positive, default=8, help="N (default: 8)")
    parser.add_argument(
        "--backend", default="auto", help="of the routed side, see rmn_jax/ops/choose.py (default: auto)"
    )
    _add_timing(parser, batch=256, rounds=5)


def bench_conv(arguments: Namespace, overrides: Sequence[str]) -> None:
    """``rmn bench conv``: the routed convolution beside the plain one."""
    from rmn_jax.bench.conv import bench_conv as lines
    from rmn_jax.bench.measure import report
    from rmn_jax.ops import BACKENDS

    backends = ("auto", *BACKENDS)
    if arguments.backend not in backends:
        raise UserError(f"--backend is {arguments.backend!r}; use one of {', '.join(backends)}.")
    report(
        lines(arguments.num_units, arguments.batch, arguments.rounds, arguments.backend),
        arguments.out,
        f"rmn bench conv --num_units={arguments.num_units} --batch={arguments.batch} --rounds={arguments.rounds} "
        f"--backend={arguments.backend}",
    )


def _step_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--num_units", type=positive, nargs="+", default=[1, 2, 4, 8, 16], help="each N to measure")
    parser.add_argument("--load", default="random", choices=("balanced", "random", "zipf", "all-to-one"))
    _add_timing(parser, batch=256, rounds=3)
    _add_network(parser, image_size=32)


def bench_step(arguments: Namespace, overrides: Sequence[str]) -> None:
    """``rmn bench step``: a whole training step, plain and routed."""
    from rmn_jax.bench.measure import report
    from rmn_jax.bench.step import bench_step as lines

    units = tuple(arguments.num_units)
    report(
        lines(arguments.backbone, arguments.image_size, arguments.batch, units, arguments.rounds, arguments.load),
        arguments.out,
        f"rmn bench step --backbone={arguments.backbone} --image_size={arguments.image_size} "
        f"--batch={arguments.batch} --num_units {' '.join(map(str, units))} --rounds={arguments.rounds} "
        f"--load={arguments.load}",
    )


def _latency_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--num_units", type=positive, default=8, help="N (default: 8)")
    _add_timing(parser, batch=1, rounds=30)
    _add_network(parser, image_size=224)


def bench_latency(arguments: Namespace, overrides: Sequence[str]) -> None:
    """``rmn bench latency``: inference of one image or a batch, plain and routed."""
    from rmn_jax.bench.latency import bench_latency as lines
    from rmn_jax.bench.measure import report

    report(
        lines(arguments.backbone, arguments.image_size, arguments.batch, arguments.num_units, arguments.rounds),
        arguments.out,
        f"rmn bench latency --backbone={arguments.backbone} --image_size={arguments.image_size} "
        f"--batch={arguments.batch} --num_units={arguments.num_units} --rounds={arguments.rounds}",
    )


KINDS = {
    "input": Command("images per second of each input pipeline, and of the step", bench_input, add_config, True),
    "conv": Command("routed convolution beside plain: output and both gradients", bench_conv, _conv_arguments),
    "step": Command("a whole training step, plain and routed, over the number of units", bench_step, _step_arguments),
    "latency": Command("inference of one image or a batch, plain and routed", bench_latency, _latency_arguments),
}
