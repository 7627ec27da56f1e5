"""The local experts of a model: centres of its gate activations, kept up to date."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import CheckpointError, ConfigError, DivdrError
from ..routing import several_processes
from ..settings import ClusteringSettings, KMeansSettings
from .bank import ActivationBank
from .clustering_loss import cluster_variance, clustering_loss
from .diversity import ClusteringReport, diversity
from .kmeans import KMeansResult, nearest_centre
from .known_labels import KnownLabels
from .partition import (
    Membership,
    check_partition,
    check_scaling,
    gate_weights,
    match_centres,
    partition_points,
    weighted,
)

# The mixture goes on from the clusters before, but looks at all its starts once more where they
# changed a lot (adjusted Rand index) and at every so many clusterings.
_STEADY = 0.9
_SEARCH_EVERY = 10


class LocalExperts:
    """K prototypical sub-networks, found by clustering gate activations (DivDR, section 3.2).

    Attributes:
        bank: latest activation of every training image, (M, D).
        centres: (K, D) in float32, or None before the first clustering.
        sigma2: σ² of Eq. 2, a tensor without dimensions, or None.
        weights: (D,) what gates are multiplied by before distances are taken, or None; centres
            are kept without them.
        members: which expert each image of the bank belonged to at the last clustering.
    """

    def __init__(
        self,
        num_experts: int,
        dim: int,
        *,
        restarts: int = KMeansSettings.restarts,
        warm_start: bool = KMeansSettings.warm_start,
        backend: str = KMeansSettings.backend,
        seed: int = 0,
        sigma2_floor: float = ClusteringSettings.sigma2_floor,
        labels: KnownLabels | None = None,
        scaling: str = ClusteringSettings.scaling,
        partition: str = ClusteringSettings.partition,
        stability: float = ClusteringSettings.stability,
        bank_iterations: int = 0,
    ) -> None:
        """Set up experts without centres.

        Args:
            num_experts: K.
            dim: length D of an activation.
            restarts: K-means restarts of a clustering that has no centres to start from.
            warm_start: whether K-means goes on from the centres before, once settled. The mixture
                does in any case, but for every tenth clustering and where clusters changed a lot:
                then it is one start among others.
            backend: K-means implementation, "torch" or "sklearn".
            seed: combined with the step of each clustering.
            sigma2_floor: least σ².
            labels: the true subset of every image, in place of K-means: expert k is the mean
                activation of subset k, and images belong to their subset's, not the nearest.
            scaling: "none", or "std" for distances in which each gate counts by its spread; see
                `gate_weights`.
            partition: "kmeans", or "mixture" for subsets of unequal size; see `gaussian_mixture`.
            stability: the loss waits until two clusterings in succession agree by at least this
                much (adjusted Rand index, 1 for the same clusters); 0 does not wait.
            bank_iterations: rows that are older, in steps, are forgotten before each clustering;
                0 keeps all.

        Raises:
            ConfigError: num_experts < 1, bank_iterations < 0, stability is above 1, or the backend,
                scaling or partition is unknown.
        """
        if num_experts < 1:
            raise ConfigError(f"The number of local experts must be 1 or more, got {num_experts}.")
        check_scaling(scaling)
        check_partition(partition, backend)
        if not 0 <= stability <= 1:
            raise ConfigError(
                f"MODEL.ROUTING.CLUSTERING.STABILITY must be between 0 and 1, not {stability}"
            )
        if bank_iterations < 0:
            raise ConfigError(f"Rows cannot be kept for {bank_iterations} iterations.")
        self.num_experts = num_experts
        self.dim = dim
        self.bank_iterations = bank_iterations
        self.restarts = restarts
        self.warm_start = warm_start
        self.backend = backend
        self.seed = seed
        self.sigma2_floor = sigma2_floor
        self.labels = labels
        self.scaling = scaling
        self.partition = partition
        self.stability = stability
        self.bank = ActivationBank(dim)
        self.centres: Tensor | None = None
        self.sigma2: Tensor | None = None
        self.weights: Tensor | None = None
        self.members = Membership()
        self._agreed = False
        self._agreement = 0.0  # of the last clustering with the one before
        self._since_search = 0

    @property
    def ready(self) -> bool:
        """Whether there are centres."""
        return self.centres is not None

    @property
    def settled(self) -> bool:
        """Whether clusterings agreed, or need not, so that the loss may act."""
        return self.stability == 0 or self.labels is not None or self._agreed

    @property
    def needs_keys(self) -> bool:
        """Whether the loss asks which images it is of."""
        return self.labels is not None or self.partition == "mixture"

    # Nothing that is kept may be a tensor of inference mode: training could not use it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def cluster(self, step: int) -> ClusteringReport | None:
        """Cluster the bank and take over the new centres; a collective call.

        Experts keep their ids: new centres are matched to the old ones. Known subsets are not
        clustered but averaged, and keep their numbers. Rank 0 clusters, the others wait for its
        centres, σ² and report.

        Args:
            step: training step; it enters the seed.

        Returns:
            What was found, or None (and nothing changes) while the bank has fewer rows than K, or
            none of a known subset.

        Raises:
            DivdrError: an image is of no known subset; on all ranks.
        """
        self.bank.synchronise()
        if self.bank_iterations:
            self.bank.forget_before(step - self.bank_iterations + 1)
        if len(self.bank) < self.num_experts:
            return None
        found = _from_rank_0(lambda: self._found(step))
        if found is None:
            return None
        centres, sigma2, weights, assignment, searched, report = found
        self.centres = centres.to(self.bank.device)
        self.sigma2 = sigma2.to(self.bank.device)
        self.weights = None if weights is None else weights.to(self.bank.device)
        self.members = Membership(self.bank.keys, assignment)
        self._agreement = report.agreement
        self._since_search = 0 if searched else self._since_search + 1
        self._agreed = self._agreed or report.agreement >= self.stability
        return report

    def _found(self, step: int) -> _Found | None:
        start = time.perf_counter()
        rows = self.bank.rows  # (M, D)
        old = self.centres  # (K, D)
        weights = gate_weights(rows, self.scaling)  # (D,)
        points = weighted(rows, weights)  # (M, D), where distances are taken
        search = self._agreement < _STEADY or self._since_search + 1 >= _SEARCH_EVERY
        result = self._partition(points, weights, step, search)
        if result is None:
            return None
        centres, assignment = result.centres, result.assignment  # (K, D), (M,)
        if weights is not None:
            centres = centres / weights  # kept as gates, which the next scaling weights anew
        movement = 0.0
        if old is not None:
            if self.labels is None:
                order = match_centres(old, centres)  # (K,)
                centres = centres[order]
                # The inverse permutation turns a cluster's number into its expert's id.
                assignment = order.argsort()[assignment]
            movement = float((centres - old.to(centres)).norm(dim=1).mean())
        agreement = self.members.agreement(self.bank.keys, assignment)
        # σ² is of the loss's distances, diversity of the gates themselves.
        sigma2 = cluster_variance(points, weighted(centres, weights), assignment, self.sigma2_floor)
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
            agreement=agreement,
        )
        weights = None if weights is None else weights.cpu()
        return centres.cpu(), sigma2.cpu(), weights, assignment.cpu(), search, report

    def _partition(
        self, points: Tensor, weights: Tensor | None, step: int, search: bool
    ) -> KMeansResult | None:
        if self.labels is not None:
            return self.labels.cluster(self.bank.keys, points, self.num_experts)
        old = self.centres if self.warm_start and self.settled else None
        mixture = self.partition == "mixture"
        return partition_points(
            points,
            self.num_experts,
            partition=self.partition,
            restarts=self.restarts,
            backend=self.backend,
            seed=self.seed * 1_000_003 + step,
            centres=None if old is None else weighted(old, weights),
            labels=self.members.of(self.bank.keys) if mixture else None,
            search=search,
        )

    def loss(
        self,
        activations: Tensor,
        margin: float = ClusteringSettings.margin,
        squared: bool = ClusteringSettings.squared,
        keys: Sequence[str] = (),
    ) -> Tensor:
        """Clustering loss (N,) of Eq. 2; see `clustering_loss`.

        Until clusterings have settled it is zero, but part of the graph.

        Args:
            activations: (N, D).
            margin: α.
            squared: whether distances are squared.
            keys: the images' keys. Known subsets need them, and so does the mixture, in which an
                image belongs to the expert that its activation had at the last clustering: the
                nearest centre is that of a small cluster for many images of a wide one.
        """
        if self.centres is None or self.sigma2 is None or not self.settled:
            dtype = torch.promote_types(activations.dtype, torch.float32)
            # An empty sum, and not a product with 0, which would keep a NaN.
            return activations[:, :0].to(dtype).sum(1)
        points = weighted(activations, self.weights)  # (N, D)
        centres = weighted(self.centres, self.weights)  # (K, D)
        own: Tensor | None = None  # (N,) where the expert is known, else the nearest
        if self.labels is not None:
            own = self.labels.of(keys, self.num_experts)
        elif self.partition == "mixture":
            own = self.members.of(keys)
            if own is not None:
                own = own.to(points.device)
                # Images that the last clustering did not see go to the nearest.
                own = torch.where(own < 0, nearest_centre(points.detach(), centres)[0], own)
        return clustering_loss(
            points, centres, self.sigma2, margin=margin, squared=squared, assignment=own
        )

    def assign(self, activations: Tensor) -> Tensor:
        """Ids (N,) of the nearest experts; DivdrError before the first clustering."""
        if self.centres is None:
            raise DivdrError("There are no local experts yet: cluster some activations first.")
        centres = weighted(self.centres.to(activations.device), self.weights)
        return nearest_centre(weighted(activations, self.weights), centres)[0]

    @torch.inference_mode(False)
    def to(self, device: torch.device | str) -> LocalExperts:
        """Move bank, centres, σ² and weights to a device; returns the experts themselves."""
        self.bank.to(device)
        self.weights = None if self.weights is None else self.weights.to(device)
        if self.centres is not None and self.sigma2 is not None:
            self.centres, self.sigma2 = self.centres.to(device), self.sigma2.to(device)
        return self

    def move_centres(self, centres: Tensor) -> None:
        """Put the experts elsewhere, where all activations have moved and not by learning.

        Args:
            centres: (K, D) new ones, in the order of the experts.
        """
        if centres.shape != (self.num_experts, self.dim):
            raise ValueError(f"centres {tuple(centres.shape)} of other experts or activations")
        self.centres = centres.to(self.bank.device, copy=True)

    def rename(self, names: Mapping[str, str]) -> None:
        """Give images other keys, and forget those without one.

        Args:
            names: new key by present key.
        """
        self.bank.rename(names)
        self.members = self.members.renamed(names)

    def state_dict(self, bank: bool = True) -> dict[str, Any]:
        """Everything to resume from, as tensors on the CPU, lists, strings, numbers and None.

        Args:
            bank: with activations and memberships of the images. Without, experts stay what they
                are, and the next clustering is of images seen since.
        """
        return {
            "num_experts": self.num_experts,
            "dim": self.dim,
            "centres": None if self.centres is None else self.centres.cpu().clone(),
            "sigma2": None if self.sigma2 is None else self.sigma2.cpu().clone(),
            "weights": None if self.weights is None else self.weights.cpu().clone(),
            "bank": self.bank.state_dict() if bank else None,
            "members": self.members.state_dict() if bank else None,
            "agreed": self._agreed,
            "agreement": self._agreement,
            "since_search": self._since_search,
        }

    @torch.inference_mode(False)
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
        if state["bank"] is None:
            self.bank.clear()
        else:
            self.bank.load_state_dict(state["bank"])
        device = self.bank.device
        centres, sigma2 = state["centres"], state["sigma2"]
        self.centres = None if centres is None else centres.to(device, copy=True)
        self.sigma2 = None if sigma2 is None else sigma2.to(device, copy=True)
        weights = state.get("weights")  # earlier checkpoints know no scaling
        self.weights = None if weights is None else weights.to(device, copy=True)
        self.members = Membership.from_state(state.get("members"))
        self._agreed = bool(state.get("agreed", False))
        self._agreement = float(state.get("agreement", 0.0))
        self._since_search = int(state.get("since_search", 0))


# Centres (K, D), σ², weights (D,), assignment (M,), whether the mixture tried all its starts, and
# the report: on the CPU, as they travel to the other processes.
_Found = tuple[Tensor, Tensor, Tensor | None, Tensor, bool, ClusteringReport]


def _from_rank_0(find: Callable[[], _Found | None]) -> _Found | None:
    """What rank 0 finds, on all ranks; an error there ends all of them."""
    if not several_processes():
        return find()
    box: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            box = [find()]
        except Exception as error:
            box = [error if isinstance(error, DivdrError) else DivdrError(f"clustering: {error}")]
            dist.broadcast_object_list(box, src=0)
            raise
    dist.broadcast_object_list(box, src=0)
    if isinstance(box[0], Exception):
        raise box[0]
    return box[0]
