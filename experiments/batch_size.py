"""Batch size (supplementary Table 1): the plain network at a small and a large batch, the RMN at the large one.

    python -m experiments.batch_size --scale=cpu      # about an hour and a half on 2 CPU cores
    python -m experiments.batch_size --scale=paper --backbone=resnet50 --benchmark=cifar100

``--scale=paper`` has the paper's rows: Original at batches 256 and 1024, RMN with and without CA at 1024, all at one
learning rate. ``--scale=cpu`` has the same rows for 20 classes of Tiny ImageNet at 16x16, a slim ResNet-10 and N = 4.
Its batches are 128 and 256; as in the paper, the large batch is the small one times N / 2.

Three more rows at CPU scale help to explain a difference:

    random routing             N times the parameters without memories
    Original with SE           squeeze-and-excitation without routing
    own gradient               each unit's gradient is a mean over the unit's inputs, not over the batch
"""

import sys

from experiments import suite
from experiments.paper import top1


def cpu_rows() -> list[suite.Row]:
    return [
        suite.Row("Original, batch 128", suite.cpu_config("plain", batch_size=128)),
        suite.Row("Original, batch 256", suite.cpu_config("plain", batch_size=256)),
        suite.Row("RMN, batch 256", suite.cpu_config("rmn_no_ca")),
        suite.Row("RMN with CA, batch 256", suite.cpu_config("rmn")),
        suite.Row("Random routing, batch 256", suite.cpu_config("rmn_no_ca", model__router="random")),
        suite.Row("Original with SE, batch 256", suite.cpu_config("plain", batch_size=256, model__attention="se")),
        suite.Row("RMN, own gradient, batch 256", suite.cpu_config("rmn_no_ca", unit_gradient="own")),
    ]


def paper_rows(arguments) -> list[suite.Row]:
    paper = top1(arguments.benchmark, arguments.backbone)
    config = lambda variant, **settings: suite.paper_config(arguments, variant, **settings)  # noqa: E731
    return [
        suite.Row("Original, batch 256", config("plain"), paper["plain_256"]),
        suite.Row("Original, batch 1024", config("plain", batch_size=1024), paper["plain_1024"]),
        suite.Row("RMN with CA, batch 1024", config("rmn"), paper["rmn"]),
        suite.Row("RMN, batch 1024", config("rmn_no_ca"), paper["rmn_no_ca"]),
    ]


def main() -> int:
    arguments = suite.parser(__doc__.splitlines()[0], "batch_size").parse_args()
    rows = cpu_rows() if arguments.scale == "cpu" else paper_rows(arguments)
    return suite.main(lambda: suite.run_rows(arguments, rows))


if __name__ == "__main__":
    sys.exit(main())
