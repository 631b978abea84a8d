"""The paper's ablations (Table 1, Figure 4) and questions beyond it, one part a command.

python -m experiments.ablations units --scale=cpu       # N = 1, 2, 4, 8, 16
python -m experiments.ablations batch --scale=cpu       # the batch, with the dead PUs it leaves
python -m experiments.ablations momentum --scale=cpu    # alpha of eq. 9
python -m experiments.ablations attention --scale=cpu   # attention with and without its condition, plain and routed
python -m experiments.ablations beyond --scale=cpu      # a unit's gradient over its own inputs; cosine memories
python -m experiments.ablations epochs --scale=cpu      # three times the training: is an RMN slower, or worse?
python -m experiments.ablations capacity --scale=cpu    # narrower networks, and one for longer: are parameters missing?
"""

import sys

from experiments import suite
from experiments.paper import ATTENTION_TOP1

PARTS = ("units", "batch", "momentum", "attention", "beyond", "epochs", "capacity")


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
    if arguments.part == "capacity":
        # Width, and how many times as long as else.
        sizes = ((4, 1), (4, 4), (8, 1), (16, 1)) if cpu else ((16, 1), (16, 4), (32, 1))
        return [
            suite.Row(
                f"{name}, width {width}, {times * routed.epochs} epochs",
                make(
                    variant,
                    model__width=width,
                    epochs=times * routed.epochs,
                    stem_epochs=times * routed.stem_epochs,
                    **settings,
                ),
            )
            for width, times in sizes
            for name, variant, settings in (
                ("Original", "plain", {"batch_size": large}),
                ("RMN", "rmn_no_ca", {}),
                ("RMN with CA", "rmn", {}),
                ("Random routing", "rmn_no_ca", {"model__router": "random"}),
            )
        ]
    if arguments.part == "epochs":
        found = []
        for epochs, stem_epochs in ((routed.epochs, routed.stem_epochs), (3 * routed.epochs, 3 * routed.stem_epochs)):
            for name, variant, settings in (
                ("Original", "plain", {"batch_size": large}),
                ("RMN", "rmn_no_ca", {}),
                ("RMN, own gradient", "rmn_no_ca", {"unit_gradient": "own"}),
                ("RMN with CA", "rmn", {}),
                ("Random routing", "rmn_no_ca", {"model__router": "random"}),
            ):
                config = make(variant, epochs=epochs, stem_epochs=stem_epochs, **settings)
                found.append(suite.Row(f"{name}, {epochs} epochs", config))
        return found
    return [
        suite.Row(f"RMN, N = {units}", routed),
        suite.Row("a unit's gradient over its own inputs", make("rmn_no_ca", unit_gradient="own")),
        suite.Row("cosine memories", make("rmn_no_ca", model__metric="cosine")),
    ]


def main() -> int:
    parser = suite.parser(__doc__.splitlines()[0], "ablations")
    parser.add_argument("part", choices=PARTS)
    arguments = parser.parse_args()
    arguments.name, arguments.module = f"ablations_{arguments.part}", f"ablations {arguments.part}"
    return suite.main(lambda: suite.run_rows(arguments, rows(arguments)))


if __name__ == "__main__":
    sys.exit(main())
