"""Three recipes, each plain and routed: the paper's, a modern one from scratch, and fine-tuning of a trained network.

    python -m experiments.recipes

At CPU scale only: ResNet-8 on the handwritten digits, N = 4, three seeds. ``docs/recipes.md`` has the same recipes as
command lines. Fine-tuning begins from a plain network that has seen the digits 0 to 4 alone. The recipes are not tuned
to the digits: compare plain with routed within a recipe, not recipes.
"""

import argparse
import sys
import time
from typing import Any

from experiments import suite
from experiments.runs import folder_of, run_once, with_settings
from rmn_jax.cli.pages import load_config
from rmn_jax.errors import UserError
from rmn_jax.interop.transfer import transfer_run
from rmn_jax.training.run import CONFIG_FILE

PAGE = str(suite.ROOT.parent / "configs" / "digits.py")
VARIANTS = {"plain": "Original", "rmn_no_ca": "RMN"}

# What the digits need: short runs, and one normalisation for all, because fine-tuning keeps that of its weights.
DIGITS: dict[str, Any] = {
    "epochs": 30,
    "stem_epochs": 10,
    "eval_every_epochs": 5,
    "data__mean": "0.305,0.305,0.305",
    "data__std": "0.376,0.376,0.376",
}

# SGD with momentum, L2 on all parameters, cosine: the page as it is.
PAPER: dict[str, Any] = {}

MODERN: dict[str, Any] = {
    "optimizer__name": "adamw",
    "optimizer__weight_decay": 0.05,
    "optimizer__weight_decay_on": "kernels",
    "optimizer__clip_norm": 1.0,
    "learning_rate__peak": 3e-3,
    "label_smoothing": 0.1,
    "mixup": 0.2,
    "cutmix": 1.0,
    "ema": 0.95,  # of 150 steps; a run of 50,000 steps takes 0.9999
    "data__auto_augment": "randaugment",
    "data__random_erasing": 0.25,
}

FINE_TUNING: dict[str, Any] = {
    "epochs": 10,
    "stem_epochs": 0,  # the imported weights stand for phase 1
    "optimizer__name": "nesterov",
    "optimizer__freeze": "stem",
    "optimizer__clip_norm": 1.0,
    "learning_rate__peak": 0.05,
    "learning_rate__warmup_epochs": 1,
    "learning_rate__stages_factor": 0.3,
}

RECIPES = {"Paper": PAPER, "Modern": MODERN, "Fine-tuning": FINE_TUNING}


def rows() -> list[suite.Row]:
    """The rows of the table: every recipe, plain and routed."""
    return [
        suite.Row(f"{recipe}: {name}", with_settings(load_config(f"{PAGE}:{variant}"), **{**DIGITS, **settings}))
        for recipe, settings in RECIPES.items()
        for variant, name in VARIANTS.items()
    ]


def begin_fine_tuning(arguments: argparse.Namespace) -> None:
    """Makes the folders of the runs that fine-tune, as ``rmn import --from RUN`` does.

    It trains what they begin from: a plain network, by the paper's recipe, on the first five classes.
    """
    root = arguments.workdir or suite.default_root(arguments.scale)
    until = time.monotonic() + 60 * arguments.minutes if arguments.minutes else float("inf")
    chosen = [row for row in suite.choose(rows(), arguments) if row.config.stem_epochs == 0]
    few = suite.for_trial(with_settings(load_config(f"{PAGE}:plain"), **DIGITS, data__classes=5), arguments)
    for seed in arguments.seeds or arguments.own_seeds:
        begin = with_settings(few, seed=seed)
        for row in chosen:
            config = with_settings(row.config, seed=seed)
            folder = folder_of(config, root, row.slug)
            if not (folder / CONFIG_FILE).exists():
                run_once(begin, root, "digits_0_to_4", until)
                source = folder_of(begin, root, "digits_0_to_4")
                transfer_run(source=str(source), workdir=str(folder), config=config)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains all rows and prints the table, see ``suite.run_rows``."""
    if arguments.scale != "cpu":
        raise UserError("recipes has --scale=cpu alone; docs/recipes.md has the command lines for other data.")
    if not arguments.finished:
        begin_fine_tuning(arguments)
    return suite.run_rows(arguments, rows())


def main() -> int:
    arguments = suite.parser(__doc__.splitlines()[0], "recipes").parse_args()
    return suite.main(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
