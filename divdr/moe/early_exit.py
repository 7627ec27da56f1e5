"""Where the answer of a first network is good enough, so that no expert has to run.

Collaboration of Experts, Section 3.1: by the first network's confidence alone. "Revisiting
single-gated Mixtures of Experts", Eq. 2 and 3: by confidence and gate together, with one threshold.
"""

from __future__ import annotations

from torch import Tensor

from ..settings import MixtureSettings
from .choice import Choice, best, one_hot_choice, top_k


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
