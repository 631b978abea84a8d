"""The paper's ablations (Table 1, Figure 4) and questions beyond it, one part a command.

python -m experiments.ablations units --scale=cpu       # N = 1, 2, 4, 8, 16
python -m experiments.ablations batch --scale=cpu       # the batch, with the dead PUs it leaves
python -m experiments.ablations momentum --scale=cpu    # alpha of eq. 9
python -m experiments.ablations attention --scale=cpu   # attention with and without its condition, plain and routed
python -m experiments.ablations beyond --scale=cpu      # a unit's gradient over its own inputs; cosine memories
python -m experiments.ablations epochs --scale=cpu      # three times the training: is an RMN slower, or worse?
python -m experiments.ablations capacity --scale=cpu    # narrower networks, and one for longer: are parameters missing?
python -m experiments.ablations data --scale=cpu        # a narrow network on ten times the images, and for longer
"""

import sys

from experiments import suite
from experiments.paper import ATTENTION_TOP1

PARTS = ("units", "batch", "momentum", "attention", "beyond", "epochs", "capacity", "data")


def rows(arguments) -> list[suite.Row]:
    cpu = arguments.scale == "cpu"

    def make(variant, **settings):
        return suite.cpu_config(variant, **settings) if cpu else suite.paper_config(arguments, variant, **settings)

    routed = make("rmn_no_ca")
    large, units = routed.batch_size, routed.model.num_units
    if arguments.part == "units":
        return [suite.Row(f"N = {n}", make("rmn_no_ca", model__num_units=n)) for n in (1, 2, 4, 8, 16)]
    if arguments.part == "batch":
        sizes = [large // 8, large // 4, large // 2, large, large * 2]
        return [suite.Row(f"batch {size}", make("rmn_no_ca", batch_size=size)) for size in sizes]
    if arguments.part == "momentum":
        return [
            suite.Row(f"alpha = {alpha}", make("rmn_no_ca", model__memory_momentum=alpha))
            for alpha in (0.0, 0.5, 0.7, 0.9, 0.99)
        ]
    if arguments.part == "attention":
        reported = not cpu and (arguments.backbone, arguments.benchmark) == ("resnet18", "tiny_imagenet")
        paper = ATTENTION_TOP1 if reported else {}
        plain = {"batch_size": large} if cpu else {}
        return [
            suite.Row("plain", make("plain", **plain), paper.get("plain")),
            suite.Row("plain, SE", make("plain", model__attention="se", **plain), paper.get("plain_se")),
            suite.Row("RMN", make("rmn_no_ca"), paper.get("rmn_no_ca")),
            suite.Row("RMN, SE (no condition)", make("rmn_no_ca", model__attention="se"), paper.get("rmn_se")),
            suite.Row("RMN, CA", make("rmn"), paper.get("rmn")),
        ]
    if arguments.part == "capacity":  # width, and how many times as long as else
        sizes = ((4, 1), (4, 4), (8, 1), (16, 1)) if cpu else ((16, 1), (16, 4), (32, 1))
        return [
            row._replace(name=f"{row.name}, width {width}, {row.config.epochs} epochs")
            for width, times in sizes
            for row in _four(
                make,
                model__width=width,
                epochs=times * routed.epochs,
                stem_epochs=times * routed.stem_epochs,
            )
        ]
    if arguments.part == "data":  # classes, and how many times as long as else
        width = 4 if cpu else 16
        return [
            row._replace(name=f"{row.name}, width {width}, {classes or 'all'} classes, {row.config.epochs} epochs")
            for classes, times in ((20, 1), (0, 1), (0, 4))
            for row in _four(
                make,
                model__width=width,
                data__classes=classes,
                epochs=times * routed.epochs,
                stem_epochs=times * routed.stem_epochs,
            )
        ]
    if arguments.part == "epochs":
        return [
            row._replace(name=f"{row.name}, {row.config.epochs} epochs")
            for times in (1, 3)
            for row in _with_se(make, epochs=times * routed.epochs, stem_epochs=times * routed.stem_epochs)
        ]
    return [
        suite.Row(f"RMN, N = {units}", routed),
        suite.Row("a unit's gradient over its own inputs", make("rmn_no_ca", unit_gradient="own")),
        suite.Row("cosine memories", make("rmn_no_ca", model__metric="cosine")),
    ]


def _with_se(make, **settings) -> list[suite.Row]:
    """``_four``, and the plain network with attention: what of the RMN with CA is attention's."""
    original, *routed = _four(make, **settings)
    attended = suite.with_settings(original.config, model__attention="se")
    return [original, suite.Row("Original with SE", attended), *routed]


def _four(make, **settings) -> list[suite.Row]:
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
