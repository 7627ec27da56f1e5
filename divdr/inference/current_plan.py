"""The plan of a network's present weights: made when asked for, kept while nothing changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from ..routing.network import DynamicRoutingNetwork
from ..routing.record import Routing
from .plan import InferencePlan
from .route import Route
from .route_tree import RouteTree
from .specialised import SpecialisedPlan

_mode = itemgetter("training")
_version = attrgetter("_version")
# A count of training batches, which evaluation never looks at: a quarter of all tensors.
_UNUSED = "num_batches_tracked"


class Fingerprint:
    """What a module looked like at one moment: its layers, their modes and their tensors.

    A change of a tensor is seen by the tensor's identity, version and memory: steps of optimisers,
    ``load_state_dict``, ``to``, edits in place and assignment of ``.data``. One edit leaves no
    trace in PyTorch: in place through ``.data`` (``p.data.mul_(2)``).

    Args:
        module: what to look at.
    """

    # A network has thousands of tensors and is looked at in every forward, so that each question
    # goes over all of them in one pass without a line of Python for each.
    def __init__(self, module: nn.Module) -> None:
        modules = list(module.modules())
        self._attributes = [vars(m) for m in modules]
        self._modes = [m.training for m in modules]
        self._children = [m._modules for m in modules if m._modules]
        self._child_modules = _values(self._children)
        held = (holder for m in modules for holder in (m._parameters, m._buffers) if holder)
        self._holders: list[Mapping[str, Tensor | None]] = list(held)
        self._held = _values(self._holders)
        self._hooks = [h for m in modules for h in (m._forward_hooks, m._forward_pre_hooks)]
        self._tensors: list[Tensor] = []
        self._uncounted: list[Tensor] = []
        for holder in self._holders:
            for name, tensor in holder.items():
                if tensor is None or name == _UNUSED:
                    continue
                # Tensors made in inference mode count no versions; sums tell most changes.
                (self._uncounted if tensor.is_inference() else self._tensors).append(tensor)
        self._versions = list(map(_version, self._tensors))
        # Aliases keep the memory, so that no other tensor gets its address.
        everything = [*self._tensors, *self._uncounted]
        self._aliases = [tensor.detach() for tensor in everything]
        self._every = everything
        self._addresses = list(map(Tensor.data_ptr, everything))
        self._sums = [_sum(tensor) for tensor in self._uncounted]

    def matches(self) -> bool:
        """Whether nothing that can be seen has changed since."""
        return (
            list(map(_version, self._tensors)) == self._versions
            and list(map(Tensor.data_ptr, self._every)) == self._addresses
            and list(map(_mode, self._attributes)) == self._modes
            and _same(_values(self._holders), self._held)
            and _same(_values(self._children), self._child_modules)
            and [_sum(tensor) for tensor in self._uncounted] == self._sums
        )

    def is_watched(self) -> bool:
        """Whether a layer has forward hooks."""
        return any(self._hooks)


def _values(holders: Iterable[Mapping[str, Any]]) -> list[Any]:
    return list(chain.from_iterable(holder.values() for holder in holders))


def _same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(is_, one, other))


def _sum(tensor: Tensor) -> float:
    return float(tensor.double().sum())


@dataclass
class _Held:
    network: DynamicRoutingNetwork
    fingerprint: Fingerprint
    plans: dict[torch.dtype | None, InferencePlan] = field(default_factory=dict)
    # Routes that were seen, and then the plans that expect them.
    trees: dict[torch.dtype | None, RouteTree] = field(default_factory=dict)
    specialised: dict[torch.dtype | None, SpecialisedPlan] = field(default_factory=dict)


class CurrentPlan:
    """Holds the plans of a network, one a precision; a copied or pickled holder starts empty.

    Args:
        images: after so many images :meth:`run` expects their routes, see ``SpecialisedPlan``; 0:
            it never does.
    """

    def __init__(self, images: int = 0) -> None:
        self._images = images
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
        held = self._of(network)
        if held is not None and not held.fingerprint.matches():
            held = None
        if network.training:
            return None
        if held is None:
            held = _Held(network, Fingerprint(network))
        if held.fingerprint.is_watched():
            return None
        if dtype not in held.plans:
            held.plans[dtype] = InferencePlan(network, dtype=dtype)
        self._held = held
        return held.plans[dtype]

    def run(
        self,
        network: DynamicRoutingNetwork,
        x: Tensor,
        route: Tensor | Route | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[list[Tensor], Routing] | None:
        """What a plan of the present weights gives; None where :meth:`of` gives none.

        Whether the weights are those of the plan is looked at while a GPU runs.

        Args:
            network: the supernet.
            x: (N, in_channels, H, W), as of ``InferencePlan``.
            route: likewise.
            dtype: precision of the plan.
        """
        held = self._of(network)
        if held is not None and not (network.training or held.fingerprint.is_watched()):
            ready = held.specialised.get(dtype) or held.plans.get(dtype)
            if ready is not None:
                found = ready.unless_changed(x, route, held.fingerprint.matches)
                if found is not None:
                    self._learn(held, dtype, route, found[1])
                    return found
        plan = self.of(network, dtype)
        if plan is None:
            return None
        found = plan(x, route)
        assert self._held is not None
        self._learn(self._held, dtype, route, found[1])
        return found

    def _learn(
        self, held: _Held, dtype: torch.dtype | None, route: Tensor | Route | None, seen: Routing
    ) -> None:
        """Take in routes that gates decided, until there are enough."""
        if not self._images or route is not None or dtype in held.specialised:
            return
        tree = held.trees.setdefault(dtype, RouteTree(held.network.space))
        tree.add(seen)
        if tree.images >= self._images:
            held.specialised[dtype] = SpecialisedPlan(held.network, tree, dtype=dtype)
            held.plans.pop(dtype, None)  # its weights need not live on beside the other's
            held.trees.pop(dtype)

    def _of(self, network: DynamicRoutingNetwork) -> _Held | None:
        held = self._held
        return held if held is not None and held.network is network else None

    def drop(self) -> None:
        """Forget the plan and its weights."""
        self._held = None

    def __deepcopy__(self, memo) -> CurrentPlan:
        return CurrentPlan(self._images)

    def __reduce__(self):
        return (CurrentPlan, (self._images,))
