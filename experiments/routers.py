"""Nearest memory against other routers on the same dispatch and schedule, and against a wider plain network.

    python -m experiments.routers --scale=cpu
    python -m experiments.routers --scale=paper

Random units, a fixed hash of the image, a learned top-1 gate with a load-balancing loss (of the usual weight 0.01, and
of ten times that), nearest memory; none has attention. They cost the same multiply-adds. The wide plain network has
about the parameters of the RMN, and the multiply-adds that come with them.
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
        make, paper, wide = suite.cpu_config, {}, 32  # N = 4 times the parameters are twice the width
    else:
        paper = top1(arguments.benchmark, arguments.backbone)
        wide = 184 if arguments.backbone.startswith("resnet") else 0  # 64 times the root of N = 8, by a multiple of 8

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
