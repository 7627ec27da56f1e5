"""A plan that follows its network: made when it is needed and again when the network changed."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..routing.network import DynamicRoutingNetwork
from .freshness import Fingerprint
from .plan import InferencePlan


@dataclass
class _Held:
    network: DynamicRoutingNetwork
    fingerprint: Fingerprint
    plans: dict[torch.dtype | None, InferencePlan] = field(default_factory=dict)


class CurrentPlan:
    """Holds the plans of a network, one a precision; a copied or pickled holder starts empty."""

    def __init__(self) -> None:
        self._held: _Held | None = None

    def of(
        self, network: DynamicRoutingNetwork, dtype: torch.dtype | None = None
    ) -> InferencePlan | None:
        """A plan with the network's present weights; None where a plan would not do the same.

        That is so while the network is in training, and where hooks wait for its layers' forwards,
        which a plan does not call.

        Args:
            network: the supernet.
            dtype: precision of the plan, see ``InferencePlan``.
        """
        if network.training:
            return None
        held = self._held
        if held is None or held.network is not network or not held.fingerprint.matches():
            held = _Held(network, Fingerprint(network))
        if held.fingerprint.is_watched():
            return None
        if dtype not in held.plans:
            held.plans[dtype] = InferencePlan(network, dtype=dtype)
        self._held = held
        return held.plans[dtype]

    def drop(self) -> None:
        """Forget the plan and its weights."""
        self._held = None

    def __deepcopy__(self, memo) -> CurrentPlan:
        return CurrentPlan()

    def __reduce__(self):
        return (CurrentPlan, ())
