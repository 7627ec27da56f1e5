"""Distances of a new K-means over a run's test images, at several K."""

from __future__ import annotations

from pathlib import Path

import torch

from ..experts import diversity, kmeans
from ..visualization import RunData

EXPERTS = (2, 3, 4, 6)


def spread(folder: Path) -> dict[str, float]:
    """Inter and intra distances (DivDR, Table 2) of a new K-means over A of the test images.

    The same yardstick for runs that were trained with different K, or with gates clustered before
    their non-linearity: A is taken after it, and clustered anew. The experts of the training play
    no part.

    Args:
        folder: of a finished run, evaluated on one data set.

    Returns:
        "inter_refit_K", "intra_pairs_refit_K" and "intra_centre_refit_K" for K = 2, 3, 4, 6; those
        K are left out for which there are too few images.
    """
    routes = next(iter((RunData.load(folder).routes or {}).values()), None)
    if routes is None:
        return {}
    rows = torch.from_numpy(routes.activations)
    found = {}
    for k in EXPERTS:
        if len(rows) < k:
            continue
        clusters = kmeans(rows, k, seed=0)
        distances = diversity(rows, clusters.centres, clusters.assignment)
        found[f"inter_refit_{k}"] = distances.inter
        found[f"intra_pairs_refit_{k}"] = distances.intra_pairs
        found[f"intra_centre_refit_{k}"] = distances.intra_centre
    return found
