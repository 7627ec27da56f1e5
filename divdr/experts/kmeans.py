"""K-means on gate activations, on the device that holds them.

Shapes: N points, D dimensions, K centres, R restarts.

All arithmetic is float64 on data whose mean is taken off. That costs little at these sizes and
makes the result independent of TF32, of autocast and, but for exact ties, of the device.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError, DivdrError
from ._explore import SAMPLE_POINTS, explore
from ._hartigan import hartigan
from ._lloyd import inertia_of, lloyd, means


@torch.no_grad()
def nearest_centre(a: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest centre of every activation, μ(x) of DivDR (section 3.2).

    Args:
        a: gate activations (N, D).
        centres: (K, D), on the same device.

    Returns:
        Index (N,) of int64, ties to the lowest one, and distance (N,). Distances are computed from
        differences in float32 or better and carry no gradient.

    Raises:
        ValueError: shapes do not fit, or there is no centre.
    """
    if a.dim() != 2 or centres.dim() != 2 or a.shape[1] != centres.shape[1] or len(centres) == 0:
        raise ValueError(
            "Expected activations (N, D) and at least one centre (K, D), "
            f"got {tuple(a.shape)} and {tuple(centres.shape)}."
        )
    dtype = torch.promote_types(torch.promote_types(a.dtype, centres.dtype), torch.float32)
    # The matrix-product form of cdist cancels badly for an activation close to its centre.
    distances = torch.cdist(
        a.to(dtype), centres.to(dtype), compute_mode="donot_use_mm_for_euclid_dist"
    )
    index = distances.argmin(1)
    return index, distances.gather(1, index[:, None])[:, 0]


# Largest number of float64 entries in one (restarts, K, N) temporary; 2^23 entries are 64 MiB.
_TEMPORARY_ENTRIES = 2**23
# Rows whose distances to their own centres are in memory at once.
_ROWS = 2**14


@dataclass(frozen=True)
class KMeansResult:
    """Centres (K, D) in the dtype of the data, assignment (N,) of int64, and the inertia.

    The inertia is the sum over points of the squared distance to the point's centre.
    """

    centres: Tensor
    assignment: Tensor
    inertia: float


@torch.no_grad()
def kmeans(
    x: Tensor,
    k: int,
    *,
    restarts: int = 10,
    init: Tensor | None = None,
    seed: int = 0,
    max_iterations: int = 300,
    backend: str = "torch",
) -> KMeansResult:
    """Cluster points by K-means (DivDR, section 3.2: how the local experts are updated).

    Greedy k-means++ seeds `restarts` runs of Lloyd's algorithm. Every run goes on with single-point
    moves (Hartigan's rule), which leave many of the local optima where Lloyd stops, and the best
    run with a search that relocates one centre at a time. Random numbers come from one generator
    on the CPU, so a seed means the same on every device.

    With fewer than K distinct points the surplus centres lie on data points and have no members.

    Args:
        x: the points (N, D); any real dtype, taken as float32 below that precision.
        k: number of centres, 1 <= k <= N.
        restarts: number of seedings; the best result is returned.
        init: centres (K, D) to start from instead; there is one run then, and nothing is random.
        seed: any integer.
        max_iterations: limit on Lloyd steps (and again on rounds of moves) of one run.
        backend: "torch", or "sklearn" for `sklearn.cluster.KMeans` on the CPU.

    Returns:
        Centres and assignment on the device of `x`.

    Raises:
        ConfigError: k is larger than N, or the backend is unknown.
        DivdrError: a value is not finite.
        ValueError: k < 1, restarts < 1, or wrong shapes.
    """
    _check(x, k, restarts, init, backend)
    points = x.detach()
    out_dtype = torch.promote_types(points.dtype, torch.float32)
    points = points.to(torch.double, copy=True)
    offset = points.mean(0)
    points -= offset
    start = None if init is None else init.detach().to(points) - offset
    if backend == "sklearn":
        centres, assignment = _sklearn(points, k, restarts, start, seed, max_iterations)
    else:
        centres, assignment = _torch(points, k, restarts, start, seed, max_iterations)
    return KMeansResult(
        (centres + offset).to(out_dtype), assignment, inertia_to(points, centres, assignment)
    )


