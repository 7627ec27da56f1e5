"""Which experts run for a sample, and with which weights: the best, the top K, those above τ, none.

None run where the answer of a first network is good enough. Collaboration of Experts, Section 3.1,
decides by that network's confidence; "Revisiting single-gated Mixtures of Experts", Eq. 2 and 3, by
confidence and gate together, with one threshold.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from ..settings import MixtureSettings
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


def confidence(logits: Tensor) -> Tensor:
    """(N,) the largest probability; for maps (N, C, H, W) its mean over the positions."""
    largest = logits.float().softmax(1).amax(1)
    return largest.flatten(1).mean(1) if largest.dim() > 1 else largest


def confident(logits: Tensor, threshold: float) -> Tensor:
    """(N,) bool: the confidence is above τ; 1 never is, 0 always."""
    return confidence(logits) > threshold


def delegated(logits: Tensor, expert: Tensor, experts: int, threshold: float) -> Tensor:
    """(N, E) bool, the one expert for each sample of whose answer the first network is not sure.

    Collaboration of Experts, Section 3.1.

    Args:
        logits: (N, C) of the first network.
        expert: (N,) int64, the expert that is chosen where one runs.
        experts: E.
        threshold: τ; 1 sends all samples on, 0 none.
    """
    return one_hot_choice(expert.masked_fill(confident(logits, threshold), -1), experts)


def anytime(gate: Tensor, confidence: Tensor, threshold: float) -> Choice:
    """The experts whose α is at least τ; none where all are below (Eq. 2 and 3).

    α_k = g(k|x) · (1 − max_y φ(y|x)). At τ = 0 all experts run, at τ = 1 none. The paper's sum of
    the chosen experts' answers is not normalised, which leaves the best class as it is; here the
    weights sum to 1, so that scores are probabilities.

    Args:
        gate: (N, K) probabilities g.
        confidence: (N,) of the first network.
        threshold: τ.
    """
    chosen = gate * (1 - confidence)[:, None] >= threshold
    kept = gate * chosen
    return Choice(chosen, kept / kept.sum(1, keepdim=True).clamp_min(1e-12))


def choose_by(
    settings: MixtureSettings, gate: Tensor, confidence: Tensor, threshold: float
) -> Choice:
    """Experts by gate (N, K), the base's confidence (N,) and τ (Section 3.3)."""
    if settings.exit == "anytime":
        return anytime(gate, confidence, threshold)
    choice = top_k(gate, 2) if settings.ensembler == "top2" else best(gate)
    weights = choice.chosen.float() if choice.weights is None else choice.weights
    if settings.exit == "confidence":
        doubted = (confidence <= threshold)[:, None]
        return Choice(choice.chosen & doubted, weights * doubted)
    return Choice(choice.chosen, weights)
