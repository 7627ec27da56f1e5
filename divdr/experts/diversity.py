"""How far apart local experts are and how tight (DivDR, section 4.1 and Table 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Diversity:
    """Distances between and within clusters.

    Attributes:
        inter: mean distance over pairs of centres, 0 for a single one.
        intra_pairs: mean distance over all pairs within a cluster, all clusters pooled (the
            definition in the paper's text); 0 when no cluster has two members.
        intra_centre: mean distance of the activations to their centres (the definition in the
            caption of Table 2); 0 without activations.
        sizes: number of members of each cluster.
    """

    inter: float
    intra_pairs: float
    intra_centre: float
    sizes: list[int]


@torch.no_grad()
def diversity(
    rows: Tensor, centres: Tensor, assignment: Tensor, *, max_members: int = 2000
) -> Diversity:
    """Measure inter-cluster and intra-cluster distances.

    The pairs of a cluster with n > max_members rows are taken from the rows at positions
    ⌊i·n/max_members⌋ of it. The cluster still counts with all its n(n−1)/2 pairs in the mean.

    Args:
        rows: activations (N, D).
        centres: (K, D).
        assignment: cluster of each row (N,).
        max_members: rows of a cluster that enter its pairs, at most (>= 2).

    Raises:
        ValueError: max_members < 2.
    """
    if max_members < 2:
        raise ValueError(f"Pairs need max_members of at least 2, got {max_members}.")
    dtype = torch.promote_types(rows.dtype, torch.float32)
    rows, centres = rows.to(dtype), centres.to(dtype)
    sizes: list[int] = []
    distances = 0.0
    pairs = 0
    for cluster in range(len(centres)):
        members = rows[assignment == cluster]
        n = len(members)
        sizes.append(n)
        if n < 2:
            continue
        if n > max_members:
            members = members[torch.arange(max_members, device=rows.device) * n // max_members]
        count = n * (n - 1) // 2
        distances += _mean(F.pdist(members)) * count
        pairs += count
    return Diversity(
        inter=_mean(F.pdist(centres)),
        intra_pairs=distances / max(pairs, 1),
        intra_centre=_mean((rows - centres[assignment]).norm(dim=1)),
        sizes=sizes,
    )


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if len(values) else 0.0


@dataclass(frozen=True)
class ClusteringReport:
    """What one clustering found; see `Diversity` for the distances.

    Attributes:
        inter: mean distance over pairs of centres.
        intra_pairs: mean distance over pairs within a cluster.
        intra_centre: mean distance to the own centre.
        sigma2: σ² of Eq. 2.
        sizes: members of each expert.
        movement: mean distance of the centres to those before, 0 the first time.
        inertia: sum of squared distances to the own centre.
        seconds: time the clustering took, without waiting for other ranks' rows.
        agreement: with the clustering before, as adjusted Rand index over the images of both; 0 the
            first time.
    """

    inter: float
    intra_pairs: float
    intra_centre: float
    sigma2: float
    sizes: list[int]
    movement: float
    inertia: float
    seconds: float
    agreement: float = 0.0
