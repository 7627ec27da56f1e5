"""Losses that keep every expert of a routing layer in use: importance and load.

Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer",
Section 4 and appendix A. N samples, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .embedding import add_up, process_count

_EPSILON = 1e-10
# Softplus can be 0 in float32, and a margin over it no number, with no gradient of any loss.
_LEAST_DEVIATION = 1e-4


def squared_variation(values: Tensor) -> Tensor:
    """CV(values)², the variance of (E,) numbers (of all of them, not of a sample) over mean²."""
    return values.var(correction=0) / (values.mean().square() + _EPSILON)


def kth_excluding(noisy: Tensor, k: int) -> Tensor:
    """(N, E) the k-th largest of a row's other numbers: what an entry has to beat to be chosen.

    Args:
        noisy: (N, E) the gate's values H(x).
        k: experts that are chosen, fewer than E.
    """
    values, index = noisy.topk(k + 1, dim=1)
    chosen = torch.zeros_like(noisy, dtype=torch.bool).scatter(1, index[:, :k], True)
    # Without one of the first k, the next moves up.
    return torch.where(chosen, values[:, k:], values[:, k - 1 : k])


def load_probabilities(clean: Tensor, noisy: Tensor, deviation: Tensor, k: int) -> Tensor:
    """(N, E) P(x, i), the probability that expert i would be chosen if its noise were drawn anew.

    The other experts' noise stays as it is (appendix A, Eq. 8 and 9). With k = E every expert runs,
    whatever is drawn: ones, through which no gradient flows.

    Args:
        clean: (N, E) the gate's values without noise.
        noisy: (N, E) those with it, by which experts were chosen.
        deviation: (N, E) the noise's standard deviation.
        k: experts that are chosen.
    """
    if k == noisy.shape[1]:
        return torch.ones_like(noisy)
    margin = (clean - kth_excluding(noisy, k)) / deviation.clamp_min(_LEAST_DEVIATION)
    return torch.special.ndtr(margin)


class BalanceLosses(NamedTuple):
    """Of all routing decisions together, without their weight.

    Attributes:
        importance: sum over the decisions of CV(Σ_x G(x))².
        load: sum over the decisions of CV(Σ_x P(x))².
    """

    importance: Tensor
    load: Tensor


class Balance(nn.Module):
    """Importance and load losses of several routing decisions.

    The papers sum over one batch. Here the sums are over the batches of all processes and of the
    last ``steps`` steps, which is a **departure** for more than one of either: detectors train on a
    few images a process, and a sum over two says nothing of how experts are used. Sums of earlier
    steps and of other processes have no graph, so that the gradient flows through the own rows
    alone. It is multiplied by the number of steps in the sum, and of processes, whose gradients DDP
    averages: a step's gradient is so as large as that of one batch of all these rows, and the
    weight means the same for any ``steps``.

    Checkpoints keep the earlier sums.

    Args:
        experts: E of each decision.
        steps: M; 1 is the present step alone.

    Raises:
        ConfigError: ``steps`` is below 1.
    """

    past: Tensor
    count: Tensor

    def __init__(self, experts: Sequence[int], steps: int = 1) -> None:
        super().__init__()
        if steps < 1:
            raise ConfigError(f"balance over {steps} steps cannot be; 1 is the present one alone")
        self.experts = list(experts)
        # Of both sums, for the steps before the present one; the oldest is replaced.
        self.register_buffer("past", torch.zeros(steps - 1, 2, sum(self.experts)))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, weights: Sequence[Tensor], loads: Sequence[Tensor]) -> BalanceLosses:
        """The losses of one step; a collective call.

        Args:
            weights: (N, E) G(x) of each decision.
            loads: (N, E) P(x) of each decision.
        """
        own = torch.stack(
            [
                torch.cat([part.float().sum(0) for part in parts])
                for parts in (weights, loads)  # two rows of all decisions' experts
            ]
        )
        together = own.detach().clone()
        add_up(together)
        earlier = self.past.sum(0)
        kept = self.count.clamp(max=len(self.past))  # no number: it is the device's
        # The value is that of all sums; the gradient that of the own one, as said above.
        scale = process_count() * (kept + 1)
        total = (together + earlier) + scale * (own - own.detach())
        self._keep(together)
        pairs = [
            [squared_variation(part) for part in row.split(self.experts)] for row in total.unbind()
        ]
        importance, load = (torch.stack(parts).sum() for parts in pairs)
        return BalanceLosses(importance, load)

    @torch.no_grad()
    def _keep(self, together: Tensor) -> None:
        if len(self.past):
            self.past.index_copy_(0, self.count[None] % len(self.past), together[None])
            self.count += 1
