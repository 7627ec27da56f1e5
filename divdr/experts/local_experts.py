"""The local experts of a model: centres of its gate activations, kept up to date."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from divdr.errors import CheckpointError, ConfigError, DivdrError
from divdr.experts.assignment import nearest_centre
from divdr.experts.bank import ActivationBank
from divdr.experts.clustering_loss import cluster_variance, clustering_loss
from divdr.experts.diversity import diversity
from divdr.experts.kmeans import KMeansResult, kmeans
from divdr.experts.known_labels import KnownLabels
from divdr.experts.matching import match_centres


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
    """

    inter: float
    intra_pairs: float
    intra_centre: float
    sigma2: float
    sizes: list[int]
    movement: float
    inertia: float
    seconds: float


class LocalExperts:
    """K prototypical sub-networks, found by clustering gate activations (DivDR, section 3.2).

    Attributes:
        bank: latest activation of every training image, D numbers each.
        centres: (K, D) in float32, or None before the first clustering.
        sigma2: σ² of Eq. 2, a tensor without dimensions, or None.
    """

    def __init__(
        self,
        num_experts: int,
        dim: int,
        *,
        restarts: int = 10,
        warm_start: bool = False,
        backend: str = "torch",
        seed: int = 0,
        sigma2_floor: float = 1e-4,
        labels: KnownLabels | None = None,
    ) -> None:
        """Set up experts without centres.

        Args:
            num_experts: K.
            dim: length D of an activation.
            restarts: K-means restarts of a clustering that has no centres to start from.
            warm_start: whether later clusterings start from the current centres.
            backend: K-means implementation, "torch" or "sklearn".
            seed: combined with the step of each clustering.
            sigma2_floor: least σ².
            labels: the true subset of every image, in place of K-means: expert k is the mean
                activation of subset k, and images belong to their subset's, not the nearest.

        Raises:
            ConfigError: num_experts < 1, or the backend is unknown.
        """
        if num_experts < 1:
            raise ConfigError(f"The number of local experts must be 1 or more, got {num_experts}.")
        if backend not in ("torch", "sklearn"):
            raise ConfigError(f"Unknown K-means backend {backend!r}; choose 'torch' or 'sklearn'.")
        self.num_experts = num_experts
        self.dim = dim
        self.restarts = restarts
        self.warm_start = warm_start
        self.backend = backend
        self.seed = seed
        self.sigma2_floor = sigma2_floor
        self.labels = labels
        self.bank = ActivationBank(dim)
        self.centres: Tensor | None = None
        self.sigma2: Tensor | None = None

    @property
    def ready(self) -> bool:
        """Whether there are centres."""
        return self.centres is not None

    @torch.no_grad()
    def cluster(self, step: int) -> ClusteringReport | None:
        """Cluster the bank and take over the new centres; a collective call.

        Experts keep their ids: new centres are matched to the old ones. Known subsets are not
        clustered but averaged, and keep their numbers. All ranks end with the
        centres, σ² and report of rank 0.

        Args:
            step: training step; it enters the seed.

        Returns:
            What was found, or None (and nothing changes) while the bank has fewer rows than K, or
            none of a known subset.

        Raises:
            ValueError: the bank holds a value that is not finite.
            DivdrError: an image is of no known subset.
        """
        self.bank.synchronise()
        if len(self.bank) < self.num_experts:
            return None
        start = time.perf_counter()
        rows = self.bank.rows
        old = self.centres
        result = self._partition(rows, step) if self.labels is None else self._known(rows)
        if result is None:
            return None
        centres, assignment = result.centres, result.assignment
        movement = 0.0
        if old is not None:
            if self.labels is None:
                order = match_centres(old, centres)
                centres = centres[order]
                # The inverse permutation turns a cluster's number into its expert's id.
                assignment = order.argsort()[assignment]
            movement = float((centres - old.to(centres)).norm(dim=1).mean())
        sigma2 = cluster_variance(rows, centres, assignment, self.sigma2_floor)
        spread = diversity(rows, centres, assignment)
        report = ClusteringReport(
            inter=spread.inter,
            intra_pairs=spread.intra_pairs,
            intra_centre=spread.intra_centre,
            sigma2=float(sigma2),
            sizes=spread.sizes,
            movement=movement,
            inertia=result.inertia,
            seconds=time.perf_counter() - start,
        )
        # Devices may differ in the last bit, and experts must not.
        centres, sigma2, report = _from_rank_0((centres.cpu(), sigma2.cpu(), report))
        self.centres = centres.to(self.bank.device)
        self.sigma2 = sigma2.to(self.bank.device)
        return report

    def _partition(self, rows: Tensor, step: int) -> KMeansResult:
        return kmeans(
            rows,
            self.num_experts,
            restarts=self.restarts,
            init=self.centres if self.warm_start else None,
            seed=self.seed * 1_000_003 + step,
            backend=self.backend,
        )

    def _known(self, rows: Tensor) -> KMeansResult | None:
        assert self.labels is not None
        subset = self.labels.of(self.bank.keys, self.num_experts).to(rows.device)
        counts = torch.bincount(subset, minlength=self.num_experts)
        if bool((counts == 0).any()):
            return None
        sums = torch.zeros(self.num_experts, self.dim, dtype=torch.float64, device=rows.device)
        centres = (sums.index_add(0, subset, rows.double()) / counts[:, None]).to(rows)
        return KMeansResult(centres, subset, float((rows - centres[subset]).square().sum()))

    def loss(
        self,
        activations: Tensor,
        margin: float = 1.0,
        squared: bool = False,
        keys: Sequence[str] = (),
    ) -> Tensor:
        """Clustering loss (N,) of activations (N, D), Eq. 2; see `clustering_loss`.

        Before the first clustering it is zero, but part of the graph. Known subsets need the
        images' keys.
        """
        if self.centres is None or self.sigma2 is None:
            dtype = torch.promote_types(activations.dtype, torch.float32)
            # An empty sum, and not a product with 0, which would keep a NaN.
            return activations[:, :0].to(dtype).sum(1)
        own = None if self.labels is None else self.labels.of(keys, self.num_experts)
        return clustering_loss(
            activations, self.centres, self.sigma2, margin=margin, squared=squared, assignment=own
        )

    def assign(self, activations: Tensor) -> Tensor:
        """Ids (N,) of the nearest experts; DivdrError before the first clustering."""
        if self.centres is None:
            raise DivdrError("There are no local experts yet: cluster some activations first.")
        return nearest_centre(activations, self.centres.to(activations.device))[0]

    def to(self, device: torch.device | str) -> LocalExperts:
        """Move bank, centres and σ² to a device; returns the experts themselves."""
        self.bank.to(device)
        if self.centres is not None and self.sigma2 is not None:
            self.centres, self.sigma2 = self.centres.to(device), self.sigma2.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Everything to resume from, as tensors on the CPU, lists, strings, numbers and None."""
        return {
            "num_experts": self.num_experts,
            "dim": self.dim,
            "centres": None if self.centres is None else self.centres.cpu().clone(),
            "sigma2": None if self.sigma2 is None else self.sigma2.cpu().clone(),
            "bank": self.bank.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state, onto the present device.

        Raises:
            CheckpointError: it is of another number of experts or length of activations.
        """
        if (state["num_experts"], state["dim"]) != (self.num_experts, self.dim):
            raise CheckpointError(
                f"The checkpoint has {state['num_experts']} local experts over activations of "
                f"length {state['dim']}, this model has {self.num_experts} over {self.dim}."
            )
        self.bank.load_state_dict(state["bank"])
        device = self.bank.device
        centres, sigma2 = state["centres"], state["sigma2"]
        self.centres = None if centres is None else centres.to(device, copy=True)
        self.sigma2 = None if sigma2 is None else sigma2.to(device, copy=True)


def _from_rank_0(
    found: tuple[Tensor, Tensor, ClusteringReport],
) -> tuple[Tensor, Tensor, ClusteringReport]:
    if not (dist.is_available() and dist.is_initialized()):
        return found
    box: list[Any] = [found]
    dist.broadcast_object_list(box, src=0)
    return box[0]
