"""Local experts (DivDR, section 3.2): the prototypical sub-networks that emerge in one model.

An `ActivationBank` keeps the latest gate activation of every training image, `kmeans` clusters
them, `clustering_loss` (Eq. 2) pulls activations to their own centre and away from the others, and
`diversity` measures how well that works. `LocalExperts` ties these together for a trainer.

Axes, here and in the modules: N images (points, to a clustering), M images of the bank, D the
length of A(x), K experts (clusters, centres), R runs from different starts.
"""

from .bank import ActivationBank
from .clustering_loss import cluster_variance, clustering_loss
from .diversity import (
    ClusteringReport,
    Diversity,
    diversity,
    kmeans_recovery,
    linear_recovery,
    matched_share,
    mixture_recovery,
)
from .kmeans import KMeansResult, kmeans, nearest_centre
from .known_labels import KnownLabels
from .local_experts import LocalExperts
from .mixture import gaussian_mixture
from .partition import Membership, gate_weights, match_centres, weighted

__all__ = [
    "ActivationBank",
    "ClusteringReport",
    "Diversity",
    "KMeansResult",
    "KnownLabels",
    "LocalExperts",
    "Membership",
    "cluster_variance",
    "clustering_loss",
    "diversity",
    "gate_weights",
    "gaussian_mixture",
    "kmeans",
    "kmeans_recovery",
    "linear_recovery",
    "match_centres",
    "matched_share",
    "mixture_recovery",
    "nearest_centre",
    "weighted",
]
