"""The gate of a single-gated mixture: clusters of samples, and a linear layer that learns them.

"Revisiting single-gated Mixtures of Experts", Section 3. Shapes: N samples, D numbers of an
embedding, K experts, C classes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..experts import kmeans
from ..routing import HostFact, no_negative
from .class_partition import cluster_partition
from .embedding import common_divisors, process_count
from .soft_targets import divergence


class SampleGate(nn.Module):
    """A linear layer on embeddings, taught by a soft partition of the training samples.

    The initial gate is g₀(k|x) = softmax over the centres of −‖z − c_k‖² / T, which the paper
    leaves at "a similarity"; T is the mean over the training samples of the squared distance to
    the nearest centre. Instead of samples, whole classes can be given to experts (the paper's
    comparison): g₀ then says 1 for the expert of the sample's class.

    Args:
        width: D.
        experts: K.
        num_classes: C; 0 where classes are never given to experts.
        similarity: "euclidean", or "cosine", which looks at z / ‖z‖.

    Attributes:
        centres: (K, D).
        temperature: T.
        owners: (C,) int64 expert of each class; -1 where samples are clustered.
        fitted: whether a partition was made or loaded.
    """

    centres: Tensor
    temperature: Tensor
    owners: Tensor
    fitted: Tensor

    def __init__(
        self, width: int, experts: int, num_classes: int = 0, similarity: str = "euclidean"
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(width, experts)
        self.similarity = similarity
        self.register_buffer("centres", torch.zeros(experts, width))
        self.register_buffer("temperature", torch.tensor(1.0))
        self.register_buffer("owners", torch.full((num_classes,), -1, dtype=torch.int64))
        self.register_buffer("fitted", torch.tensor(False))
        self._fitted, self._of_classes = HostFact(bool), HostFact(no_negative)

    @property
    def is_fitted(self) -> bool:
        """Whether there are clusters."""
        return self._fitted.of(self.fitted)

    def forward(self, z: Tensor) -> Tensor:
        """(N, D) to logits (N, K)."""
        return self.linear(z)

    @torch.no_grad()
    def fit_samples(self, z: Tensor, *, seed: int = 0) -> None:
        """Cluster the embeddings (M, D) of the training samples by K-means.

        Raises:
            ConfigError: there are fewer samples than experts.
        """
        experts = len(self.centres)
        if len(z) < experts:
            raise ConfigError(f"{experts} experts cannot share {len(z)} samples")
        z = self._seen(z.float())
        found = kmeans(z, experts, seed=seed)
        nearest = torch.cdist(z, found.centres.to(z)).amin(1).square().mean()
        self.centres.copy_(found.centres)
        # All samples may lie on their centres.
        self.temperature.copy_(nearest.clamp_min(torch.finfo(nearest.dtype).tiny))
        self.fitted.fill_(True)

    @torch.no_grad()
    def fit_classes(self, means: Tensor, *, seed: int = 0) -> None:
        """Cluster the mean embeddings (C, D) of the classes: each belongs to one expert.

        Raises:
            ConfigError: there are fewer classes than experts.
        """
        self.owners.copy_(cluster_partition(means, len(self.centres), seed=seed))
        self.fitted.fill_(True)

    @torch.no_grad()
    def initial(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, K) float32, g₀ of samples (N, D) of classes (N,).

        Raises:
            ConfigError: there is no partition yet, or it is of classes and these are not given.
        """
        if not self.is_fitted:
            raise ConfigError("the gate has no clusters yet: call fit_samples or fit_classes first")
        if len(self.owners) and self._of_classes.of(self.owners):
            if labels is None:
                raise ConfigError("the experts are for classes: g₀ needs the samples' classes")
            return F.one_hot(self.owners[labels], len(self.centres)).float()
        squares = torch.cdist(self._seen(z.float()), self.centres).square()
        # From the nearest centre on, as T may be next to 0 where all samples lie at a centre.
        beyond = squares - squares.amin(1, keepdim=True)
        return (-beyond / self.temperature).softmax(1)

    def loss(self, z: Tensor, targets: Tensor) -> Tensor:
        """Mean of KL(targets ‖ g) over the samples; ``targets`` (N, K)."""
        return divergence(targets, self(z)).mean()

    def _seen(self, z: Tensor) -> Tensor:
        return F.normalize(z, dim=1) if self.similarity == "cosine" else z


def smoothed(gate: Tensor, floor: float) -> Tensor:
    """Γ(g) = clip(g, γ, 1), the weight of each sample (N, K) for each expert.

    With γ above 0 every expert sees every sample a little.
    """
    return gate.clamp(floor, 1.0)


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Σ w · loss / Σ w over the samples (N,) of all processes together; a collective call.

    DDP takes the mean of the processes' gradients, with which this gives what one process with all
    samples would learn.
    """
    total = common_divisors(weights.detach().sum()[None])[0]
    return (weights * losses).sum() / total.clamp_min(1e-12)


class Reservoir:
    """A sample of all rows that ever came, each with the same chance, of at most so many.

    Args:
        size: rows that are kept.
        seed: of chance.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self._generator = torch.Generator().manual_seed(seed)
        self._keys = torch.zeros(0)
        self._rows: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Offer rows (R, D); they are kept on the host in float32."""
        rows = rows.detach().float().cpu()
        # Who has the smallest of as many random numbers as there are rows stays.
        keys = torch.cat([self._keys, torch.rand(len(rows), generator=self._generator)])
        rows = rows if self._rows is None else torch.cat([self._rows, rows])
        kept = keys.topk(min(self.size, len(keys)), largest=False).indices
        self._keys, self._rows = keys[kept], rows[kept]

    def rows(self, like: Tensor) -> Tensor:
        """(M, D) what is kept, where and as ``like`` (…, D) is."""
        return like.new_zeros((0, like.shape[-1])) if self._rows is None else self._rows.to(like)


def some_of(z: Tensor, count: int, seed: int) -> Tensor:
    """So many of the embeddings, by chance; 0: all."""
    if not 0 < count < len(z):
        return z
    generator = torch.Generator().manual_seed(seed)
    return z[torch.randperm(len(z), generator=generator)[:count]]


def as_first_process(gate: SampleGate) -> None:
    """Take the first process's clusters: rounding on a GPU may differ from one to the next."""
    if process_count() > 1:
        for value in gate.buffers():
            dist.broadcast(value, 0)
