"""The route of an image drawn on the grid of the routing space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..routing.open_paths import is_closed, is_open, reached_cells
from ..routing.space import KEEP, TRANSFORMS, Node, RoutingSpace


def reached_from_gates(space: RoutingSpace, activations: np.ndarray) -> np.ndarray:
    """Follow the open paths through the layers.

    A(x) does not hold the gates of the initial cell, so every cell of layer 0 counts as reached.

    Args:
        space: the routing space.
        activations: A(x), (D,).

    Returns:
        (cells,) bool.

    Raises:
        ValueError: the length of A(x) is not the space's D.
    """
    activations = np.asarray(activations)
    if activations.shape != (space.activation_size,):
        raise ValueError(
            f"expected activations ({space.activation_size},), got {activations.shape}"
        )
    return np.array(reached_cells(space, activations.reshape(-1, 3)))


def open_transforms(
    space: RoutingSpace, activations: np.ndarray, reached: np.ndarray
) -> np.ndarray:
    """Which transforms run, (cells, 3) bool, for A(x) (D,) and ``reached`` (cells,)."""
    gates = np.asarray(activations).reshape(space.num_cells, 3)
    opened = is_open(gates, is_closed(gates.sum(axis=1, keepdims=True)))
    return opened & np.asarray(reached, dtype=bool)[:, None]


COLOURS = {"up": "#0072B2", "keep": "#009E73", "down": "#D55E00"}
SHARED = "#a3abb5"
"""Of what all routes that are shown together have open."""
FAINT = "#e3e5e8"
INK = "#222222"
_PITCH = 0.46  # inches between layers
_RISE = 0.5  # inches between scales
_PICTURE = 2.3  # inches, width of an image beside its route


def line_width(gate: np.ndarray | float) -> np.ndarray:
    """Width in points of an open transform's line, growing with its gate in [0, 1]."""
    return 0.7 + 3.3 * np.clip(gate, 0.0, 1.0)


def route_figure(
    space: RoutingSpace,
    activations: np.ndarray,
    reached: np.ndarray | None = None,
    title: str = "",
    image: np.ndarray | None = None,
) -> Figure:
    """Draw one route: layers from left to right, stride 4 at the top.

    Args:
        space: the routing space.
        activations: A(x), (D,).
        reached: (cells,) bool; as of :func:`reached_from_gates` if None.
        title: text above the grid.
        image: (H, W, 3) uint8, drawn beside it.

    Raises:
        ValueError: a shape does not belong to the space.
    """
    rows = None if reached is None else np.asarray(reached)[None]
    return routes_figure(space, np.asarray(activations)[None], [title], rows, [image])


def routes_figure(
    space: RoutingSpace,
    activations: np.ndarray,
    titles: Sequence[str],
    reached: np.ndarray | None = None,
    images: Sequence[np.ndarray | None] = (),
) -> Figure:
    """Draw R routes below each other with one legend, each beside its image.

    What all of several routes open is grey: only what differs between them has a colour.

    Args:
        space: the routing space.
        activations: (R, D), a gate activation A(x) a row; a centre works too.
        titles: R texts.
        reached: (R, cells) bool; followed from the gates if None.
        images: R pictures (H, W, 3) uint8, None for one that is missing; () for none at all.

    Raises:
        ValueError: no row, or a shape does not belong to the space.
    """
    if len(titles) != len(np.atleast_2d(activations)) or len(images) not in (0, len(titles)):
        raise ValueError(
            f"{len(np.atleast_2d(activations))} routes need as many titles, got {len(titles)}, and "
            f"images, got {len(images)}"
        )
    shown = list(images) if any(image is not None for image in images) else []
    grid = max(_PITCH * (space.num_layers + 1.6) + 0.9, 6.6)
    width = grid + (_PICTURE if shown else 0)
    height = (_RISE * space.max_scales + 0.75) * len(titles) + 0.6
    figure = Figure(figsize=(width, height), layout="constrained")
    ratios = [_PICTURE, grid] if shown else [grid]
    axes = figure.subplots(
        len(titles), len(ratios), squeeze=False, gridspec_kw={"width_ratios": ratios}
    )
    for axis, image in zip(axes[:, 0], shown, strict=False):
        show_picture(axis, image)
    draw_routes(axes[:, -1].tolist(), space, activations, titles, reached)
    axes[-1, -1].set_xlabel("layer", fontsize=9)
    legend = route_legend(several=len(titles) > 1)
    columns = 3 if len(titles) > 1 else 4
    figure.legend(
        handles=legend, loc="outside lower center", ncols=columns, fontsize=8, frameon=False
    )
    return figure


