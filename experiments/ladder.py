"""The paper's Tiny ImageNet rows on an accelerator, the most informative rows first, in time slices.

    python -m experiments.ladder --minutes=8      # repeat it until it prints the table and exits with status 0

Each call continues where the last one stopped; when its time is over it saves and exits with status 75. The rows have
the paper's hyperparameters: all four for ResNet-18, then RMN with CA and Original for the other backbones
(``--backbone`` takes one of them alone). A finished run is in the results file at once. The epochs of a run in progress
are in ``WORKDIR/ROW-SEED-*/metrics.jsonl``.
"""

import argparse
import sys

from experiments import suite
from experiments.paper import top1

# The paper's claim first, then its baselines, then the other backbones.
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
    """The rows in order; with ``only``, those of one backbone."""
    found = []
    for backbone, kind in ORDER:
        if only not in (None, backbone):
            continue
        page = argparse.Namespace(backbone=backbone, benchmark=benchmark)
        variant = kind.split("_")[0] if kind.startswith("plain") else kind
        # Saving a routed network takes seconds. A slice whose time is over saves in any case.
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
