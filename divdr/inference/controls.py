"""Static networks to hold a routed one against: one route for all images, or a narrower network.

A routed network has to beat static networks that cost as much as it does, trained alike: a route
drawn at random or by hand, the route that most of its images take, and all cells at fewer channels.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from ..routing.cost import CostTensors, cost_table
from ..routing.network import DynamicRoutingNetwork
from ..routing.space import DOWN, KEEP, TRANSFORMS, UP, RoutingSpace
from .route import Route, vote

Size = tuple[int, int]
"""(height, width) of an image in pixels."""

_Edges = set[tuple[int, int]]  # (index of the cell, transform)

_DRAWS = 200  # routes that are begun before the search gives up
_IN_VAIN = 60  # paths in a row that cost too much, after which a route is as full as it gets
_STEM_FROM = 4  # channels of the narrowest stem


def random_route(
    network: DynamicRoutingNetwork,
    gflops: float,
    size: Size,
    *,
    seed: int = 0,
    tolerance: float = 0.01,
) -> Route:
    """A route of a given real cost, drawn at random; its gates are at 1.

    A first path leads to one output. Others then branch off at a cell of the route, one to each
    output and further ones while the cost allows, so that nothing leads nowhere. Branching cell
    and output have equal chances, and so have all ways from the one to the other. Where the paths
    cost too much, cells that only keep are closed, which passes their input on.

    Args:
        network: over the whole space; its gates are counted, if it has any.
        gflops: what the route is to cost, stem included, in 10⁹ multiply-adds.
        size: of the image that costs so much.
        seed: chooses the route.
        tolerance: by which share of ``gflops`` the cost may be off.

    Raises:
        ConfigError: no such route was found.
    """
    cost = _RouteCost(network, size)
    chance = random.Random(seed)
    paths = _Paths(network.space)
    nearest, aim = cost.everything, gflops * 1e9
    # Where even the whole space costs less there is nothing to search for.
    for _ in range(_DRAWS if aim <= cost.everything * (1 + tolerance) else 0):
        edges: _Edges = set()
        outputs = list(range(network.space.out_scales))
        chance.shuffle(outputs)
        for output in outputs:
            edges |= paths.draw(output, edges, chance)
        spent, vain = cost.of(edges), 0
        while vain < _IN_VAIN and spent < aim * (1 - tolerance):
            more = edges | paths.draw(chance.choice(outputs), edges, chance)
            costs = cost.of(more)
            if costs > aim * (1 + tolerance):
                vain += 1
            else:
                edges, spent = more, costs
        edges = _closed(edges, cost, aim * (1 + tolerance), chance)
        spent = cost.of(edges)
        nearest = min(nearest, spent, key=lambda each: abs(each - aim))
        if abs(spent - aim) <= tolerance * aim:
            return _route(network.space, edges)
    raise ConfigError(
        f"no route that leads to all outputs costs {gflops:.6g} GFLOPs at {size[0]}×{size[1]} "
        f"pixels, to {tolerance:.1%}; the nearest found costs {nearest / 1e9:.6g}"
    )


def chains_route(
    network: DynamicRoutingNetwork, gflops: float, size: Size, *, chains: int = 2
) -> Route:
    """The route that a person would draw: cells in a row at stride 4, at stride 8, and so on.

    Chains that run in the middle layer exchange maps with their neighbours there. All begin as
    early as their stride exists but the coarsest, which begins where the cost comes nearest.

    Args:
        network: over the whole space; its gates are counted, if it has any.
        gflops: what the route is to cost, stem included, in 10⁹ multiply-adds.
        size: of the image that costs so much.
        chains: how many, from stride 4 on.

    Raises:
        ConfigError: the space has not so many strides throughout.
    """
    space = network.space
    if not 1 <= chains <= space.out_scales:
        raise ConfigError(f"{chains} chains: the space has {space.out_scales} strides at its end")
    cost = _RouteCost(network, size)
    begin = max(0, chains - 2)
    candidates = [_chains(space, chains, layer) for layer in range(begin, space.num_layers)]
    nearest = min(candidates, key=lambda edges: abs(cost.of(edges) - gflops * 1e9))
    return _route(space, nearest)


def _chains(space: RoutingSpace, chains: int, last_from: int) -> _Edges:
    """Edges of chains, the coarsest of which begins at a layer."""
    begins = [max(0, scale - 1) for scale in range(chains)]
    begins[-1] = last_from if chains > 1 else 0
    nodes = {(node.layer, node.scale): node.index for node in space.cells}
    nodes[-1, 0] = space.initial.index
    middle = (space.num_layers - 1) // 2
    edges: _Edges = {(space.initial.index, KEEP)}
    for scale, begin in enumerate(begins):
        edges |= {(nodes[layer, scale], KEEP) for layer in range(begin, space.num_layers)}
        if scale == 0:
            continue
        edges.add((nodes[begin - 1, scale - 1], DOWN))
        if begin <= middle:
            edges |= {(nodes[middle, scale - 1], DOWN), (nodes[middle, scale], UP)}
    return edges


def majority_route(
    network: DynamicRoutingNetwork,
    activations: Tensor,
    initial: Tensor,
    size: Size,
    *,
    threshold: float | None = None,
) -> Route:
    """The route that most images take, its gates at 1.

    Args:
        network: the routed network, over the whole space.
        activations: (M, D) gate activations of M images.
        initial: (M, T) gates of the initial cell.
        size: of the image at which costs are compared.
        threshold: share of the images that must open a transform, in [0, 1); None takes the one at
            which the route's cost comes nearest to the mean of the images' own. Neither counts
            gates.

    Raises:
        ConfigError: there are no images, or none of the outputs is reached.
    """
    space = network.space
    thresholds = [threshold]
    if threshold is None:
        opened = (activations > 0).double().mean(dim=0)
        thresholds = [float(t) for t in opened.unique() if t < 1] or [0.0]
    rows = activations.detach().cpu().float().view(len(activations), -1, len(TRANSFORMS))
    images = [
        Route(space, gates, first)
        for gates, first in zip(rows, initial.detach().cpu().float(), strict=True)
    ]
    candidates = [_binary(vote(space, activations, initial, t or 0.0)) for t in thresholds]
    found = candidates[0]
    if threshold is None:
        table = cost_table(network, *size).without_gates().tensors("cpu")
        aim = sum(_real(table, route) for route in images) / len(images)
        found = min(candidates, key=lambda route: abs(_real(table, route) - aim))
    if not found.reached[-space.out_scales :].any():
        raise ConfigError("the majority's route ends before the last layer")
    return found


def route_of_share(
    network: DynamicRoutingNetwork, opened: Tensor, initial: Tensor, size: Size, share: float
) -> Route:
    """Of the routes that open what more than some share of the images opens, the one of a cost.

    Args:
        network: the routed network.
        opened: (D,) share of the images that open each transform.
        initial: (T,) the same of the initial cell.
        size: of the image at which costs are compared.
        share: real cost to be met, of the all-open one, both without the stem.

    Raises:
        ConfigError: no such route leads to an output.
    """
    space = network.space
    gates, first = opened.detach().cpu().view(-1, len(TRANSFORMS)), initial.detach().cpu()
    # The first cell's ways are few: its likeliest stays open whatever the threshold is.
    least = float(first.max())
    candidates = []
    for threshold in sorted({0.0, *gates.flatten().tolist()}):
        start = (first > min(threshold, 0.5 * least)).float()
        route = Route(space, (gates > threshold).float(), start)
        if route.reached[-space.out_scales :].any():
            inside = route.reached[:, None]
            candidates.append(Route(space, torch.where(inside, route.gates, 0.0), start))
    if not candidates:
        raise ConfigError("what most images open leads to no output")
    table = cost_table(network, *size).tensors("cpu")
    aim = table.stem + share * (table.full_real_cost - table.stem)
    return min(candidates, key=lambda route: abs(_real(table, route) - aim))


def real_share(network: DynamicRoutingNetwork, route: Route, size: Size) -> float:
    """Real cost of a route at an image size, of the all-open one, both without the stem."""
    table = cost_table(network, *size).tensors("cpu")
    return (_real(table, route) - table.stem) / (table.full_real_cost - table.stem)


@dataclass(frozen=True)
class Width:
    """How wide a network is.

    Attributes:
        channels: at stride 4, an even number.
        stem_channels: inside the stem.
        gflops: real cost with every gate open, in 10⁹ multiply-adds.
    """

    channels: int
    stem_channels: int
    gflops: float


def width_of_cost(
    build: Callable[[int, int], DynamicRoutingNetwork],
    gflops: float,
    size: Size,
    *,
    channels: int,
    stem_channels: int,
    tolerance: float = 0.01,
) -> Width:
    """The width at which a network costs so much.

    A cell's channels go in steps of two, which are steps of ten per cent and more in cost; the
    stem's, in steps of one, make up for the rest. Of the widths within ``tolerance``, that one is
    taken whose stem keeps its proportion to the cells best; if there is none, the nearest in cost.

    Args:
        build: makes a network of (channels, stem channels).
        gflops: what it is to cost with every gate open, in 10⁹ multiply-adds.
        size: of the image that costs so much.
        channels: of a network whose proportions are kept.
        stem_channels: likewise.
        tolerance: by which share of ``gflops`` the cost may be off.

    Raises:
        ConfigError: even the narrowest network costs more than twice as much.
    """

    def cost(wide: int, stem: int) -> float:
        return cost_table(build(wide, stem), *size).tensors("cpu").full_real_cost / 1e9

    def stem_beside(wide: int) -> int:
        return max(_STEM_FROM, round(wide * stem_channels / channels))

    low, high = 2, 4
    while cost(high, stem_beside(high)) < gflops:
        low, high = high, 2 * high
    while high - low > 2:
        middle = (low + high) // 4 * 2
        low, high = (middle, high) if cost(middle, stem_beside(middle)) < gflops else (low, middle)
    found = []
    for wide in range(max(2, low - 2), high + 3, 2):
        below, above = _STEM_FROM, 2 * max(stem_channels, stem_beside(wide))
        while above - below > 1:  # the cost grows with the stem
            middle = (below + above) // 2
            below, above = (middle, above) if cost(wide, middle) < gflops else (below, middle)
        for stem in {below, above, stem_beside(wide)}:
            found.append(Width(wide, stem, cost(wide, stem)))
    near = [each for each in found if abs(each.gflops / gflops - 1) <= tolerance]
    if near:
        return min(near, key=lambda w: abs(w.stem_channels - stem_beside(w.channels)))
    best = min(found, key=lambda w: abs(w.gflops - gflops))
    if best.gflops > 2 * gflops:
        raise ConfigError(
            f"the narrowest network costs {best.gflops:.6g} GFLOPs at {size[0]}×{size[1]} pixels, "
            f"more than twice {gflops:.6g}"
        )
    return best


class _RouteCost:
    """Real cost of edges, multiply-adds."""

    def __init__(self, network: DynamicRoutingNetwork, size: Size) -> None:
        self._table = cost_table(network, *size).tensors("cpu")
        self.everything = self._table.full_real_cost
        self._space = network.space

    def of(self, edges: _Edges) -> float:
        return _real(self._table, _route(self._space, edges))


def _real(table: CostTensors, route: Route) -> float:
    inside = route.reached
    gates = (route.gates * inside[:, None])[None]
    return float(table.real(gates, route.initial[None], inside[None]))


def _route(space: RoutingSpace, edges: _Edges) -> Route:
    """The route with these edges (index of the cell, transform) at 1."""
    gates, initial = torch.zeros(space.num_cells, len(TRANSFORMS)), torch.zeros(len(TRANSFORMS))
    for index, transform in edges:
        (initial if index < 0 else gates[index])[transform] = 1.0
    return Route(space, gates, initial)


def _binary(route: Route) -> Route:
    return Route(route.space, (route.gates > 0).float(), (route.initial > 0).float())


def _closed(edges: _Edges, cost: _RouteCost, most: float, chance: random.Random) -> _Edges:
    """Edges without those of random cells that only keep, until they cost no more than ``most``."""
    leaving = Counter(index for index, _ in edges)
    only = sorted(edge for edge in edges if edge[1] == KEEP and leaving[edge[0]] == 1)
    chance.shuffle(only)
    for edge in only:
        if cost.of(edges) <= most:
            break
        edges = edges - {edge}
    return edges


class _Paths:
    """Paths to outputs, from the initial cell or from a cell of a route."""

    def __init__(self, space: RoutingSpace) -> None:
        self._rows = ((space.initial,), *space.layers)
        self._nodes = {node.index: node for row in self._rows for node in row}
        self._ways = [self._count(output) for output in range(space.out_scales)]

    def _count(self, output: int) -> list[dict[int, int]]:
        """Ways on from each scale of each row to an output, and the output itself last."""
        following = {output: 1}
        ways = [following]
        for row in reversed(self._rows):
            following = {
                node.scale: sum(following.get(node.target_scale(t), 0) for t in node.gated)
                for node in row
            }
            ways.insert(0, following)
        return ways

    def draw(self, output: int, route: _Edges, chance: random.Random) -> _Edges:
        """The edges of a path that starts at a cell of a route, all of its ways equally likely."""
        ways, edges = self._ways[output], set()
        starts = [self._nodes[index] for index in sorted({index for index, _ in route})]
        starts = [node for node in starts if ways[node.layer + 1][node.scale]]
        node = chance.choice(starts or [self._nodes[-1]])
        for row in range(node.layer + 1, len(self._rows)):
            onward = [ways[row + 1].get(node.target_scale(t), 0) for t in node.gated]
            transform = chance.choices(node.gated, onward)[0]
            edges.add((node.index, transform))
            if row + 1 < len(self._rows):
                node = self._rows[row + 1][node.target_scale(transform)]
        return edges
