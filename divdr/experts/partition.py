"""Partitions of activations among experts: K-means or mixture, scaled gates, ids that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..settings import ClusteringSettings, KMeansSettings
from .kmeans import KMeansResult, check_backend, kmeans
from .mixture import gaussian_mixture

PARTITIONS = ClusteringSettings.choices("partition")
SCALINGS = ClusteringSettings.choices("scaling")

# Gates whose spread is far below this are noise, and are not blown up to the size of the others.
_SPREAD_FLOOR = 0.1


def partition_points(
    x: Tensor,
    k: int,
    *,
    partition: str = ClusteringSettings.partition,
    restarts: int = KMeansSettings.restarts,
    backend: str = KMeansSettings.backend,
    seed: int = 0,
    centres: Tensor | None = None,
    labels: Tensor | None = None,
    search: bool = True,
) -> KMeansResult:
    """Partition points into K clusters, by K-means or the mixture.

    Args:
        x: the points (N, D).
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
    check_backend(backend)


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
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(
        old.detach().cpu().double(),
        new.detach().cpu().double(),
        compute_mode="donot_use_mm_for_euclid_dist",
    )  # (K, K), old by new
    _, columns = linear_sum_assignment(cost.numpy())
    return torch.as_tensor(columns, dtype=torch.long, device=new.device)


class Membership:
    """The outcome of a clustering, image by image.

    Args:
        keys: of the images, N.
        experts: (N,) of int64, their experts.
    """

    def __init__(self, keys: Sequence[str] = (), experts: Tensor | None = None) -> None:
        self._keys = list(keys)
        self._values = torch.zeros(0, dtype=torch.long) if experts is None else experts.cpu()
        self._experts = dict(zip(self._keys, self._values.tolist(), strict=True))

    @property
    def keys(self) -> list[str]:
        """Of the images."""
        return list(self._keys)

    def of(self, keys: Sequence[str]) -> Tensor | None:
        """Experts (N,) of int64, −1 for images that were not there; None if none was."""
        if keys == self._keys:  # all images again, as before each clustering
            return self._values if self._keys else None
        found = [self._experts.get(key, -1) for key in keys]  # (N,)
        return torch.tensor(found) if any(expert >= 0 for expert in found) else None

    def agreement(self, keys: Sequence[str], experts: Tensor) -> float:
        """How much another clustering agrees with this one, whatever the experts' numbers.

        Returns:
            The adjusted Rand index over images that are in both: 1 for the same clusters, about 0
            for unrelated ones. 0 if there are none.
        """
        from sklearn.metrics import adjusted_rand_score

        before = self.of(keys)
        if before is None:
            return 0.0
        both = before >= 0
        return float(adjusted_rand_score(before[both].numpy(), experts.cpu()[both].numpy()))

    def renamed(self, names: Mapping[str, str]) -> Membership:
        """The same with other keys, by present key; images without one are left out."""
        kept = {names[key]: value for key, value in self._experts.items() if key in names}
        return Membership(list(kept), torch.tensor(list(kept.values()), dtype=torch.long))

    def state_dict(self) -> dict[str, Any]:
        """Keys, and their experts as a tensor."""
        return {"keys": list(self._experts), "experts": torch.tensor(list(self._experts.values()))}

    @classmethod
    def from_state(cls, state: dict[str, Any] | None) -> Membership:
        """What :meth:`state_dict` gave; None, as in earlier checkpoints, is empty."""
        return cls() if state is None else cls(state["keys"], state["experts"].long())


def gate_weights(rows: Tensor, scaling: str) -> Tensor | None:
    """What each gate is multiplied by before distances are taken.

    K-means follows the directions of largest variance. In A(x) those can be a few gates that open
    and close fully, while others that tell subsets apart move less. "std" divides each by its
    spread, 1 / (standard deviation + 0.1), and scales all alike so that the total variance stays
    what it was. The papers do not do this; what it changed is in docs/results/controlled_study.md.

    Args:
        rows: activations (N, D).
        scaling: "none" or "std".

    Returns:
        Positive weights (D,) in the dtype of ``rows``; None for "none".
    """
    if scaling == "none":
        return None
    variance = rows.double().var(0, unbiased=False)  # (D,)
    weights = 1 / (variance.sqrt() + _SPREAD_FLOOR)
    spread = (variance * weights.square()).sum()
    if spread > 0:
        weights = weights * (variance.sum() / spread).sqrt()
    return weights.to(rows)


def check_scaling(scaling: str) -> None:
    """Raises ConfigError for an unknown scaling."""
    if scaling not in SCALINGS:
        raise ConfigError(
            f"MODEL.ROUTING.CLUSTERING.SCALING must be one of {', '.join(SCALINGS)}, "
            f"not {scaling!r}"
        )


def weighted(x: Tensor, weights: Tensor | None) -> Tensor:
    """``x`` (…, D) times the weights, or as it is."""
    return x if weights is None else x * weights.to(x.device)
