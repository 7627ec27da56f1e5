"""K-means on gate activations, on the device that holds them.

Tensors with an entry per run, centre and point are laid out (R, K, N), so that every reduction
runs along contiguous points.

All arithmetic is float64 on data whose mean is taken off. That costs little at these sizes and
makes the result independent of TF32, of autocast and, but for exact ties, of the device.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError, DivdrError
from ..settings import KMeansSettings

BACKENDS = KMeansSettings.choices("backend")

# Largest number of float64 entries in one (R, K, N) temporary; 2^23 entries are 64 MiB.
_TEMPORARY_ENTRIES = 2**23
_SEEDINGS = 16  # for each restart asked for
_SAMPLE = 4096  # points that they are tried on, at most
_FINALISTS = 3  # restarts that go on until nothing is gained
_ROUGH_STEPS = 100  # most steps before that


@dataclass(frozen=True)
class KMeansResult:
    """Centres (K, D) in the dtype of the data, assignment (N,) of int64, and the inertia, which is
    the sum over points of the squared distance to the point's centre.
    """

    centres: Tensor
    assignment: Tensor
    inertia: float


@torch.no_grad()
def kmeans(
    x: Tensor,
    k: int,
    *,
    restarts: int = KMeansSettings.restarts,
    init: Tensor | None = None,
    seed: int = 0,
    max_iterations: int = 300,
    backend: str = KMeansSettings.backend,
) -> KMeansResult:
    """Cluster points by K-means (DivDR, section 3.2: how the local experts are updated).

    Lloyd's algorithm from greedy k-means++ seeds. Sixteen seedings for each restart run roughly,
    on a sample of large data; the best `restarts` of them go on with all points, and the best
    three of these to the end. Tests hold the inertia to 1.01 times scikit-learn's with as many
    restarts; mostly it is less. Random numbers come from one generator on the CPU, so a seed means
    the same on every device. With fewer than K distinct points the surplus centres lie on data
    points and have no members.

    Args:
        x: the points (N, D); any real dtype, taken as float32 below that precision.
        k: number of centres, 1 <= k <= N.
        restarts: number of solutions that are worked out; the best is returned.
        init: centres (K, D) to start from instead; there is one run then, and nothing is random.
        seed: any integer.
        max_iterations: limit on the last steps of the best runs.
        backend: "torch", or "sklearn" for `sklearn.cluster.KMeans` on the CPU.

    Returns:
        Centres and assignment on the device of `x`.

    Raises:
        ConfigError: k is larger than N, or the backend is unknown.
        DivdrError: a value is not finite.
        ValueError: k < 1, restarts < 1, or wrong shapes.
    """
    _check(x, k, restarts, init, backend)
    out_dtype = torch.promote_types(x.dtype, torch.float32)
    points = x.detach().to(torch.double, copy=True)
    offset = points.mean(0)
    points -= offset
    start = None if init is None else init.detach().to(points) - offset
    if backend == "sklearn":
        centres = _sklearn(points, k, restarts, start, seed, max_iterations)
    else:
        starts = _searched(points, k, restarts, seed) if start is None else start[None]
        centres = _best(points, starts, 1, max_iterations, 0.0)[0]
    assignment, distance = nearest_centre(points, centres)
    inertia = float(distance.square().sum())
    return KMeansResult((centres + offset).to(out_dtype), assignment, inertia)


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
    exact = "donot_use_mm_for_euclid_dist"
    distance, index = torch.cdist(a.to(dtype), centres.to(dtype), compute_mode=exact).min(1)
    return index, distance


def _searched(x: Tensor, k: int, restarts: int, seed: int) -> Tensor:
    """Centres (R, K, D) from which Lloyd has few steps to go to the best optima found."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    picked = torch.randperm(len(x), generator=generator)[:_SAMPLE].sort().values
    sample = x[picked.to(x.device)]
    shape = (_SEEDINGS * restarts, k, 2 + int(math.log(k)))
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    parts = uniform.split(_side_by_side(sample, k))
    starts = torch.cat([kmeans_plus_plus(sample, part) for part in parts])
    starts = _best(sample, starts, restarts, _ROUGH_STEPS, 1e-3)
    return _best(x, starts, _FINALISTS, _ROUGH_STEPS, 1e-4)


def _best(x: Tensor, starts: Tensor, count: int, max_iterations: int, tolerance: float) -> Tensor:
    """Centres of the `count` best solutions that Lloyd finds from centres (R, K, D)."""
    k = starts.shape[1]
    found, gains = [], []
    for part in starts.split(_side_by_side(x, k)):
        centres, counts = _means(x, lloyd(x, part, max_iterations, tolerance), k)
        # Only where distinct points are fewer than K: any will do, every distance is zero.
        found.append(torch.where(counts[..., None] == 0, x[0], centres))
        # The inertia is Σ‖x‖² less this.
        gains.append((counts * centres.square().sum(2)).sum(1))
    order = torch.cat(gains).argsort(descending=True, stable=True)
    return torch.cat(found)[order[:count]]


