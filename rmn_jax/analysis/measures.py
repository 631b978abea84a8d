"""What a stage's routing follows: how much an image's class, colour or edges tell of the unit it is sent to.

Pure numpy. Axes: M images, H W height and width, K codes of what is compared (classes, bins). Information is in nats.
"""

from typing import NamedTuple

import numpy as np

COLOUR_BINS = 4  # a channel, so 64 colours
EDGE_BINS = 16

# ITU-R BT.709: what red, green and blue add to the brightness that is seen.
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


class Information(NamedTuple):
    """What knowing one quantity tells of a stage's assignment.

    Attributes:
      nats: mutual information I(unit; quantity) of the sample.
      chance: its mean when the images' units are shuffled. A sample shows some information even where there is none,
        the more the fewer its images and the more the codes, about (N - 1)(K - 1) / 2M nats.
      chance_95: the value that 95% of the shuffles stay at or below.
      share: how much of the assignment's entropy the quantity explains beyond chance,
        (nats - chance) / (H(unit) - chance): about 0 without any connection, 1 where the quantity decides the unit.
    """

    nats: float
    chance: float
    chance_95: float
    share: float

    @property
    def above_chance(self) -> bool:
        """Whether there is more than 95% of the shuffles have."""
        return self.nats > self.chance_95 + 1e-9


def entropy(codes: np.ndarray) -> float:
    """Entropy in nats of a sample: codes [M], non-negative integers."""
    counts = np.bincount(codes)
    shares = counts[counts > 0] / len(codes)
    return float(-(shares * np.log(shares)).sum())


def mutual_information(one: np.ndarray, other: np.ndarray) -> float:
    """I(one; other) = H(one) + H(other) - H(one, other) in nats of a sample, uncorrected.

    Args:
      one: [M] non-negative integers.
      other: [M] likewise.
    """
    joint = one.astype(np.int64) * (int(other.max()) + 1) + other
    return max(0.0, entropy(one) + entropy(other) - entropy(joint))  # rounding may leave less than nothing


def information(assignment: np.ndarray, codes: np.ndarray, shuffles: int = 100, seed: int = 0) -> Information:
    """Mutual information of a stage's assignment and a quantity, beside what chance alone shows.

    Args:
      assignment: [M] int, the unit of each image.
      codes: [M] int, the quantity: a class or a bin.
      shuffles: how many permutations the baseline is taken over.
      seed: of the permutations.
    """
    rng = np.random.default_rng(seed)
    nats = mutual_information(assignment, codes)
    shuffled = [mutual_information(rng.permutation(assignment), codes) for _ in range(shuffles)]
    chance = float(np.mean(shuffled))
    left = entropy(assignment) - chance
    share = (nats - chance) / left if left > 1e-9 else 0.0  # one unit for all, or a code for each image
    return Information(nats, chance, float(np.quantile(shuffled, 0.95)), share)


def mean_colour(images: np.ndarray) -> np.ndarray:
    """Mean red, green and blue of each image in 0..1: uint8 [M, H, W, 3] -> float64 [M, 3]."""
    return images.mean(axis=(1, 2)) / 255


def edge_energy(images: np.ndarray) -> np.ndarray:
    """Mean size of the brightness gradient of each image: uint8 [M, H, W, 3] -> float64 [M].

    Luminance in 0..1 a pixel, by central differences (one-sided at the border). Flat images have 0.
    """
    slopes = (np.gradient(image @ _LUMINANCE / 255) for image in images)  # one by one: a batch is large in floats
    return np.array([np.hypot(down, right).mean() for down, right in slopes])


def quantile_bins(values: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each value, cut so that bins hold equally many: float [M] -> int [M] in [0, bins).

    Equal values share a bin, so that a quantity with few values fills fewer bins.
    """
    cuts = np.quantile(values, np.arange(1, bins) / bins)
    return np.searchsorted(cuts, values, side="right")


def colour_bins(colour: np.ndarray, bins: int = COLOUR_BINS) -> np.ndarray:
    """Mean colours as codes: each channel in ``bins`` quantile bins, jointly, [M, 3] -> int [M] in [0, bins^3)."""
    red, green, blue = (quantile_bins(channel, bins) for channel in colour.T)
    return (red * bins + green) * bins + blue


def edge_bins(energy: np.ndarray, bins: int = EDGE_BINS) -> np.ndarray:
    """Edge energies [M] as codes: int [M] in [0, bins), quantile bins."""
    return quantile_bins(energy, bins)
