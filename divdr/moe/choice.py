"""Which experts run for a sample, and with which weights: the best, the top K, all above τ."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from .system import check_probability


class Choice(NamedTuple):
    """For N samples and E experts.

    Attributes:
        chosen: (N, E) bool, the experts that run.
        weights: (N, E) by which their outputs are summed, 0 where one does not run; None: every
            output counts as it is.
    """

    chosen: Tensor
    weights: Tensor | None = None


def best(scores: Tensor) -> Choice:
    """The one expert with the highest score (N, E)."""
    return Choice(one_hot_choice(scores.argmax(1), scores.shape[1]))


def top_k(probabilities: Tensor, k: int) -> Choice:
    """The K most probable experts, weighted by their probabilities, which then sum to 1.

    Args:
        probabilities: (N, E).
        k: K.

    Raises:
        ConfigError: K is not within 1 and E.
    """
    check_selection(k, 0.0, probabilities.shape[1])
    index = probabilities.topk(k, dim=1).indices
    chosen = torch.zeros_like(probabilities, dtype=torch.bool).scatter(1, index, True)
    kept = probabilities * chosen
    return Choice(chosen, kept / kept.sum(1, keepdim=True))


def above(probabilities: Tensor, k: int, threshold: float) -> Choice:
    """The K most probable, without those below τ (DynK-Hydra, Algorithm 1).

    Eq. 6 as printed compares the projection with τ; Algorithm 1 and the text compare the gater's
    probability, as is done here. The most probable expert always runs: with τ above its
    probability nothing would, and there would be no prediction.

    Args:
        probabilities: (N, E), the gater's softmax.
        k: K.
        threshold: τ; 0 is the fixed K of HydraRes.

    Raises:
        ConfigError: see :func:`check_selection`.
    """
    check_selection(k, threshold, probabilities.shape[1])
    values, index = probabilities.detach().topk(k, dim=1)
    keep = values >= threshold
    keep[:, 0] = True
    return Choice(torch.zeros_like(probabilities, dtype=torch.bool).scatter(1, index, keep))


def one_hot_choice(expert: Tensor, experts: int) -> Tensor:
    """(N, experts) bool from the number (N,) of each sample's expert; -1 chooses none."""
    return expert[:, None] == torch.arange(experts, device=expert.device)


def check_selection(k: int, threshold: float, experts: int) -> None:
    """See that K and τ suit the number of experts.

    Raises:
        ConfigError: K is not within 1 and E, or τ not within 0 and 1.
    """
    if not 1 <= k <= experts:
        raise ConfigError(f"TOP_K must be between 1 and the {experts} branches, not {k}")
    check_probability(threshold, "the gater's threshold τ")