def _side_by_side(x: Tensor, k: int) -> int:
    return max(1, _TEMPORARY_ENTRIES // (len(x) * max(k, 4)))


def kmeans_plus_plus(x: Tensor, uniform: Tensor) -> Tensor:
    """Centres (R, K, D) by greedy k-means++ (Arthur and Vassilvitskii, 2007).

    A new centre is one of x (N, D) drawn in proportion to its squared distance to the centres so
    far, from `uniform` numbers (R, K, L) on the CPU. Of L draws the best for the inertia is kept.
    """
    runs, k, draws = uniform.shape
    squares = x.square().sum(1)
    # Without a centre every point is as likely, and farther than it can be later.
    closest = (4 * squares.max() + 1).expand(runs, len(x))
    run = torch.arange(runs, device=x.device)
    chosen = []
    for step in range(k):
        # On the CPU, because CUDA's cumulative sum is not deterministic. One transfer per centre.
        cumulative = closest.cpu().cumsum(1)
        drawn = torch.searchsorted(cumulative, uniform[:, step] * cumulative[:, -1:], right=True)
        index = drawn.clamp_(max=len(x) - 1).to(x.device).flatten()
        distances = torch.addmm(squares + squares[index, None], x[index], x.T, alpha=-2)
        distances = distances.clamp_(min=0).view(runs, draws, -1).minimum(closest[:, None])
        best = distances.sum(2).argmin(1)
        chosen.append(index.view(runs, draws)[run, best])
        closest = distances[run, best]
    return x[torch.stack(chosen, 1)]


def lloyd(x: Tensor, centres: Tensor, max_iterations: int, tolerance: float = 0.0) -> Tensor:
    """Labels (R, N) of points (N, D): nearest centres and means in turn, from centres (R, K, D).

    A run leaves the batch when a step lowers its inertia by no more than `tolerance` of it. Centres
    without members move to the points that are farthest from their own centres, in order.
    """
    k, dim = centres.shape[1:]
    squares = x.square().sum(1)
    labels = torch.zeros((len(centres), len(x)), dtype=torch.long, device=x.device)
    active = torch.arange(len(centres), device=x.device)
    before = torch.full_like(active, torch.inf, dtype=x.dtype)
    for step in range(1, max_iterations + 1):
        flat = centres.reshape(-1, dim)
        distances = torch.addmm(flat.square().sum(1, keepdim=True), flat, x.T, alpha=-2)
        closest, own = distances.view(-1, k, len(x)).min(1)
        closest += squares
        inertia = closest.sum(1)
        labels[active] = own
        going = before - inertia > tolerance * inertia
        before = inertia
        # Reading a result stalls a CUDA stream, so look only now and then; more steps do no harm.
        if not x.is_cuda or step % 8 == 0:
            if not going.any():
                break
            active, own, closest, before = (t[going] for t in (active, own, closest, before))
        centres, counts = _means(x, own, k)
        empty = counts == 0
        if x.is_cuda or empty.any():
            farthest = closest.topk(k, dim=1).indices
            rank = (empty.long().cumsum(1) - 1).clamp_(min=0)
            centres = torch.where(empty[..., None], x[farthest.gather(1, rank)], centres)
    return labels


def _means(x: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Means (R, K, D) of points by labels (R, N), and counts (R, K); the mean of none is 0."""
    # A product with the indicator matrix sums in a fixed order, which index_add on CUDA does not.
    one_hot = (labels[:, None] == torch.arange(k, device=x.device)[:, None]).to(x.dtype)
    counts = one_hot.sum(2)
    sums = (one_hot.view(-1, len(x)) @ x).view(len(labels), k, -1)
    return sums / counts.clamp(min=1)[..., None], counts


def _sklearn(
    points: Tensor, k: int, restarts: int, init: Tensor | None, seed: int, max_iterations: int
) -> Tensor:
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
        return torch.from_numpy(model.fit(points.cpu().numpy()).cluster_centers_).to(points)


def check_backend(backend: str) -> None:
    """Raises ConfigError for an unknown K-means backend."""
    if backend not in BACKENDS:
        names = " or ".join(map(repr, BACKENDS))
        raise ConfigError(f"Unknown K-means backend {backend!r}; choose {names}.")


def _check(x: Tensor, k: int, restarts: int, init: Tensor | None, backend: str) -> None:
    if x.dim() != 2:
        raise ValueError(f"K-means needs points of shape (N, D), got {tuple(x.shape)}.")
    if min(k, restarts) < 1:
        raise ValueError(f"K-means needs a centre and a restart, got K = {k}, {restarts} restarts.")
    check_backend(backend)
    if k > len(x):
        raise ConfigError(f"K = {k} centres is larger than the data set of {len(x)} points.")
    right = (k, x.shape[1])
    if init is not None and init.shape != right:
        raise ValueError(f"Initial centres must be {right} in shape, got {tuple(init.shape)}.")
    for what, values in (("points", x), ("initial centres", init)):
        if values is not None and not bool(torch.isfinite(values).all()):
            raise DivdrError(f"K-means got {what} that are infinite or not a number.")
