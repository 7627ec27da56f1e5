"""Experts as parts of a Gaussian mixture, for subsets of unequal size."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from divdr.errors import ConfigError
from divdr.experts.kmeans import KMeansResult

# Added to every gate's variance: gates run from 0 to about 1, and one that varies by less than
# 0.03 within a cluster should not decide.
_VARIANCE_FLOOR = 1e-3

# Clusters of less than this share of a K-th of the points are not looked for: a likely mixture
# often gives a Gaussian to two or three odd points, and K experts are wanted.
_LEAST_SHARE = 0.1

# Starts are compared on this many points; the best is then fitted to all.
_SAMPLE_POINTS = 8192


@torch.no_grad()
def gaussian_mixture(
    x: Tensor, k: int, *, restarts: int = 10, labels: Tensor | None = None, seed: int = 0
) -> KMeansResult:
    """Cluster points by a mixture of K Gaussians that share one covariance.

    K-means takes clusters to be equally large and round. Where one subset is much more frequent
    than the others, or images of one subset differ a lot in what does not matter, the least sum of
    squares cuts that subset in two and merges small ones. The mixture learns how frequent each
    cluster is and along which directions its members differ. The fit is scikit-learn's, on the CPU.

    The fit ends in the optimum next to its start, and K-means at K is often the wrong one. So it
    is started from K-means with K, 2 K and 4 K centres, the surplus merged in several ways, and
    from given labels, and the most likely result is taken whose clusters hold at least a tenth of
    N / K points each, if there is one.

    Args:
        x: the points (N, D).
        k: number of clusters, 1 <= k <= N.
        restarts: seedings by K-means of each kind.
        labels: clusters (N,) to start from as well, as those of a fit before; −1 where there is
            none.
        seed: any integer.

    Returns:
        Centres (K, D) are the means of the members, and the inertia is to them. A cluster without
        members keeps the mean of its Gaussian.

    Raises:
        ConfigError: k is larger than N.
        ValueError: a value is not finite.
    """
    if k > len(x):
        raise ConfigError(f"K = {k} clusters is more than the data set's {len(x)} points.")
    points = x.detach().cpu().double().numpy()
    if not np.isfinite(points).all():
        raise ValueError("The mixture got points that are infinite or not a number.")
    with warnings.catch_warnings():
        # Fewer distinct points than clusters, and a fit that still moves a little, are allowed.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = _most_likely(points, k, restarts, seed % 2**32, labels)
        assignment = torch.from_numpy(model.predict(points)).long().to(x.device)
    centres = torch.from_numpy(model.means_).to(x.device)
    rows = x.detach().double()
    for cluster in assignment.unique().tolist():
        centres[cluster] = rows[assignment == cluster].mean(0)
    inertia = float((rows - centres[assignment]).square().sum())
    out_dtype = torch.promote_types(x.dtype, torch.float32)
    return KMeansResult(centres.to(out_dtype), assignment, inertia)


def _most_likely(
    points: np.ndarray, k: int, restarts: int, seed: int, labels: Tensor | None
) -> GaussianMixture:
    """The most likely of the mixtures that the starts lead to."""
    sample, known = points, None if labels is None else labels.cpu().numpy()
    if len(points) > _SAMPLE_POINTS:
        chosen = np.random.default_rng(seed).choice(len(points), _SAMPLE_POINTS, replace=False)
        sample, known = points[chosen], None if known is None else known[chosen]
    starts = _merged_clusters(sample, k, restarts, seed)
    best: GaussianMixture | None = None
    for given in starts if known is None else chain([known], starts):
        start = _described(sample, given, k)
        if start is None:
            continue
        model = _mixture(k, start).fit(sample)
        smallest = np.bincount(model.predict(sample), minlength=k).min()
        if smallest < _LEAST_SHARE * len(sample) / k:
            continue
        if best is None or model.lower_bound_ > best.lower_bound_:
            best = model
    if best is None:  # fewer distinct points than clusters, or nothing but tiny ones
        return _mixture(k, {"random_state": seed}).fit(points)
    if sample is points:
        return best
    found = (best.means_, best.weights_, best.precisions_)
    names = ("means_init", "weights_init", "precisions_init")
    return _mixture(k, dict(zip(names, found, strict=True))).fit(points)


def _merged_clusters(points: np.ndarray, k: int, restarts: int, seed: int) -> Iterator[np.ndarray]:
    """Labels (N,) by K-means, and by K-means with more centres that are merged until K are left."""
    yield KMeans(k, n_init=restarts, random_state=seed).fit(points).labels_
    for again in range(restarts):
        for centres in (2 * k, 4 * k):
            if centres > len(points):
                return
            found = KMeans(centres, n_init=1, random_state=(seed + again) % 2**32).fit(points)
            for linkage in ("ward", "average", "single"):
                merged = AgglomerativeClustering(k, linkage=linkage).fit(found.cluster_centers_)
                yield merged.labels_[found.labels_]


def _mixture(k: int, start: dict[str, Any]) -> GaussianMixture:
    return GaussianMixture(k, covariance_type="tied", reg_covar=_VARIANCE_FLOOR, **start)


def _described(points: np.ndarray, labels: np.ndarray, k: int) -> dict[str, np.ndarray] | None:
    """The mixture that labels describe; None if a cluster has no member."""
    sizes = np.bincount(labels[labels >= 0], minlength=k)
    if not sizes.all():
        return None
    known, labels = points[labels >= 0], labels[labels >= 0]
    means = np.stack([known[labels == cluster].mean(0) for cluster in range(k)])
    residual = known - means[labels]
    covariance = residual.T @ residual / len(known) + _VARIANCE_FLOOR * np.eye(points.shape[1])
    return {
        "means_init": means,
        "weights_init": sizes / sizes.sum(),
        "precisions_init": np.linalg.inv(covariance),
    }