def show_picture(axis: Axes, picture: np.ndarray | None) -> None:
    """An image (H, W, 3) without ticks or frame; None leaves its place empty."""
    axis.set_axis_off()
    if picture is not None:
        axis.imshow(picture, interpolation_stage="rgba")


def draw_routes(
    axes: Sequence[Axes],
    space: RoutingSpace,
    activations: np.ndarray,
    titles: Sequence[str],
    reached: np.ndarray | None = None,
) -> None:
    """Draw R routes, each on axes of its own; for arguments see :func:`routes_figure`."""
    activations = np.asarray(activations, dtype=np.float64)
    if activations.ndim != 2 or activations.shape[1] != space.activation_size:
        raise ValueError(
            f"expected activations of length {space.activation_size}, got {activations.shape}"
        )
    if len(activations) == 0:
        raise ValueError("no route to draw")
    if reached is None:
        reached = np.stack([reached_from_gates(space, row) for row in activations])
    reached = np.asarray(reached, dtype=bool)
    if reached.shape != (len(activations), space.num_cells):
        raise ValueError(
            f"expected reached ({len(activations)}, {space.num_cells}), got {reached.shape}"
        )
    shared = shared_transforms(space, activations, reached)
    gates = activations.reshape(len(activations), -1, 3)
    alike = (reached & ~is_closed(gates.sum(axis=2))).all(axis=0) & (len(gates) > 1)
    for axis, row, mask, title in zip(axes, activations, reached, titles, strict=True):
        _prepare(axis, space, title)
        _draw_transforms(axis, space, row.reshape(-1, 3), mask, shared)
        _draw_initial(axis, space, mask)
        _draw_cells(axis, space, row.reshape(-1, 3), mask, alike)


def shared_transforms(
    space: RoutingSpace, activations: np.ndarray, reached: np.ndarray
) -> np.ndarray:
    """Which transforms run in all of several routes, (cells, 3) bool; none of a single route's.

    Args:
        space: the routing space.
        activations: (R, D).
        reached: (R, cells) bool.
    """
    opened = [open_transforms(space, *row) for row in zip(activations, reached, strict=True)]
    return np.all(opened, axis=0) & (len(opened) > 1)


def _prepare(axis: Axes, space: RoutingSpace, title: str) -> None:
    scales = range(space.max_scales)
    axis.set_xlim(-1.5, space.num_layers - 0.1)
    axis.set_ylim(space.max_scales - 0.55, -0.45)
    axis.set_yticks(list(scales), [f"stride {4 * 2**s}" for s in scales])
    layers = range(space.num_layers)
    axis.set_xticks([-1, *layers], ["start", *(str(layer) for layer in layers)])
    axis.tick_params(length=0, labelsize=8, colors="#555555")
    for spine in axis.spines.values():
        spine.set_visible(False)
    if title:
        axis.set_title(title, fontsize=10, loc="left", color=INK)


def _draw_transforms(
    axis: Axes, space: RoutingSpace, gates: np.ndarray, reached: np.ndarray, shared: np.ndarray
) -> None:
    opened: dict[str, list[tuple[Node, float]]] = {name: [] for name in TRANSFORMS}
    closed, passed, common = [], [], []
    for node in space.cells:
        row = gates[node.index]
        active = bool(reached[node.index]) and not is_closed(row.sum())
        for transform in node.transforms:
            if shared[node.index, transform]:
                common.append(_segment(node, transform))
            elif active and row[transform] > 0:
                opened[TRANSFORMS[transform]].append((node, float(row[transform])))
            elif transform == KEEP and reached[node.index] and not active:
                passed.append(_segment(node, KEEP))
            else:
                closed.append(_segment(node, transform))
    _add(axis, "closed", closed, colors=FAINT, linewidths=0.6, zorder=1)
    _add(axis, "passed", passed, colors=INK, linewidths=1.1, linestyles=(0, (3, 2)), zorder=2)
    _add(axis, "shared", common, colors=SHARED, linewidths=1.3, capstyle="round", zorder=2)
    several = bool(shared.any())
    for transform, name in enumerate(TRANSFORMS):
        gate = np.array([value for _, value in opened[name]])
        # What differs is to be seen, however small its gate.
        alpha = 0.35 + 0.6 * np.clip(gate, 0.0, 1.0) if len(gate) and not several else None
        _add(
            axis,
            f"open-{name}",
            [_segment(node, transform) for node, _ in opened[name]],
            colors=COLOURS[name],
            linewidths=3.2 if several else line_width(gate),
            alpha=alpha,
            capstyle="round",
            zorder=3,
        )


