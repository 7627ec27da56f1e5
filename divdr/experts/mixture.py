"""Experts as parts of a Gaussian mixture, for subsets of unequal size.

``sklearn.mixture.GaussianMixture(covariance_type="tied")`` is the same model, but takes many times
as long: it fits one start at a time and inverts a D × D covariance in each step. Here all starts
run side by side, in the D' directions in which the points vary, and a step inverts K × K.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DivdrError
from ..settings import KMeansSettings
from .kmeans import KMeansResult, kmeans

# Added to every gate's variance: gates run from 0 to about 1, and one that varies by less than
# 0.03 within a cluster should not decide.
_VARIANCE_FLOOR = 1e-3

# Clusters of less than this share of a K-th of the points are not looked for: a likely mixture
# often gives a Gaussian to two or three odd points, and K experts are wanted.
_LEAST_SHARE = 0.1

# Starts are compared on this many points; the best is then fitted to all.
_SAMPLE_POINTS = 4096
# Steps of K-means at most: where clusters are not clear it goes on for hundreds, and a start
# gains nothing by them.
_START_STEPS = 20

# A start has converged when a step gains less in the mean log-likelihood of a point.
_TOLERANCE = 1e-3
# Directions whose variance is less than this part of the floor cannot decide anything.
_NO_VARIANCE = 1e-6


@dataclass(frozen=True)
class Mixtures:
    """R mixtures.

    Attributes:
        means: (R, K, D).
        coefficients: (R, D, K) of the logits of a point's cluster.
        intercepts: (R, K), likewise.
        likelihood: (R,) mean log-likelihood of the points.
    """

    means: Tensor
    coefficients: Tensor
    intercepts: Tensor
    likelihood: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """(R, K, N) of points (N, D), up to a term that all clusters share."""
        restarts, dim, k = self.coefficients.shape
        flat = self.coefficients.transpose(1, 2).reshape(restarts * k, dim)
        products = torch.addmm(self.intercepts.reshape(-1, 1), flat, x.T)
        return products.view(restarts, k, len(x))

    def pick(self, index: Tensor) -> Mixtures:
        """Some of the mixtures."""
        parts = (self.means, self.coefficients, self.intercepts, self.likelihood)
        return Mixtures(*(part[index] for part in parts))


class TiedPoints:
    """Points (N, D), float64, and what fits to them have in common.

    Args:
        x: the points.
        floor: added to every variance, squared units of the points.
    """

    def __init__(self, x: Tensor, floor: float) -> None:
        self.x = x
        self.floor = floor
        self.mean = x.mean(0)
        total = x.T @ x / len(x) - torch.outer(self.mean, self.mean)  # (D, D), within + between
        variances, vectors = torch.linalg.eigh(total)
        kept = variances > _NO_VARIANCE * floor
        self._total = variances[kept].clamp(min=0) + floor  # (D',) eigenvalues with the floor
        self._whiten = vectors[:, kept] / self._total.sqrt()  # (D, D')

    def maximise(self, responsibilities: Tensor) -> Mixtures:
        """The mixtures that responsibilities (R, K, N) describe."""
        restarts, k, n = responsibilities.shape
        # (R, K); never 0, so that a cluster without members has a mean.
        counts = responsibilities.sum(2) + 10 * torch.finfo(self.x.dtype).eps
        sums = responsibilities.reshape(restarts * k, n) @ self.x  # (R·K, D)
        means = sums.view(restarts, k, -1) / counts[..., None]  # (R, K, D)
        share = counts / n  # (R, K), π_k
        white = (means - self.mean) @ self._whiten  # (R, K, D')
        root = share.sqrt()
        scaled = white * root[..., None]
        between = scaled @ scaled.transpose(1, 2)  # (R, K, K)
        # Σ⁻¹ = 1 + Uᵀ (1 − UUᵀ)⁻¹ U, where the rows of U are √π_k μ_k.
        within = torch.eye(k, dtype=self.x.dtype) - between
        factor, _ = torch.linalg.cholesky_ex(within)
        solved = torch.cholesky_solve(scaled, factor)  # (R, K, D'), Σ⁻¹U
        direct = solved / root[..., None]  # Σ⁻¹μ
        coefficients = (direct @ self._whiten.T).transpose(1, 2)  # (R, D, K)
        squares = (direct * white).sum(2)  # (R, K), μᵀΣ⁻¹μ
        intercepts = share.log() - squares / 2 - (coefficients.transpose(1, 2) @ self.mean)
        # Of (R,), as all that follows.
        logdet = self._total.log().sum() + 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        # tr(Σ⁻¹ XᵀX/N), with XᵀX/N = Σ + Σ_k π_k μ_k μ_kᵀ − floor.
        inverse = (1 / self._total).sum() + (solved * scaled / self._total).sum((1, 2))
        trace = len(self._total) + (share * squares).sum(1) - self.floor * inverse
        dim = self.x.shape[1]
        flat = (dim - len(self._total)) * math.log(self.floor)  # directions without variance
        constant = -(trace + logdet + flat + dim * math.log(2 * math.pi)) / 2
        return Mixtures(means, coefficients, intercepts, constant)

    def fit(self, responsibilities: Tensor, max_steps: int = 100) -> Mixtures:
        """Mixtures from starting responsibilities (R, K, N), each until it gains no more."""
        active = torch.arange(len(responsibilities))
        done: dict[int, Mixtures] = {}
        before = torch.full((len(active),), -torch.inf, dtype=self.x.dtype)
        for step in range(max_steps + 1):
            found = self.maximise(responsibilities)
            logits = found.logits(self.x)  # (R, K, N)
            evidence = logits.logsumexp(1)  # (R, N)
            # Up to the last product, the mixture's constant, a point's likelihood is its evidence.
            now = found.likelihood + evidence.mean(1)  # (R,)
            found = Mixtures(found.means, found.coefficients, found.intercepts, now)
            settled = (now - before).abs() < _TOLERANCE
            if step == max_steps:
                settled[:] = True
            for place in settled.nonzero().flatten().tolist():
                done[int(active[place])] = found.pick(torch.tensor([place]))
            going = (~settled).nonzero().flatten()
            if len(going) == 0:
                break
            responsibilities = (logits[going] - evidence[going][:, None]).exp()
            active, before = active[going], now[going]
        parts = [done[index] for index in sorted(done)]
        return Mixtures(
            *(
                torch.cat([getattr(part, name) for part in parts])
                for name in ("means", "coefficients", "intercepts", "likelihood")
            )
        )


@torch.no_grad()
def gaussian_mixture(
    x: Tensor,
    k: int,
    *,
    restarts: int = KMeansSettings.restarts,
    labels: Tensor | None = None,
    search: bool = True,
    seed: int = 0,
) -> KMeansResult:
    """Cluster points by a mixture of K Gaussians that share one covariance.

    K-means takes clusters to be equally large and round. Where one subset is much more frequent
    than the others, or images of one subset differ a lot in what does not matter, the least sum of
    squares cuts that subset in two and merges small ones. The mixture learns how frequent each
    cluster is and along which directions its members differ. All of it runs on the CPU.

    The fit ends in the optimum next to its start, and K-means at K is often the wrong one. So it
    is started from K-means with K, 2 K and 4 K centres, the surplus merged in several ways, and
    from given labels, and the most likely result is taken whose clusters hold at least a tenth of
    N / K points each, if there is one; else that of K-means at K.

    Args:
        x: the points (N, D).
        k: number of clusters, 1 <= k <= N.
        restarts: seedings by K-means of each kind.
        labels: clusters (N,) to start from as well, as those of a fit before; −1 where there is
            none.
        search: False starts from the labels alone, where they lead to clusters as above.
        seed: any integer.

    Returns:
        Centres (K, D) are the means of the members, and the inertia is to them. With fewer distinct
        points than K the surplus ones lie on points.

    Raises:
        ConfigError: k is larger than N.
        DivdrError: a value is not finite.
    """
    if k > len(x):
        raise ConfigError(f"K = {k} clusters is more than the data set's {len(x)} points.")
    rows = x.detach().cpu().double()
    if not bool(torch.isfinite(rows).all()):
        raise DivdrError("The mixture got points that are infinite or not a number.")
    found = None
    if labels is not None and not search:
        fits = _fits(TiedPoints(rows, _VARIANCE_FLOOR), [labels.cpu()], k)
        found = None if fits is None else _good(fits, rows)
    if found is None:
        found = _most_likely(rows, k, restarts, seed % 2**32, labels)
    if found is None:
        return kmeans(x, k, restarts=restarts, seed=seed)
    assignment = _clusters(found, rows)[0]
    centres = found.means[0]
    inertia = 0.0
    for cluster in assignment.unique().tolist():
        members = rows[assignment == cluster]
        centres[cluster] = members.mean(0)
        inertia += float((members - centres[cluster]).square().sum())
    out_dtype = torch.promote_types(x.dtype, torch.float32)
    return KMeansResult(centres.to(x.device, out_dtype), assignment.to(x.device), inertia)


def _most_likely(
    rows: Tensor, k: int, restarts: int, seed: int, labels: Tensor | None
) -> Mixtures | None:
    """The most likely mixture that a start leads to; None if all have tiny clusters, or fewer."""
    from sklearn.exceptions import ConvergenceWarning

    sample, known = rows, None if labels is None else labels.cpu()
    if len(rows) > _SAMPLE_POINTS:
        drawn = np.random.default_rng(seed).choice(len(rows), _SAMPLE_POINTS, replace=False)
        chosen = torch.from_numpy(drawn)
        sample, known = rows[chosen], None if known is None else known[chosen]
    with warnings.catch_warnings():
        # Fewer distinct points than clusters are allowed.
        warnings.simplefilter("ignore", ConvergenceWarning)
        starts = list(_merged_clusters(sample.numpy(), k, restarts, seed))
    if known is not None:
        starts.append(known)
    fits = _fits(TiedPoints(sample, _VARIANCE_FLOOR), starts, k)
    if fits is None:
        return None
    best = _good(fits, sample)
    if best is None or sample is rows:
        return best
    return TiedPoints(rows, _VARIANCE_FLOOR).fit(best.logits(rows).softmax(1))


def _fits(points: TiedPoints, starts: list[Tensor], k: int) -> Mixtures | None:
    """A mixture for each different start that has a member of every cluster, in their order."""
    found: dict[bytes, Tensor] = {}
    for labels in starts:
        if len(torch.unique(labels[labels >= 0])) == k:
            whole = _completed(points.x, labels, k)
            found.setdefault(_numbered_as_met(whole), whole)
    if not found:
        return None
    distinct = torch.stack(list(found.values()))[:, None]  # (R, 1, N)
    return points.fit((distinct == torch.arange(k)[:, None]).to(points.x.dtype))


def _good(fits: Mixtures, points: Tensor) -> Mixtures | None:
    """The most likely of those without tiny clusters; None if there is none."""
    k = fits.means.shape[1]
    labels = _clusters(fits, points)  # (R, N)
    sizes = (labels[:, None] == torch.arange(k)[:, None]).sum(2)  # (R, K)
    tiny = sizes.min(1).values < _LEAST_SHARE * len(points) / k
    value = fits.likelihood.nan_to_num(-torch.inf).masked_fill(tiny, -torch.inf)
    best = value.argmax()
    return fits.pick(best[None]) if bool(value[best] > -torch.inf) else None


def _clusters(fits: Mixtures, points: Tensor) -> Tensor:
    """(R, N) the likeliest cluster of every point."""
    return fits.logits(points).argmax(1)


def _completed(points: Tensor, labels: Tensor, k: int) -> Tensor:
    """Labels (N,) with the nearest mean's in place of −1."""
    if bool((labels >= 0).all()):
        return labels
    centres = torch.stack([points[labels == cluster].mean(0) for cluster in range(k)])
    return torch.where(labels < 0, torch.cdist(points, centres).argmin(1), labels)


def _numbered_as_met(labels: Tensor) -> bytes:
    """The partition as bytes, the same whatever its clusters' numbers."""
    _, first, number = np.unique(labels.numpy(), return_index=True, return_inverse=True)
    return first.argsort().argsort()[number].astype(np.int16).tobytes()


def _merged_clusters(points: np.ndarray, k: int, restarts: int, seed: int) -> Iterator[Tensor]:
    """Labels (N,) by K-means, and by K-means with more centres that are merged until K are left."""
    from sklearn.cluster import AgglomerativeClustering, KMeans

    first = KMeans(k, n_init=restarts, max_iter=_START_STEPS, random_state=seed).fit(points)
    yield torch.from_numpy(first.labels_).long()
    for again in range(restarts):
        for centres in (2 * k, 4 * k):
            if centres > len(points):
                return
            found = KMeans(
                centres, n_init=1, max_iter=_START_STEPS, random_state=(seed + again) % 2**32
            ).fit(points)
            for linkage in ("ward", "average", "single"):
                merged = AgglomerativeClustering(k, linkage=linkage).fit(found.cluster_centers_)
                yield torch.from_numpy(merged.labels_[found.labels_]).long()
