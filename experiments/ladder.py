"""The paper's rows for an accelerator, the most telling first, in slices that go on where the last one stopped.

    python -m experiments.ladder --minutes=8      # again and again, until it ends with the table and status 0

Tiny ImageNet with the paper's hyperparameters: ResNet-18 with all four rows, then RMN with CA beside Original for the
other backbones (one alone with ``--backbone``). A slice that is over saves and ends with status 75. The curve and row
of each run are in the results file as soon as it ends, and its epochs in ``WORKDIR/ROW-SEED-*/metrics.jsonl``.
"""

import argparse
import sys

from experiments import suite
from experiments.paper import top1

# In order of value: the claim, what it is measured against, then the rest.
ORDER = [
    ("resnet18", "rmn"),
    ("resnet18", "plain_256"),
    ("resnet18", "plain_1024"),
    ("resnet18", "rmn_no_ca"),
    ("resnet50", "rmn"),
    ("resnet50", "plain_256"),
    ("efficientnet_b0", "rmn"),
    ("efficientnet_b0", "plain_256"),
    ("vgg16_bn", "rmn"),
    ("vgg16_bn", "plain_256"),
]
NAMES = {
    "rmn": "RMN with CA, batch 1024",
    "rmn_no_ca": "RMN, batch 1024",
    "plain_256": "Original, batch 256",
    "plain_1024": "Original, batch 1024",
}


def rows(benchmark: str, only: str | None = None) -> list[suite.Row]:
    """The ladder's rows, or those of one backbone."""
    found = []
    for backbone, kind in ORDER:
        if only not in (None, backbone):
            continue
        page = argparse.Namespace(backbone=backbone, benchmark=benchmark)
        variant = kind.split("_")[0] if kind.startswith("plain") else kind
        # A checkpoint of a routed network takes seconds; a slice that is over saves all the same.
        settings = {"checkpoint__every_epochs": 10} | ({"batch_size": 1024} if kind == "plain_1024" else {})
        config = suite.paper_config(page, variant, **settings)
        found.append(suite.Row(f"{backbone}: {NAMES[kind]}", config, top1(benchmark, backbone)[kind]))
    return found


def main() -> int:
    parser = suite.parser(__doc__.splitlines()[0], "ladder")
    parser.set_defaults(scale="paper", own_seeds=(0,), backbone=None)
    arguments = parser.parse_args()
    return suite.main(lambda: suite.run_rows(arguments, rows(arguments.benchmark, arguments.backbone)))


if __name__ == "__main__":
    sys.exit(main())