def _segment(node: Node, transform: int) -> list[tuple[float, float]]:
    return [(node.layer, node.scale), (node.layer + 1, node.target_scale(transform))]


def _add(axis: Axes, name: str, segments: list, **style) -> None:
    lines = LineCollection(segments, **style)
    lines.set_gid(name)
    axis.add_collection(lines, autolim=False)


def _draw_initial(axis: Axes, space: RoutingSpace, reached: np.ndarray) -> None:
    node = space.initial
    for transform in node.transforms:
        scale = node.target_scale(transform)
        colour = INK if reached[space.layers[0][scale].index] else FAINT
        axis.annotate(
            "",
            xy=(0, scale),
            xytext=(-1, 0),
            arrowprops={
                "arrowstyle": "-|>",
                "color": colour,
                "lw": 1.0,
                "shrinkA": 5,
                "shrinkB": 6,
            },
        )
    axis.scatter([-1], [0], s=70, marker="s", color=INK, zorder=4, gid="initial")


def _draw_cells(
    axis: Axes, space: RoutingSpace, gates: np.ndarray, reached: np.ndarray, alike: np.ndarray
) -> None:
    place = np.array([(node.layer, node.scale) for node in space.cells], dtype=float)
    open_cells = reached & ~is_closed(gates.sum(axis=1))
    kinds = (
        ("unreached", ~reached, 26, FAINT, FAINT),
        ("closed", reached & ~open_cells, 62, "#ffffff", INK),
        ("shared", alike, 60, SHARED, "#ffffff"),
        ("open", open_cells & ~alike, 74, INK, "#ffffff"),
    )
    for order, (name, mask, size, face, edge) in enumerate(kinds):
        axis.scatter(
            place[mask, 0],
            place[mask, 1],
            s=size,
            facecolors=face,
            edgecolors=edge,
            linewidths=1.3 if name == "closed" else 0.8,
            zorder=5 + order,
            gid=f"cells-{name}",
        )


def route_legend(*, several: bool) -> list[Line2D]:
    """What lines and dots mean.

    Args:
        several: of routes that are shown together.
    """

    def dot(label: str, face: str, edge: str, marker: str = "o", size: float = 7.5) -> Line2D:
        return Line2D(
            [],
            [],
            linestyle="",
            marker=marker,
            markersize=size,
            markerfacecolor=face,
            markeredgecolor=edge,
            label=label,
        )

    def line(label: str, colour: str, **style) -> Line2D:
        return Line2D([], [], color=colour, label=label, **style)

    cells = [
        dot("reached, closed", "#ffffff", INK),
        dot("not reached", FAINT, FAINT, size=5),
        line("input passed on", INK, linewidth=1.1, linestyle=(0, (3, 2))),
    ]
    closed = line("closed transform", FAINT, linewidth=1)
    if several:
        return [
            *(line(f"not in all routes: {t}", COLOURS[t], linewidth=3) for t in TRANSFORMS),
            line("open in all routes", SHARED, linewidth=2),
            closed,
            dot("open cell (grey: in all routes)", INK, INK),
            *cells,
        ]
    return [
        line("up (thicker: larger gate)", COLOURS["up"], linewidth=3),
        line("keep", COLOURS["keep"], linewidth=3),
        line("down", COLOURS["down"], linewidth=3),
        closed,
        dot("open cell", INK, INK),
        *cells,
    ]
