"""The ways to partition activations among experts."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from divdr.errors import ConfigError
from divdr.experts.kmeans import KMeansResult, kmeans
from divdr.experts.mixture import gaussian_mixture

PARTITIONS = ("kmeans", "mixture")
BACKENDS = ("torch", "sklearn")


def find_partition(
    x: Tensor,
    k: int,
    *,
    partition: str = "kmeans",
    restarts: int = 10,
    backend: str = "torch",
    seed: int = 0,
    centres: Tensor | None = None,
    labels: Tensor | None = None,
    search: bool = True,
) -> KMeansResult:
    """Partition points (N, D) into K clusters.

    Args:
        x: the points.
        k: K.
        partition: "kmeans" or "mixture".
        restarts: of a fresh start.
        backend: of K-means.
        seed: of a fresh start.
        centres: (K, D) that K-means goes on from.
        labels: (N,) that the mixture starts from as well, −1 where there is none.
        search: whether the mixture starts from others than those.

    Raises:
        DivdrError, ValueError: see :func:`kmeans` and :func:`gaussian_mixture`.
    """
    if partition == "mixture":
        return gaussian_mixture(x, k, restarts=restarts, labels=labels, search=search, seed=seed)
    return kmeans(x, k, restarts=restarts, init=centres, seed=seed, backend=backend)


def check_partition(partition: str, backend: str) -> None:
    """Raises ConfigError for an unknown partition or K-means backend."""
    if partition not in PARTITIONS:
        raise ConfigError(
            f"MODEL.ROUTING.CLUSTERING.PARTITION must be one of {', '.join(PARTITIONS)}, "
            f"not {partition!r}"
        )
    if backend not in BACKENDS:
        raise ConfigError(f"Unknown K-means backend {backend!r}; choose 'torch' or 'sklearn'.")


@torch.no_grad()
def match_centres(old: Tensor, new: Tensor) -> Tensor:
    """Match new centres to old ones so that the sum of distances is least (Hungarian method).

    Args:
        old: centres (K, D) whose ids are to be kept.
        new: as many centres (K, D), in any order.

    Returns:
        Permutation (K,) of int64 on the device of `new`: row k of `new[perm]` takes the id k.

    Raises:
        ValueError: the shapes differ.
    """
    if old.dim() != 2 or old.shape != new.shape:
        raise ValueError(
            f"Centres to match must be (K, D) alike, got {tuple(old.shape)} and {tuple(new.shape)}."
        )
    cost = torch.cdist(
        old.detach().cpu().double(),
        new.detach().cpu().double(),
        compute_mode="donot_use_mm_for_euclid_dist",
    )
    _, columns = linear_sum_assignment(cost.numpy())
    return torch.as_tensor(columns, dtype=torch.long, device=new.device)
