"""How far apart local experts are and how tight (DivDR, section 4.1 and Table 2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..settings import KMeansSettings
from .kmeans import kmeans
from .mixture import gaussian_mixture


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


def matched_share(assignment: Tensor, labels: Tensor) -> float:
    """Share of images whose cluster is matched to their subset (Hungarian method).

    Args:
        assignment: cluster (N,) of each image; any number of clusters.
        labels: true subset (N,). A cluster without a subset, or the other way round, counts as
            wrong.

    Raises:
        ValueError: lengths differ, or there are no images.
    """
    if assignment.shape != labels.shape or assignment.dim() != 1 or not len(labels):
        raise ValueError(
            "Expected a cluster and a label for at least one image, "
            f"got {tuple(assignment.shape)} and {tuple(labels.shape)}."
        )
    # Here, as in other modules: these take a second to import, and few processes need them.
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics.cluster import contingency_matrix

    counts = contingency_matrix(labels.cpu().numpy(), assignment.cpu().numpy())
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return float(counts[rows, columns].sum() / len(labels))


def kmeans_recovery(a: Tensor, labels: Tensor, *, restarts: int = 20, seed: int = 0) -> float:
    """`matched_share` of K-means on activations (N, D), K being the number of true subsets."""
    k = len(torch.unique(labels))
    return matched_share(kmeans(a, k, restarts=restarts, seed=seed).assignment, labels)


def mixture_recovery(
    a: Tensor, labels: Tensor, *, restarts: int = KMeansSettings.restarts, seed: int = 0
) -> float:
    """`matched_share` of `gaussian_mixture` on activations (N, D), likewise."""
    k = len(torch.unique(labels))
    return matched_share(
        gaussian_mixture(a, k, restarts=restarts, seed=seed).assignment, labels.to(a.device)
    )


def linear_recovery(a: Tensor, labels: Tensor, *, folds: int = 5) -> float:
    """Share of images whose subset a linear classifier of A finds, by cross-validation.

    What A holds about the subset, whether or not clusters follow it: logistic regression on
    standardised activations (N, D), as scikit-learn fits it.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    scores = cross_val_score(model, a.cpu().numpy(), labels.cpu().numpy(), cv=folds)
    return float(np.mean(scores))
