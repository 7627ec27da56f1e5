"""Choosing experts by gates, and running the chosen ones alone: gather, run, scatter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ConfigError


class Group(NamedTuple):
    """An expert's samples and what it made of them.

    Attributes:
        expert: its number.
        rows: (R,) int64, places of the samples in the batch, ascending.
        output: (R, ...), the expert's output for them.
    """

    expert: int
    rows: Tensor
    output: Tensor


Dispatch = Callable[[Iterable[nn.Module], Tensor, Tensor], Iterator[Group]]
"""Runs experts on a batch as (N, E) says: :func:`run_groups`, or :func:`run_all` beside it."""


def run_groups(experts: Iterable[nn.Module], x: Tensor, chosen: Tensor) -> Iterator[Group]:
    """Run every expert once, on the samples that chose it; one that nobody chose does not run.

    Args:
        experts: E modules.
        x: (N, ...) the batch.
        chosen: (N, E) bool; a sample can choose several experts, or none.

    Yields:
        The groups that are not empty, in the order of the experts.
    """
    for number, expert in enumerate(experts):
        rows = chosen[:, number].nonzero()[:, 0]
        if len(rows):
            # The whole batch needs no copy.
            yield Group(number, rows, expert(x if len(rows) == len(x) else x[rows]))


def run_all(experts: Iterable[nn.Module], x: Tensor, chosen: Tensor) -> Iterator[Group]:
    """What :func:`run_groups` yields, after every expert has run on the whole batch.

    This is what dispatch by groups is compared with.
    """
    for number, expert in enumerate(experts):
        output = expert(x)
        rows = chosen[:, number].nonzero()[:, 0]
        if len(rows):
            yield Group(number, rows, output[rows])


def scatter_sum(groups: Sequence[Group], count: int, weights: Tensor | None = None) -> Tensor:
    """(count, ...) sum, for every sample, of the outputs of the experts that it chose.

    Samples without an expert get zeros. Gradients reach every output, and the weights.

    Args:
        groups: at least one.
        count: N, size of the batch.
        weights: (N, E) by which outputs are multiplied; the sum has their precision where it is
            the higher one. None: all are 1.
    """
    first = _weighted(groups[0], weights)
    total = first.new_zeros((count, *first.shape[1:]))
    for number, group in enumerate(groups):
        output = _weighted(group, weights) if number else first
        total = total.index_add(0, group.rows, output)
    return total


def _weighted(group: Group, weights: Tensor | None) -> Tensor:
    if weights is None:
        return group.output
    own = weights[group.rows, group.expert]
    return group.output * own.reshape(-1, *[1] * (group.output.dim() - 1))


def restrict(groups: Sequence[Group], wanted: Tensor) -> list[Group]:
    """Those rows of the groups for which ``wanted`` (N, E) holds.

    Groups without any are left out, so that not even a zero gradient reaches their experts.
    """
    parts = []
    for group in groups:
        keep = wanted[group.rows, group.expert]
        if bool(keep.any()):
            parts.append(Group(group.expert, group.rows[keep], group.output[keep]))
    return parts


def one_hot_choice(expert: Tensor, experts: int) -> Tensor:
    """(N, experts) bool from the number (N,) of each sample's expert; -1 chooses none."""
    return expert[:, None] == torch.arange(experts, device=expert.device)


class Gater(nn.Module):
    """A trunk, global average pooling and a linear layer of one neuron an expert.

    Args:
        trunk: maps to maps; ``nn.Identity()`` for a gate that looks at the stem's.
        channels: of the trunk's maps.
        experts: number of experts.
    """

    def __init__(self, trunk: nn.Module, channels: int, experts: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.predict = nn.Linear(channels, experts)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) to logits (N, experts)."""
        return self.predict(self.trunk(maps).mean(dim=(2, 3)))


def select(probabilities: Tensor, top_k: int, threshold: float = 0.0) -> Tensor:
    """Experts that run: the K most probable, without those below τ (DynK-Hydra, Algorithm 1).

    Eq. 6 as printed compares the projection with τ; Algorithm 1 and the text compare the gater's
    probability, as is done here. The most probable expert always runs: with τ above its
    probability nothing would, and there would be no prediction.

    Args:
        probabilities: (N, E), the gater's softmax.
        top_k: K.
        threshold: τ; 0 is the fixed K of HydraRes.

    Returns:
        (N, E) bool.

    Raises:
        ConfigError: see :func:`check_selection`.
    """
    check_selection(top_k, threshold, probabilities.shape[1])
    values, index = probabilities.detach().topk(top_k, dim=1)
    keep = values >= threshold
    keep[:, 0] = True
    return torch.zeros_like(probabilities, dtype=torch.bool).scatter(1, index, keep)


def check_selection(top_k: int, threshold: float, experts: int) -> None:
    """See that K and τ suit the number of experts.

    Raises:
        ConfigError: K is not within 1 and E, or τ not within 0 and 1.
    """
    if not 1 <= top_k <= experts:
        raise ConfigError(f"TOP_K must be between 1 and the {experts} branches, not {top_k}")
    if not 0.0 <= threshold <= 1.0:
        raise ConfigError(f"the gater's threshold τ must be between 0 and 1, not {threshold}")
