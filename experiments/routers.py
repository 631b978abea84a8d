"""Routers compared: nearest memory, a learned gate, a fixed hash and random units; and a wider plain network.

    python -m experiments.routers --scale=cpu
    python -m experiments.routers --scale=paper

All routers have the same units, schedule and number of multiply-adds; none has attention. The learned top-1 gate has a
load-balancing loss, with the usual weight 0.01 and with 0.1. The wide plain network has about as many parameters as the
RMN, and so more multiply-adds.
"""

import sys

from experiments import suite
from experiments.paper import top1

ROUTERS: tuple[tuple[str, dict], ...] = (
    ("Nearest memory", {}),
    ("Learned top-1 gate", {"model__router": "learned"}),
    ("Learned top-1 gate, balance 0.1", {"model__router": "learned", "balance_loss": 0.1}),
    ("Fixed hash", {"model__router": "hash"}),
    ("Random", {"model__router": "random"}),
)


def rows(arguments) -> list[suite.Row]:
    if arguments.scale == "cpu":
        make, paper, wide = suite.cpu_config, {}, 32  # twice the width has N = 4 times the parameters
    else:
        paper = top1(arguments.benchmark, arguments.backbone)
        # 64 sqrt(8) = 181, rounded up to a multiple of 8, has about N = 8 times the parameters. Only for ResNets.
        wide = 184 if arguments.backbone.startswith("resnet") else 0

        def make(variant, **settings):
            return suite.paper_config(arguments, variant, **settings)

    routed = make("rmn_no_ca")
    batch = routed.batch_size
    found = [suite.Row(f"Original, batch {batch}", make("plain", batch_size=batch), paper.get("plain_1024"))]
    for name, settings in ROUTERS:
        reported = None if settings else paper.get("rmn_no_ca")
        found.append(suite.Row(name, suite.with_settings(routed, **settings), reported))
    if wide:
        config = make("plain", batch_size=batch, model__width=wide)
        found.append(suite.Row(f"Original, width {wide}, batch {batch}", config))
    return found


def main() -> int:
    arguments = suite.parser(__doc__.splitlines()[0], "routers").parse_args()
    return suite.main(lambda: suite.run_rows(arguments, rows(arguments)))


if __name__ == "__main__":
    sys.exit(main())
