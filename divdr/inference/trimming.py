"""A routed network without what no image uses: fewer weights, smaller gates, the same routes.

The cells and transforms that stay are those of a route (``Route.restricted``); their gates decide
for each image as before (``route_gates="decide"`` of ``DynamicRoutingNetwork``), but for those that
say the same of every image: these become numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError
from ..routing.cell import Cell
from ..routing.gate import Gate, StaticGate, constant_bias
from ..routing.network import DynamicRoutingNetwork
from ..routing.open_paths import is_closed
from ..routing.space import KEEP, RoutingSpace
from .route import Route


def used_route(
    space: RoutingSpace,
    activations: Tensor,
    initial: Tensor,
    reached: Tensor,
    *,
    at_mean: bool = False,
) -> Route:
    """Everything that at least one of M images uses, at the mean of the gates that open it.

    A cell that some images open and some close keeps its keep, along which the latter pass; one
    that all close has no gate open, and passes its input on. Gates that are the same for all images
    that reach their cell, two at least, are constant.

    Args:
        space: the routing space.
        activations: (M, D) gate activations.
        initial: (M, T) gates of the initial cell.
        reached: (M, cells) bool.
        at_mean: cells of which every image that reaches them opens the same transforms are constant
            too, however far it opens them.

    Raises:
        ConfigError: there are no images.
    """
    if not len(activations):
        raise ConfigError("nothing can be trimmed by the routes of no image")
    # The initial cell comes first, which every image reaches.
    gates = activations.detach().cpu().float().view(len(activations), space.num_cells, -1)
    gates = torch.cat([initial.detach().cpu().float()[:, None], gates], dim=1)  # (M, 1 + cells, T)
    inside = torch.cat([torch.ones(len(gates), 1, dtype=torch.bool), reached.cpu()], dim=1)
    closed = is_closed(gates.sum(dim=2))  # (M, 1 + cells)
    gates = torch.where((inside & ~closed)[:, :, None], gates, 0.0)
    opens = (gates > 0).any(dim=2)
    passes = (inside & closed).any(dim=0) & opens.any(dim=0)  # (1 + cells,)
    mean = gates.sum(dim=0) / (gates > 0).sum(dim=0).clamp(min=1)  # (1 + cells, T)
    least = torch.where(inside[:, :, None], gates, torch.inf).amin(dim=0)  # (1 + cells, T)
    most = gates.amax(dim=0)
    alike = ((least > 0) == (most > 0)).all(dim=1)  # (1 + cells,)
    same = (least == most).all(dim=1) & (inside.sum(dim=0) > 1)
    settled = opens.any(dim=0) & alike & (same | at_mean)
    constant = frozenset((settled.nonzero().flatten() - 1).tolist())
    # Not by votes, which leave out what only a keep added here leads to.
    for node in (space.initial, *space.cells):
        row = mean[node.index + 1]
        if passes[node.index + 1] and KEEP in node.gated and not row[KEEP]:
            row[KEEP] = row.max()
    return Route(space, mean[1:], mean[0], constant)


def weights_on_route(
    whole: DynamicRoutingNetwork, part: DynamicRoutingNetwork, route: Route
) -> dict[str, Tensor]:
    """State dict of a network of a route, from that of the network that it is a part of.

    Gates lose the rows of the transforms that are gone; constant ones are the route's.

    Args:
        whole: over the whole space, or over a larger route.
        part: over the route through it, otherwise built alike.
        route: the route.
    """
    state = whole.state_dict()
    found = {name: state[name] for name in part.state_dict() if name in state}
    names = {module: name for name, module in part.named_modules()}
    pairs = [(whole.initial, part.initial), *zip(whole.cells(), part.cells(), strict=True)]
    gates = [route.initial, *route.gates]
    for (old, new), values in zip(pairs, gates, strict=True):
        rows = _rows(old, new)
        if isinstance(new.gate, StaticGate) and isinstance(old.gate, Gate):
            bias = constant_bias(values[list(new.node.gated)], new.gate)
            found[f"{names[new.gate]}.bias"] = bias.to(new.gate.bias)
            continue
        if new.gate is None or len(rows) == len(old.node.gated):
            continue
        for end in ("predict.weight", "predict.bias", "bias"):
            name = f"{names[new.gate]}.{end}"
            if name in found:
                found[name] = found[name][rows]
    return found


def _rows(old: Cell, new: Cell) -> list[int]:
    """Where the gates of a cell's remaining transforms stood."""
    return [old.node.gated.index(transform) for transform in new.node.gated]
