"""Expectation-maximisation for Gaussians that share one covariance, several starts at once.

The shared covariance is Σ = T − Σ_k π_k μ_k μ_kᵀ, where T, the covariance of all points and the
floor, never changes. In coordinates in which T is the identity everything about Σ is therefore
algebra with K × K matrices, and a step costs two products of the points with K vectors.
Shapes: N points, D dimensions, K clusters, R starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# A start has converged when a step gains less in the mean log-likelihood of a point.
_TOLERANCE = 1e-3
# Directions whose variance is less than this part of the floor cannot decide anything.
_NO_VARIANCE = 1e-6


@dataclass(frozen=True)
class Mixtures:
    """R mixtures.

    Attributes:
        means: (R, K, D).
        coefficients: (R, D, K); with the next, logits of a point's cluster, up to what is the same
            for all clusters.
        intercepts: (R, K).
        likelihood: (R,) mean log-likelihood of the points.
    """

    means: Tensor
    coefficients: Tensor
    intercepts: Tensor
    likelihood: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """(R, K, N) of points (N, D)."""
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
        second = x.T @ x / len(x) - torch.outer(self.mean, self.mean)
        variances, vectors = torch.linalg.eigh(second)
        kept = variances > _NO_VARIANCE * floor
        self._total = variances[kept].clamp(min=0) + floor  # eigenvalues of T
        self._whiten = vectors[:, kept] / self._total.sqrt()  # (D, D')

    def maximise(self, responsibilities: Tensor) -> Mixtures:
        """The mixtures that responsibilities (R, K, N) describe."""
        restarts, k, n = responsibilities.shape
        counts = responsibilities.sum(2) + 10 * torch.finfo(self.x.dtype).eps
        sums = responsibilities.reshape(restarts * k, n) @ self.x
        means = sums.view(restarts, k, -1) / counts[..., None]
        share = counts / n
        white = (means - self.mean) @ self._whiten  # (R, K, D')
        root = share.sqrt()
        scaled = white * root[..., None]
        between = scaled @ scaled.transpose(1, 2)  # (R, K, K)
        # Σ⁻¹ = 1 + Uᵀ (1 − UUᵀ)⁻¹ U, where the rows of U are √π_k μ_k.
        within = torch.eye(k, dtype=self.x.dtype) - between
        factor, _ = torch.linalg.cholesky_ex(within)
        solved = torch.cholesky_solve(scaled, factor)  # (R, K, D'), Σ⁻¹U
        direct = solved / root[..., None]  # Σ⁻¹μ
        coefficients = (direct @ self._whiten.T).transpose(1, 2)
        squares = (direct * white).sum(2)  # μᵀΣ⁻¹μ
        intercepts = share.log() - squares / 2 - (coefficients.transpose(1, 2) @ self.mean)
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
            logits = found.logits(self.x)
            evidence = logits.logsumexp(1)
            # Up to the last product, the mixture's constant, a point's likelihood is its evidence.
            now = found.likelihood + evidence.mean(1)
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
