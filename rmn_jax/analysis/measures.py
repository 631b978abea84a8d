"""Measures of what explains a stage's routing: mutual information of the unit with an image's class, colour or edges.

Pure numpy. Information is in nats. Axes: M images, N units, H W height and width of an image, K codes (classes or
bins).
"""

from typing import NamedTuple

import numpy as np

COLOUR_BINS = 4  # for each channel, so 64 colours
EDGE_BINS = 16

# Luminance of red, green and blue (ITU-R BT.709).
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


class Information(NamedTuple):
    """How much a property of the images explains of a stage's assignment.

    Attributes:
      nats: mutual information I(unit; property) of the sample.
      chance: its mean when the units are shuffled over the images. A finite sample has some information even if there
        is no relation: about (N - 1)(K - 1) / 2M nats.
      chance_95: 95th percentile of the shuffles.
      share: share of the assignment's entropy that the property explains beyond chance,
        (nats - chance) / (H(unit) - chance). About 0 without any relation, 1 if the property determines the unit.
    """

    nats: float
    chance: float
    chance_95: float
    share: float

    @property
    def above_chance(self) -> bool:
        """Whether the information is above that of 95% of the shuffles."""
        return self.nats > self.chance_95 + 1e-9


def entropy(codes: np.ndarray) -> float:
    """Entropy in nats of a sample: codes [M], non-negative integers."""
    counts = np.bincount(codes)
    shares = counts[counts > 0] / len(codes)
    return float(-(shares * np.log(shares)).sum())


def mutual_information(one: np.ndarray, other: np.ndarray) -> float:
    """I(one; other) = H(one) + H(other) - H(one, other) of a sample, in nats, without a correction for its size.

    Args:
      one: [M] non-negative integers.
      other: [M] non-negative integers.
    """
    joint = one.astype(np.int64) * (int(other.max()) + 1) + other
    return max(0.0, entropy(one) + entropy(other) - entropy(joint))  # rounding can make it negative


def information(assignment: np.ndarray, codes: np.ndarray, shuffles: int = 100, seed: int = 0) -> Information:
    """Mutual information of a stage's assignment and a property, and how much of it is chance.

    Args:
      assignment: [M] int, the unit of each image.
      codes: [M] int, the property: a class or a bin.
      shuffles: number of random permutations that chance is estimated from.
      seed: of the permutations.
    """
    rng = np.random.default_rng(seed)
    nats = mutual_information(assignment, codes)
    shuffled = [mutual_information(rng.permutation(assignment), codes) for _ in range(shuffles)]
    chance = float(np.mean(shuffled))
    explainable = entropy(assignment) - chance
    # Nothing can be explained if all images go to one unit, or if each image has a code of its own.
    share = (nats - chance) / explainable if explainable > 1e-9 else 0.0
    return Information(nats, chance, float(np.quantile(shuffled, 0.95)), share)


def mean_colour(images: np.ndarray) -> np.ndarray:
    """Mean red, green and blue of each image, in 0..1: uint8 [M, H, W, 3] -> float64 [M, 3]."""
    return images.mean(axis=(1, 2)) / 255


def edge_energy(images: np.ndarray) -> np.ndarray:
    """Mean length of the luminance gradient of each image: uint8 [M, H, W, 3] -> float64 [M].

    In units of luminance (0..1) per pixel, by central differences (one-sided at the border). A flat image has 0.
    """
    gradients = (np.gradient(image @ _LUMINANCE / 255) for image in images)  # one by one: floats need much memory
    return np.array([np.hypot(down, right).mean() for down, right in gradients])


def quantile_bins(values: np.ndarray, bins: int) -> np.ndarray:
    """The quantile bin of each value; all bins hold equally many: float [M] -> int [M] in [0, bins).

    Equal values share a bin, so a property with few distinct values uses fewer bins.
    """
    edges = np.quantile(values, np.arange(1, bins) / bins)
    return np.searchsorted(edges, values, side="right")


def colour_bins(colour: np.ndarray, bins: int = COLOUR_BINS) -> np.ndarray:
    """Mean colours as joint codes, with ``bins`` quantile bins for each channel: [M, 3] -> int [M] in [0, bins^3)."""
    red, green, blue = (quantile_bins(channel, bins) for channel in colour.T)
    return (red * bins + green) * bins + blue


def edge_bins(energy: np.ndarray, bins: int = EDGE_BINS) -> np.ndarray:
    """Edge energies as codes, by quantile bins: [M] -> int [M] in [0, bins)."""
    return quantile_bins(energy, bins)
