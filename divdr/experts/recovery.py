"""How well experts recover subsets that are known (DivDR's controlled study)."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.cluster import contingency_matrix
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from .kmeans import kmeans
from .mixture import gaussian_mixture


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
    counts = contingency_matrix(labels.cpu().numpy(), assignment.cpu().numpy())
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return float(counts[rows, columns].sum() / len(labels))


def kmeans_recovery(a: Tensor, labels: Tensor, *, restarts: int = 20, seed: int = 0) -> float:
    """`matched_share` of K-means on activations (N, D), K being the number of true subsets."""
    k = len(torch.unique(labels))
    return matched_share(kmeans(a, k, restarts=restarts, seed=seed).assignment, labels)


def mixture_recovery(a: Tensor, labels: Tensor, *, restarts: int = 10, seed: int = 0) -> float:
    """`matched_share` of `gaussian_mixture` on activations (N, D), likewise."""
    k = len(torch.unique(labels))
    return matched_share(
        gaussian_mixture(a, k, restarts=restarts, seed=seed).assignment, labels.to(a.device)
    )


def linear_recovery(a: Tensor, labels: Tensor, *, folds: int = 5) -> float:
    """Share of images whose subset a linear classifier of A tells, by cross-validation.

    What A holds about the subset, whether or not clusters follow it: logistic regression on
    standardised activations (N, D), as scikit-learn fits it.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    scores = cross_val_score(model, a.cpu().numpy(), labels.cpu().numpy(), cv=folds)
    return float(np.mean(scores))
