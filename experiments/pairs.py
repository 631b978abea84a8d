"""Paired comparisons: the same seed, and the same held-out images, with and without routing.

Two runs with one seed see the same images in the same order, so their difference has less noise than each of them. Two
networks that answer the same images are compared image by image (McNemar's test).

Axes: M held-out images.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rmn_jax.training.run import Run
from rmn_jax.training.step import example_keys


class Paired(NamedTuple):
    """Differences of one value between the runs of two rows with the same seeds.

    Attributes:
      seeds: in order.
      differences: one for each seed.
    """

    seeds: list[int]
    differences: list[float]

    @property
    def mean(self) -> float:
        """Mean difference."""
        return float(np.mean(self.differences))

    @property
    def standard_error(self) -> float | None:
        """Of the mean; None for fewer than two seeds."""
        count = len(self.differences)
        return float(np.std(self.differences, ddof=1) / math.sqrt(count)) if count > 1 else None

    @property
    def agree(self) -> bool:
        """Whether all differences have the same sign."""
        return all(value > 0 for value in self.differences) or all(value < 0 for value in self.differences)


def paired(runs: list[dict[str, Any]], baseline: list[dict[str, Any]], key: str) -> Paired:
    """Differences ``runs - baseline`` of the value ``key``, for the seeds that both have."""
    of_seed = {run["seed"]: run[key] for run in baseline}
    both = sorted((run["seed"], run[key]) for run in runs if run["seed"] in of_seed)
    return Paired([seed for seed, _ in both], [round(value - of_seed[seed], 4) for seed, value in both])


def binomial_error(per_cent: float, images: int) -> float:
    """The standard error, in points, of an accuracy in per cent on M images: sqrt(p (1 - p) / M)."""
    share = per_cent / 100
    return 100 * math.sqrt(share * (1 - share) / images)


class McNemar(NamedTuple):
    """Images that only one of two networks gets right.

    Attributes:
      gained: only the first.
      lost: only the second.
      p_value: exact and two-sided, of a split at least as uneven if either were as likely.
    """

    gained: int
    lost: int
    p_value: float


def mcnemar(correct: str, baseline: str) -> McNemar:
    """McNemar's exact test on the answers of two networks to the same images, each as from ``correct_images``."""
    first, second = (int(text, 16) for text in (correct, baseline))
    gained, lost = (first & ~second).bit_count(), (second & ~first).bit_count()
    differing, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(differing, k) for k in range(fewer + 1))
    return McNemar(gained, lost, min(1.0, 2 * tail / 2**differing))


def correct_images(run: Run) -> dict[str, Any]:
    """``{"correct": ..}`` of a finished run: a bit for each held-out image, 1 if it is right, in hexadecimal."""
    found = run.restore()
    assert found is not None, "a finished run has a checkpoint"
    state, position = found
    model = run.networks.model(position.phase.routed).clone(axis_name=None)

    @jax.jit
    def right(variables, batch):
        keys = example_keys(run.eval_key, batch["index"])
        logits = model.apply(variables, run.preprocess.evaluate(batch["image"]), keys=keys).logits
        return jnp.argmax(logits, axis=-1) == batch["label"]

    rows = [
        np.asarray(right(state.eval_variables, batch))[np.asarray(batch["mask"])]
        for batch in run.dataset.eval_batches()
    ]
    return {"correct": np.packbits(np.concatenate(rows)).tobytes().hex()}
