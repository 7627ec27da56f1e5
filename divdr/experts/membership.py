"""Which expert each training image belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor


class Membership:
    """The outcome of a clustering, image by image.

    Args:
        keys: of the images, N.
        experts: (N,) of int64, their experts.
    """

    def __init__(self, keys: Sequence[str] = (), experts: Tensor | None = None) -> None:
        values = [] if experts is None else experts.tolist()
        self._experts = dict(zip(keys, values, strict=True))

    def of(self, keys: Sequence[str]) -> Tensor | None:
        """Experts (N,) of int64, −1 for images that were not there; None if none was."""
        found = [self._experts.get(key, -1) for key in keys]
        return torch.tensor(found) if any(expert >= 0 for expert in found) else None

    def agreement(self, keys: Sequence[str], experts: Tensor) -> float:
        """How much another clustering agrees with this one, whatever the experts' numbers.

        Returns:
            The adjusted Rand index over images that are in both: 1 for the same clusters, about 0
            for unrelated ones. 0 if there are none.
        """
        both = [
            (self._experts[key], expert)
            for key, expert in zip(keys, experts.tolist(), strict=True)
            if key in self._experts
        ]
        return float(adjusted_rand_score(*zip(*both, strict=True))) if both else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Keys, and their experts as a tensor."""
        return {"keys": list(self._experts), "experts": torch.tensor(list(self._experts.values()))}

    @classmethod
    def from_state(cls, state: dict[str, Any] | None) -> Membership:
        """What :meth:`state_dict` gave; None, as in checkpoints of before, for nobody."""
        return cls() if state is None else cls(state["keys"], state["experts"])
