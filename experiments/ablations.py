"""The paper's ablations (Table 1, Figure 4), and questions beyond them.

    python -m experiments.ablations PART --scale=cpu
    python -m experiments.ablations PART --scale=paper --backbone=resnet18 --benchmark=tiny_imagenet

PART is one of:

    units        N = 1, 2, 4, 8, 16
    batch        the batch size, and the dead units it leaves
    momentum     alpha of eq. 9
    attention    attention with and without its condition, plain and routed
    beyond       a unit's gradient as a mean over the unit's inputs; cosine memories
    reviving     dead units revived or not, with many units and with a small batch
    epochs       three times the training: does an RMN learn more slowly, or less?
    capacity     narrower networks, and the narrowest for longer: do more parameters help?
    data         a narrow network on all classes of the data set, and for longer
"""

import argparse
import sys
from collections.abc import Callable

from ml_collections import ConfigDict

from experiments import suite
from experiments.paper import ATTENTION_TOP1

# Makes the configuration of a variant, "rmn", "rmn_no_ca" or "plain", with other settings.
Make = Callable[..., ConfigDict]


def units(arguments: argparse.Namespace, make: Make) -> list[suite.Row]:
    del arguments
    return [suite.Row(f"N = {n}", make("rmn_no_ca", model__num_units=n)) for n in (1, 2, 4, 8, 16)]


def batch(arguments: argparse.Namespace, make: Make) -> list[suite.Row]:
    del arguments
    large = make("rmn_no_ca").batch_size
    sizes = [large // 8, large // 4, large // 2, large, large * 2]
    return [suite.Row(f"batch {size}", make("rmn_no_ca", batch_size=size)) for size in sizes]


def momentum(arguments: argparse.Namespace, make: Make) -> list[suite.Row]:
    del arguments
    alphas = (0.0, 0.5, 0.7, 0.9, 0.99)
    return [suite.Row(f"alpha = {alpha}", make("rmn_no_ca", model__memory_momentum=alpha)) for alpha in alphas]


def attention(arguments: argparse.Namespace, make: Make) -> list[suite.Row]:
    cpu = arguments.scale == "cpu"
    reported = not cpu and (arguments.backbone, arguments.benchmark) == ("resnet18", "tiny_imagenet")
    paper = ATTENTION_TOP1 if reported else {}
    plain = {"batch_size": make("rmn_no_ca").batch_size} if cpu else {}
    return [
        suite.Row("plain", make("plain", **plain), paper.get("plain")),
        suite.Row("plain, SE", make("plain", model__attention="se", **plain), paper.get("plain_se")),
        suite.Row("RMN", make("rmn_no_ca"), paper.get("rmn_no_ca")),
        suite.Row("RMN, SE (no condition)", make("rmn_no_ca", model__attention="se"), paper.get("rmn_se")),
        suite.Row("RMN, CA", make("rmn"), paper.get("rmn")),
    ]


def beyond(arguments: argparse.Namespace, make: Make) -> list[suite.Row]:
    del arguments
    routed = make("rmn_no_ca")
    return [
        suite.Row(f"RMN, N = {routed.model.num_units}", routed),
        suite.Row("a unit's gradient over its own inputs", make("rmn_no_ca", unit_gradient="own")),
        suite.Row("cosine memories", make("rmn_no_ca", model__metric="cosine")),
    ]


def reviving(arguments: argparse.Namespace, make: Make) -> list[suite.Row]:
    del arguments
    small = make("rmn_no_ca").batch_size // 2
    dying = {"N = 16": {"model__num_units": 16}, f"batch {small}": {"batch_size": small}}
    return [
        suite.Row(f"{name}, {words}", make("rmn_no_ca", revive_after=after, **settings))
        for name, settings in dying.items()
        for words, after in (("as it is", 0), ("revived after 2 epochs", 2))
    ]


def epochs(arguments: argparse.Namespace, make: Make) -> list[suite.Row]:
    del arguments
    found = []
    for times in (1, 3):
        original, *routed = _four(make, **_longer(make, times))
        # How much of the difference between RMN with CA and Original is due to attention alone.
        attended = suite.Row("Original with SE", suite.with_settings(original.config, model__attention="se"))
        rows = [original, attended, *routed]
        found += [row._replace(name=f"{row.name}, {row.config.epochs} epochs") for row in rows]
    return found


def capacity(arguments: argparse.Namespace, make: Make) -> list[suite.Row]:
    # Widths, each with a factor on the number of epochs.
    sizes = ((4, 1), (4, 4), (8, 1), (16, 1)) if arguments.scale == "cpu" else ((16, 1), (16, 4), (32, 1))
    return [
        row._replace(name=f"{row.name}, width {width}, {row.config.epochs} epochs")
        for width, times in sizes
        for row in _four(make, model__width=width, **_longer(make, times))
    ]


def data(arguments: argparse.Namespace, make: Make) -> list[suite.Row]:
    width = 4 if arguments.scale == "cpu" else 16
    # Numbers of classes (0: all), each with a factor on the number of epochs.
    return [
        row._replace(name=f"{row.name}, width {width}, {classes or 'all'} classes, {row.config.epochs} epochs")
        for classes, times in ((20, 1), (0, 1), (0, 4))
        for row in _four(make, model__width=width, data__classes=classes, **_longer(make, times))
    ]


PARTS = {part.__name__: part for part in (units, batch, momentum, attention, beyond, reviving, epochs, capacity, data)}


def rows(arguments: argparse.Namespace) -> list[suite.Row]:
    """The rows of ``arguments.part`` at ``arguments.scale``."""

    def make(variant: str, **settings) -> ConfigDict:
        if arguments.scale == "cpu":
            return suite.cpu_config(variant, **settings)
        return suite.paper_config(arguments, variant, **settings)

    return PARTS[arguments.part](arguments, make)


def _longer(make: Make, times: int) -> dict[str, int]:
    """Settings for ``times`` as many epochs, in phase 1 and in total."""
    usual = make("rmn_no_ca")
    return {"epochs": times * usual.epochs, "stem_epochs": times * usual.stem_epochs}


def _four(make: Make, **settings) -> list[suite.Row]:
    """Original at the RMN's batch, RMN, RMN with CA and random routing."""
    routed = make("rmn_no_ca", **settings)
    return [
        suite.Row("Original", make("plain", batch_size=routed.batch_size, **settings)),
        suite.Row("RMN", routed),
        suite.Row("RMN with CA", make("rmn", **settings)),
        suite.Row("Random routing", suite.with_settings(routed, model__router="random")),
    ]


def main() -> int:
    parser = suite.parser(__doc__.splitlines()[0], "ablations")
    parser.add_argument("part", choices=PARTS)
    arguments = parser.parse_args()
    arguments.name, arguments.module = f"ablations_{arguments.part}", f"ablations {arguments.part}"
    return suite.main(lambda: suite.run_rows(arguments, rows(arguments)))


if __name__ == "__main__":
    sys.exit(main())
