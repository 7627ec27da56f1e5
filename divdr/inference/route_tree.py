"""Routes that were seen, as a tree: which decisions are certain after those before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..routing.record import Routing
from ..routing.space import TRANSFORMS, Node, RoutingSpace
from .decision import CellDecision, Openness, openness

StageDecision = tuple[tuple[int, Openness], ...]
"""What one image's gates open in one stage: (number of the cell, openness) of those it reaches."""


RARE = 0.02
"""Routes of a smaller share of the images are not expected: they run, but have to run again."""


@dataclass
class Branch:
    """Images that decided alike up to a stage.

    Attributes:
        images: how many there were.
        ways: what they decided in the stage that follows, and who.
    """

    images: int = 0
    ways: dict[StageDecision, Branch] = field(default_factory=dict)

    @classmethod
    def of(cls, line: Sequence[StageDecision]) -> Branch:
        """A tree of one route, or of its rest."""
        root = branch = cls(1)
        for way in line:
            branch.ways[way] = cls(1)
            branch = branch.ways[way]
        return root

    def only_way(self) -> StageDecision | None:
        """What all of them decided; None if they did not agree, or nobody came."""
        return next(iter(self.ways)) if len(self.ways) == 1 else None

    def line(self) -> tuple[StageDecision, ...] | None:
        """All that follows, if it is certain to the end."""
        found, branch = [], self
        while branch.ways:
            way = branch.only_way()
            if way is None:
                return None
            found.append(way)
            branch = branch.ways[way]
        return tuple(found)


class RouteTree:
    """Statistics of routes.

    Args:
        space: the routing space.
        rare: routes of a smaller share of the images are left out.

    Attributes:
        images: how many were seen.
    """

    def __init__(self, space: RoutingSpace, rare: float = RARE) -> None:
        self.space = space
        self.rare = rare
        self.images = 0
        self._routes: dict[tuple[StageDecision, ...], int] = {}

    def add(self, routing: Routing) -> None:
        """Take in the routes of a record's images."""
        routing = routing.detach().to("cpu")
        gates = routing.activations.unflatten(1, (-1, len(TRANSFORMS))).tolist()
        for rows, initial, reached in zip(
            gates, routing.initial.tolist(), routing.reached.tolist(), strict=True
        ):
            stages = [_decided([self.space.initial], [initial], [True])]
            start = 0
            for layer in self.space.layers:
                stop = start + len(layer)
                stages.append(_decided(layer, rows[start:stop], reached[start:stop]))
                start = stop
            route = tuple(stages)
            self._routes[route] = self._routes.get(route, 0) + 1
            self.images += 1

    def routes(self) -> dict[tuple[StageDecision, ...], int]:
        """Images by route, the most frequent first, without rare ones."""
        least = self.rare * self.images
        ranked = sorted(self._routes.items(), key=lambda item: -item[1])
        return {route: count for route, count in ranked if count >= least}

    def root(self) -> Branch:
        """The tree of these routes."""
        root = Branch()
        for route, count in self.routes().items():
            branch = root
            branch.images += count
            for way in route:
                branch = branch.ways.setdefault(way, Branch())
                branch.images += count
        return root


def _decided(
    nodes: Sequence[Node], rows: Sequence[Sequence[float]], reached: Sequence[bool]
) -> StageDecision:
    return tuple(
        (node.index, openness(row, node))
        for node, row, here in zip(nodes, rows, reached, strict=True)
        if here
    )


class Walk:
    """The way of some images through a tree: what can be assumed of the stage that follows.

    Args:
        root: of the tree.
        images: all that run.
    """

    def __init__(self, root: Branch, images: Sequence[int]) -> None:
        self._at: dict[int, Branch | None] = dict.fromkeys(images, root)

    def assumed(self, node: Node, images: Sequence[int]) -> list[Openness] | None:
        """What images that reach a cell of the stage are taken to open; None: ask its gate.

        Where one image of the batch has to be asked, the host waits anyway, and all are.
        """
        ways = {}
        for image, branch in self._at.items():
            way = None if branch is None else branch.only_way()
            if way is None:
                return None
            ways[image] = way
        found = []
        for image in images:
            rows = dict(ways[image])
            if node.index not in rows:
                return None
            found.append(rows[node.index])
        return found

    def saw(self, decisions: Sequence[CellDecision]) -> None:
        """Go on by what the cells of the stage decided, or were taken to."""
        rows: dict[int, list[tuple[int, Openness]]] = {image: [] for image in self._at}
        for decision in decisions:
            for image, opened in zip(decision.images, decision.openness, strict=True):
                rows[image].append((decision.node.index, opened))
        for image, branch in self._at.items():
            if branch is not None:
                self._at[image] = branch.ways.get(tuple(sorted(rows[image], key=_number)))

    def line(self) -> tuple[StageDecision, ...] | None:
        """All that follows, where that is certain and the same for all images; else None."""
        branches = list(self._at.values())
        first = branches[0] if branches else None
        if first is None or any(branch is not first for branch in branches):
            return None
        return first.line()


def _number(row: tuple[int, Openness]) -> int:
    return row[0]
