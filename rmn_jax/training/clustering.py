"""Phase 3, memory initialisation: the centres of a k-means over the pooled inputs of a stage.

Axes: N units, C channels, M training inputs (see ``rmn_jax``).
"""

import warnings

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from rmn_jax.errors import UserError


def k_means(features: np.ndarray, num_units: int, seed: int, start: np.ndarray | None = None) -> np.ndarray:
    """Euclidean k-means with k = N; the centres become the memories.

    Runs on one thread: scikit-learn adds the sums of its threads in the order they finish, and a run must be
    reproducible bit for bit.

    Args:
      features: [M, C], GAP(f_{i-1}) of M training inputs.
      num_units: N.
      seed: of the initialisation (k-means++, best of three).
      start: [N, C], centres to begin with instead; centre j of the result then comes from centre j.

    Returns:
      [N, C] float32. If fewer than N features differ, some centres are equal and their units start dead.

    Raises:
      UserError: fewer inputs than units, or features that are not finite.
    """
    if len(features) < num_units:
        raise UserError(
            f"{len(features)} training images cannot initialise {num_units} memories; "
            f"set config.model.num_units to {len(features)} or less, and start in a new --workdir."
        )
    if not np.isfinite(features).all():
        raise UserError(
            "the stem network's features are not finite: phase 1 diverged; "
            "lower config.learning_rate.peak, and start in a new --workdir."
        )
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        begin = {"n_init": 3} if start is None else {"n_init": 1, "init": start.astype(np.float64)}
        result = KMeans(num_units, random_state=seed, **begin).fit(features.astype(np.float64))
    return result.cluster_centers_.astype(np.float32)
