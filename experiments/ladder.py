"""Rows for fifteen minutes of a GPU: each ends inside them, the most informative first.

    python -m experiments.ladder --plan                             # what each row will take; trains nothing
    python -m experiments.ladder --rows "1:" --minutes=13           # one rung; status 75 if the time is over first

The rungs, ResNet-18 with the hyperparameters of configs/ (``--stages`` and ``--statistics`` choose the regime):

    1    32x32, the first 100 classes, 60 epochs: Original at both batches, RMN as in the paper, RMN in the regime
    2    64x64, all 200 classes, as many epochs as fit: the same
    3    the paper's own row: 64x64, 120 epochs, RMN with CA and Original

On a machine without tfds, Grain and ArrayRecord, give a folder of images: pack the data set where it is prepared, carry
the parts, unpack them there (``rmn data pack``, ``rmn data unpack``), and name the folder with ``--images``. Only the
results have to come back: ``--curves FOLDER`` appends the line of each epoch there as it comes, and ``--out`` names the
results file.
"""

import argparse
import sys
from typing import NamedTuple

from ml_collections import ConfigDict

from experiments import suite
from experiments.paper import top1
from experiments.runs import with_settings

MINUTES = 13  # of fifteen; the rest is for the machine's start, the transfer and the data
# Training images a second on one H100, bfloat16, by image size: Original at batch 256 and 1024, RMN (N = 8, any stages
# routed; with all of them). Measured with release 0.1 and jax 0.11.2 (docs/results.md, docs/performance.md), but for
# Original at batch 256 and 64x64, which is the rate at batch 1024 times the ratio at 32x32.
RATES = {32: (13_700, 26_000, 12_000), 64: (11_900, 22_500, 12_200)}
EVALUATION = 3  # times the speed of training
COMPILE, COMPILE_ROUTED = 60, 150  # seconds: phase 1 and evaluation; those of phase 4, cloning and k-means too
LOADING = 30  # seconds to decode the images and put them on the device


class Images(NamedTuple):
    """Numbers of training and held-out images of a rung."""

    train: int
    held_out: int


def seconds(config: ConfigDict) -> float:
    """An estimate of what a run will take on one H100, from ``RATES``."""
    images = images_of(config)
    small, large, routed = RATES[config.data.image_size]
    plain = small if config.batch_size < 1024 else large
    stem = config.stem_epochs if config.method == "rmn" else config.epochs
    evaluations = config.epochs / config.eval_every_epochs
    training = images.train * (stem / plain + (config.epochs - stem) / routed)
    compiling = COMPILE + (COMPILE_ROUTED if config.method == "rmn" else 0)
    return LOADING + compiling + training + images.held_out * evaluations / (EVALUATION * plain)


def images_of(config: ConfigDict) -> Images:
    """Tiny ImageNet has 500 training and 50 held-out images of each class."""
    classes = config.data.classes or 200
    return Images(500 * classes, 50 * classes)


def epochs_that_fit(config: ConfigDict, minutes: float) -> int:
    """The most epochs, in steps of five and a third of them phase 1, that ``seconds`` puts within ``minutes``."""

    def fits(epochs: int) -> bool:
        return seconds(with_settings(config, epochs=epochs, stem_epochs=epochs // 3)) <= 60 * minutes

    return max((epochs for epochs in range(5, 125, 5) if fits(epochs)), default=5)


def rows(arguments: argparse.Namespace) -> list[suite.Row]:
    """The rows of all rungs, in order."""
    page = argparse.Namespace(backbone="resnet18", benchmark="tiny_imagenet")
    source = {"data__name": "folder", "data__path": arguments.images} if arguments.images else {}
    regime = {"model__routed_stages": arguments.stages, "model__statistics": arguments.statistics}
    minutes = arguments.minutes or MINUTES

    def config(variant: str, size: int, classes: int, epochs: int, **settings) -> ConfigDict:
        # A checkpoint at the end of each phase; a slice whose time is over saves in any case.
        usual = {
            "epochs": epochs,
            "stem_epochs": epochs // 3,
            "checkpoint__every_epochs": epochs,
            "checkpoint__keep": 1,
        }
        data = {"data__image_size": size, "data__classes": classes, "eval_every_epochs": 2}
        return suite.paper_config(page, variant, **usual, **data, **source, **settings)

    def rung(number: int, size: int, classes: int, epochs: int) -> list[suite.Row]:
        large = {"batch_size": 1024}
        found = {
            "Original, batch 1024": config("plain", size, classes, epochs, **large),
            "RMN in the regime": config("rmn_no_ca", size, classes, epochs, **regime),
            "RMN": config("rmn_no_ca", size, classes, epochs),
            "Original, batch 256": config("plain", size, classes, epochs),
        }
        shown = f"{size}x{size}, {classes or 200} classes, {epochs} epochs"
        return [suite.Row(f"{number}: {name}; {shown}", one) for name, one in found.items()]

    fitting = min(epochs_that_fit(config(variant, 64, 0, 60), minutes) for variant in ("rmn_no_ca", "plain"))
    paper = top1("tiny_imagenet", "resnet18")
    whole = {"RMN with CA, batch 1024": ("rmn", "rmn"), "Original, batch 256": ("plain", "plain_256")}
    return [
        *rung(1, 32, 100, 60),
        *rung(2, 64, 0, fitting),
        *(
            suite.Row(f"3: {name}; 64x64, 200 classes, 120 epochs", config(variant, 64, 0, 120), paper[key])
            for name, (variant, key) in whole.items()
        ),
    ]


def show_plan(chosen: list[suite.Row], minutes: float, file) -> None:
    """Prints for each row the time that it will take, and whether that is within ``minutes``."""
    for row in chosen:
        images, time = images_of(row.config), seconds(row.config) / 60
        late = "" if time <= minutes else f"  more than {minutes:g}: it will stop, saved, and need a second slice"
        print(
            f"{time:5.1f} minutes  {images.train * row.config.epochs / 1e6:5.1f}M images  {row.name}{late}", file=file
        )
    print("Estimated for one H100 from the rates of release 0.1; compilation and loading included.", file=file)


def main() -> int:
    parser = suite.parser(__doc__.splitlines()[0], "ladder")
    parser.add_argument("--plan", action="store_true", help="show what each row will take, and train nothing")
    parser.add_argument(
        "--images", default="", help="a folder of class folders, as of `rmn data unpack` (default: tfds)"
    )
    parser.add_argument("--curves", type=suite.path, default=None, help="folder for the lines of each epoch")
    parser.add_argument("--stages", default="last", help="config.model.routed_stages of the regime (default: last)")
    parser.add_argument("--statistics", default="batch", help="config.model.statistics of the regime (default: batch)")
    parser.set_defaults(scale="paper", own_seeds=(0,))
    arguments = parser.parse_args()

    def work() -> None:
        chosen = suite.choose(rows(arguments), arguments)
        show_plan(chosen, arguments.minutes or MINUTES, sys.stdout if arguments.plan else sys.stderr)
        if not arguments.plan:
            suite.run_rows(arguments, rows(arguments))

    return suite.main(work)


if __name__ == "__main__":
    sys.exit(main())
