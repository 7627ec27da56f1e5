"""What one clustering of the activation bank found."""

from __future__ import annotations

from dataclasses import dataclass


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