def inertia_to(points: Tensor, centres: Tensor, assignment: Tensor) -> float:
    """Sum of squared distances of points (N, D) to their centres, with little memory."""
    parts = zip(points.split(_ROWS), assignment.split(_ROWS), strict=True)
    return float(sum((rows - centres[own]).square().sum() for rows, own in parts))


def _torch(
    points: Tensor, k: int, restarts: int, init: Tensor | None, seed: int, max_iterations: int
) -> tuple[Tensor, Tensor]:
    group = max(1, _TEMPORARY_ENTRIES // (len(points) * max(k, 4)))
    if init is not None:
        starts = init[None]
    else:
        generator = torch.Generator().manual_seed(seed % 2**63)
        small_group = max(1, _TEMPORARY_ENTRIES // (min(len(points), SAMPLE_POINTS) * max(k, 4)))
        starts = explore(points, k, restarts, generator, small_group)
    tolerance = 0.0 if len(starts) == 1 else 1e-5
    labels = torch.cat(
        [lloyd(points, part, max_iterations, tolerance) for part in starts.split(group)]
    )
    finalists = max(3, 2**13 // len(points))
    labels = labels[inertia_of(points, labels, k).argsort(stable=True)[:finalists]]
    labels = torch.cat([hartigan(points, part, k, max_iterations) for part in labels.split(group)])
    best = labels[inertia_of(points, labels, k).argmin()]
    best = lloyd(points, means(points, best[None], k)[0], max_iterations)[0]
    centres = means(points, best[None], k)[0][0]
    sizes = torch.bincount(best.cpu(), minlength=k)
    for empty in (sizes == 0).nonzero().flatten().tolist():
        # Only where distinct points are fewer than K: any point will do, every distance is zero.
        centres[empty] = points[0]
    return centres, nearest_centre(points, centres)[0]


def _sklearn(
    points: Tensor, k: int, restarts: int, init: Tensor | None, seed: int, max_iterations: int
) -> tuple[Tensor, Tensor]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    model = KMeans(
        k,
        init="k-means++" if init is None else init.cpu().numpy(),
        n_init=restarts if init is None else 1,
        max_iter=max_iterations,
        random_state=seed % 2**32,
    )
    with warnings.catch_warnings():
        # Fewer distinct points than centres is allowed here.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(points.cpu().numpy())
    centres = torch.from_numpy(model.cluster_centers_).to(points)
    return centres, torch.from_numpy(model.labels_).long().to(points.device)


def _check(x: Tensor, k: int, restarts: int, init: Tensor | None, backend: str) -> None:
    if x.dim() != 2:
        raise ValueError(f"K-means needs points of shape (N, D), got {tuple(x.shape)}.")
    if k < 1:
        raise ValueError(f"K-means needs at least one centre, got K = {k}.")
    if restarts < 1:
        raise ValueError(f"K-means needs at least one restart, got {restarts}.")
    if backend not in ("torch", "sklearn"):
        raise ConfigError(f"Unknown K-means backend {backend!r}; choose 'torch' or 'sklearn'.")
    if k > len(x):
        raise ConfigError(f"K = {k} centres is larger than the data set of {len(x)} points.")
    if not bool(torch.isfinite(x).all()):
        raise DivdrError("K-means got points that are infinite or not a number.")
    if init is not None:
        if init.shape != (k, x.shape[1]):
            raise ValueError(
                f"Initial centres must be {(k, x.shape[1])} in shape, got {tuple(init.shape)}."
            )
        if not bool(torch.isfinite(init).all()):
            raise DivdrError("K-means got initial centres that are infinite or not a number.")
