"""Giving every gate a say in the clustering, whatever its spread."""

from __future__ import annotations

from torch import Tensor

from divdr.errors import ConfigError

SCALINGS = ("none", "std")

# Gates whose spread is far below this are noise, and are not blown up to the size of the others.
_FLOOR = 0.1


def gate_weights(rows: Tensor, scaling: str) -> Tensor | None:
    """What each gate is multiplied by before distances are taken.

    K-means follows the directions of largest variance. In A(x) those can be a few gates that open
    and close fully, while others that tell subsets apart move less. "std" divides each by its
    spread, 1 / (standard deviation + 0.1), and scales all alike so that the total variance stays
    what it was. The papers do not do this; what it changed is in docs/controlled_study.md.

    Args:
        rows: activations (N, D).
        scaling: "none" or "std".

    Returns:
        Positive weights (D,) in the dtype of ``rows``; None for "none".
    """
    if scaling == "none":
        return None
    variance = rows.double().var(0, unbiased=False)
    weights = 1 / (variance.sqrt() + _FLOOR)
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
