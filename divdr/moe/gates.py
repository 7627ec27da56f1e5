"""Gates: what gives each sample its weights or logits over the experts.

The pooled gate is that of DynK-Hydra. Noisy top-k gating is Shazeer et al. 2017, Eq. 3 to 5, and
k-annealing Ramachandran & Le, "Diversity and Depth in Per-Example Routing Models", Section 2.1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..settings import PerExampleSettings
from .balance import load_probabilities


class PooledGate(nn.Module):
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


class Gating(NamedTuple):
    """What a gate decided for N samples.

    Attributes:
        weights: (N, E) float32 G(x), which sum to 1; exactly 0 for experts that do not run.
        chosen: (N, E) bool, k experts a sample.
        load: (N, E) float32, see ``load_probabilities``; without noise, in evaluation, ``chosen``
            as numbers.
    """

    weights: Tensor
    chosen: Tensor
    load: Tensor


class NoisyTopKGate(nn.Module):
    """G(x) = softmax(keep-top-k(x·W_g + ε·s·softplus(x·W_noise), k)), ε ~ N(0, 1); s is 1.

    There is noise in training alone. Both matrices start at 0 and there is no bias: at first every
    expert is as likely as any other. The gradient reaches W_g through the weights of the chosen
    experts, and both matrices through the load loss.

    Args:
        inputs: length of a sample's vector x.
        experts: E.
        k: experts that run for a sample.
        noise: s; with 0 the load is that of the choice, without a gradient.

    Raises:
        ConfigError: k is not within 1 and E, or the noise below 0.
    """

    def __init__(
        self, inputs: int, experts: int, k: int, noise: float = PerExampleSettings.noise
    ) -> None:
        super().__init__()
        if noise < 0:
            raise ConfigError(f"the gates' noise must be at least 0, not {noise}")
        if not 1 <= k <= experts:
            raise ConfigError(
                f"k, the experts that run for a sample, must be between 1 and the {experts} that "
                f"there are, not {k}"
            )
        self.experts = experts
        self.k = k
        self.deviation = noise
        self.score = nn.Linear(inputs, experts, bias=False)
        self.noise = nn.Linear(inputs, experts, bias=False)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.noise.weight)

    def forward(self, x: Tensor, sharing: Tensor | None = None) -> Gating:
        """Decide.

        Args:
            x: (N, inputs).
            sharing: (N,) int64; samples of one number get the same noise, so that those with the
                same x take the same path in training too. None: each sample its own.
        """
        # A decision between experts that are alike must not hang on half precision.
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.score.weight.dtype)
            clean = self.score(x).float()
            noisy_now = self.training and self.deviation > 0
            deviation = self.deviation * F.softplus(self.noise(x).float()) if noisy_now else None
        noisy, load = clean, None
        if deviation is not None:
            noisy = clean + _noise(clean, sharing) * deviation
            load = load_probabilities(clean, noisy, deviation, self.k)
        index = noisy.detach().topk(self.k, dim=1).indices
        chosen = torch.zeros_like(noisy, dtype=torch.bool).scatter(1, index, True)
        weights = noisy.masked_fill(~chosen, -torch.inf).softmax(1)
        return Gating(weights, chosen, chosen.float() if load is None else load)


def _noise(like: Tensor, sharing: Tensor | None) -> Tensor:
    """(N, E) standard normal numbers, the same in rows that share them."""
    if sharing is None:
        return torch.randn_like(like)
    numbers, place = sharing.unique(return_inverse=True)
    return torch.randn(len(numbers), like.shape[1], device=like.device)[place]


def anneal_k(first: int, last: int, layers: int) -> list[int]:
    """K of each layer, from ``first`` to ``last`` in equal steps, rounded; a half goes up.

    k-annealing (Section 2.1): early layers share their weights among all samples, late ones
    specialise.

    Args:
        first: of the first layer.
        last: of the last layer; a single layer has ``first``.
        layers: L.
    """
    steps = max(1, layers - 1)
    # In whole numbers: neither a float's error nor rounding to even decides a half.
    return [
        (2 * (first * steps + (last - first) * layer) + steps) // (2 * steps)
        for layer in range(layers)
    ]
