"""The commands ``rmn import`` and ``rmn export``: weights into a run, and a trained network out of it."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

from rmn_jax.cli.arguments import Command, add_best, add_config, add_workdir, filled, positive, warn
from rmn_jax.cli.pages import load_config, with_overrides
from rmn_jax.errors import UserError


def _import_arguments(parser: ArgumentParser) -> None:
    known = "resnet18, 34, 50 or 101, vgg16_bn, mobilenet_v2, efficientnet_b0, convnext_tiny"
    parser.add_argument("--backbone", help=f"of the --weights file: {known}")
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--weights", type=filled, help="a safetensors file with torchvision's or timm's names")
    origin.add_argument("--from", type=filled, dest="source", metavar="RUN", help="a run, or its exported safetensors")
    add_workdir(parser, "the new run folder")
    parser.add_argument("--num_units", type=positive, help="make an RMN of N units, which continues with phases 2-4")
    parser.add_argument("--num_classes", type=positive, help="K of the network (default: that of the data set)")
    parser.add_argument("--fresh_head", action="store_true", help="initialise the classifier instead of loading it")
    parser.add_argument("--memories", choices=("keep", "new"), help="of a routed --from: keep (default) or find new")
    add_config(parser, required=False)


def import_weights(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """``rmn import``: weights as a plain run, in place of phase 1 of an RMN, or those of another run."""
    import sys

    report, head = (_from_file if arguments.source is None else _from_run)(arguments, overrides)
    print(head, file=sys.stderr)
    return {**report, "head": head, "workdir": arguments.workdir}


def _from_file(arguments: Namespace, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
    from rmn_jax.interop.pretrained import import_run

    if arguments.backbone is None:
        raise UserError("--weights needs --backbone NAME (see rmn import --help)")
    if arguments.memories is not None:
        raise UserError("--memories needs --from RUN; torchvision and timm weights have no memories.")
    if overrides and arguments.config is None:
        raise UserError(f"{overrides[0].split('=')[0]} needs --config PAGE, the configuration that it changes.")
    config = None if arguments.config is None else load_config(arguments.config, overrides)
    report, head = import_run(
        backbone=arguments.backbone,
        weights=arguments.weights,
        workdir=arguments.workdir,
        num_units=_num_units(arguments, overrides, config),
        num_classes=arguments.num_classes,
        fresh_head=arguments.fresh_head,
        config=config,
    )
    lists = {name: list(getattr(report, name)) for name in ("missing", "unexpected", "fresh")}
    return {"loaded": len(report.loaded), **lists}, head


def _from_run(arguments: Namespace, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
    from rmn_jax.interop.transfer import transfer_run
    from rmn_jax.interop.weights_file import load_weights

    if arguments.backbone is not None:
        raise UserError("--backbone goes with --weights only; leave it out.")
    config, weights = None, load_weights(arguments.source)
    if arguments.config is not None:
        config = load_config(arguments.config, overrides)
    elif overrides:  # they change the configuration of the run
        config = weights.config.copy_and_resolve_references()
        config.method = "rmn" if weights.routed else "plain"
        config = with_overrides(config, ["--config.stem_epochs=0", *overrides])
    report, head = transfer_run(
        source=weights,
        workdir=arguments.workdir,
        config=config,
        num_units=arguments.num_units if weights.routed else _num_units(arguments, overrides, config),
        num_classes=arguments.num_classes,
        fresh_head=arguments.fresh_head,
        memories=arguments.memories,
    )
    return {"loaded": len(report["loaded"]), "missing": [], "unexpected": [], "fresh": report["fresh"]}, head


def _num_units(arguments: Namespace, overrides: Sequence[str], config) -> int | None:
    """N of an RMN that begins from a plain network, from each way to ask for one; None for a plain run."""
    asked = {word.removeprefix("--config.").partition("=")[0]: word.partition("=")[2] for word in overrides}
    routed = "model.num_units" in asked if "method" not in asked else asked["method"] == "rmn"
    if not routed:
        if asked.get("method") == "plain" and arguments.num_units is not None:
            raise UserError("--num_units makes an RMN, but config.method is plain; give one of them.")
        return arguments.num_units
    if arguments.num_units not in (None, config.model.num_units):
        raise UserError(
            f"--num_units is {arguments.num_units}, config.model.num_units {config.model.num_units}; give one of them."
        )
    return config.model.num_units


IMPORT = Command(
    "start a run from pretrained weights (torchvision's or timm's names), or from another run",
    import_weights,
    _import_arguments,
    True,
)


def _export_arguments(parser: ArgumentParser) -> None:
    add_workdir(parser)
    add_best(parser)
    parser.add_argument("--out", type=filled, required=True, help="the file")
    parser.add_argument(
        "--format",
        default="jax",
        choices=("jax", "onnx", "safetensors", "torchvision"),
        help="jax: a network that needs JAX alone (default); onnx: for ONNX Runtime, one image at a time; safetensors: "
        "weights under our names; torchvision: the weights of a plain run under torchvision's names",
    )


def export(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """``rmn export``: the newest good checkpoint of a run, or the best one, as one file."""
    from rmn_jax.inference.trained import load_trained

    trained = load_trained(arguments.workdir, warn, arguments.best)
    if arguments.format == "jax":
        from rmn_jax.inference.export import export_run

        return {"out": arguments.out, "bytes": export_run(trained, arguments.out)}
    if arguments.format == "onnx":
        from rmn_jax.interop.onnx import export_onnx

        return {"out": arguments.out, "bytes": export_onnx(trained, arguments.out)}
    from rmn_jax.interop.weights_file import save_torchvision, save_weights

    save = save_torchvision if arguments.format == "torchvision" else save_weights
    return {"out": arguments.out, "bytes": save(trained, arguments.out)}


EXPORT = Command("write a trained network as one file that runs without this package", export, _export_arguments)
