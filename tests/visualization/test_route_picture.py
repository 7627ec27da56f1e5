import numpy as np
import pytest
from matplotlib.colors import to_rgb
from synthetic_runs import route

from divdr.routing.space import DOWN, KEEP, UP, RoutingSpace
from divdr.visualization import open_transforms, reached_from_gates, route_figure, routes_figure
from divdr.visualization.routes import COLOURS

SPACES = {
    "layer16": RoutingSpace.build(16, 4),
    "layer17": RoutingSpace((2, 3, *[4] * 14, 5)),
    "layer33": RoutingSpace.build(33, 4),
    "small": RoutingSpace.build(3, 2),
    "one cell": RoutingSpace((1,)),
}


def lines(figure, name, axis=0):
    found = [c for c in figure.axes[axis].collections if c.get_gid() == name]
    assert len(found) == 1
    return found[0]


def number_of_open_lines(figure, axis=0):
    return sum(len(lines(figure, f"open-{t}", axis).get_segments()) for t in ("up", "keep", "down"))


@pytest.mark.parametrize("name", SPACES)
def test_a_line_for_every_transform(name):
    space = SPACES[name]
    base = np.random.default_rng(0).normal(0.2, 0.9, (space.num_cells, 3))
    activations = route(space, base, 0.1, 0)
    reached = reached_from_gates(space, activations)
    figure = route_figure(space, activations, reached)
    assert number_of_open_lines(figure) == open_transforms(space, activations, reached).sum()
    others = sum(len(lines(figure, kind).get_segments()) for kind in ("closed", "passed"))
    assert number_of_open_lines(figure) + others == sum(len(n.transforms) for n in space.cells)
    dots = [len(lines(figure, f"cells-{k}").get_offsets()) for k in ("open", "closed", "unreached")]
    assert sum(dots) == space.num_cells
    assert dots[2] == (~reached).sum()
    figure.canvas.draw()


def test_width_and_opacity_grow_with_the_gate():
    # Stride 4 keeps through all layers, with gates 0.2, 0.5 and 1.
    space = RoutingSpace.build(3, 2)
    activations = np.zeros(space.activation_size)
    for layer, gate in zip(space.layers, (0.2, 0.5, 1.0), strict=True):
        activations[3 * layer[0].index + KEEP] = gate
    keep = lines(route_figure(space, activations), "open-keep")
    widths = list(keep.get_linewidth())
    opacities = list(keep.get_alpha())
    assert widths == sorted(set(widths))
    assert opacities == sorted(set(opacities))
    assert len(widths) == len(opacities) == 3


def test_each_line_leads_where_its_transform_leads():
    # Layer 0: stride 4 goes down, stride 8 goes up. They cross.
    space = RoutingSpace.build(2, 2)
    activations = np.zeros(space.activation_size)
    fine, coarse = space.layers[0]
    activations[3 * fine.index + DOWN] = 0.7
    activations[3 * coarse.index + UP] = 0.4
    figure = route_figure(space, activations)
    assert lines(figure, "open-down").get_segments()[0].tolist() == [[0, 0], [1, 1]]
    assert lines(figure, "open-up").get_segments()[0].tolist() == [[0, 1], [1, 0]]


def test_closed_cell_passes_its_input_on_and_unreached_cells_are_faint():
    # Stride 4 is reached everywhere but all its gates sum to 0.9e-4: three dashed lines and no
    # open one. Stride 8 is not reached at all.
    space = RoutingSpace.build(3, 2)
    activations = np.zeros(space.activation_size)
    reached = np.zeros(space.num_cells, dtype=bool)
    for layer in space.layers:
        activations[3 * layer[0].index + KEEP] = 0.9e-4
        reached[layer[0].index] = True
    figure = route_figure(space, activations, reached)
    passed = lines(figure, "passed")
    assert len(passed.get_segments()) == 3
    assert passed.get_linestyle()[0][1] is not None  # dashed
    assert number_of_open_lines(figure) == 0
    assert len(lines(figure, "cells-closed").get_offsets()) == 3
    faint = lines(figure, "cells-unreached")
    assert faint.get_offsets().tolist() == [[0, 1], [1, 1], [2, 1]]
    assert min(faint.get_facecolor()[0][:3]) > 0.85
    assert max(to_rgb("#222222")) < 0.2


def test_follow_by_hand():
    # Layer 0: stride 4 closed, so it keeps; stride 8 goes down only. Layer 1: stride 4 closed,
    # stride 16 goes up only. Layer 2 is reached at strides 4 (keep) and 8 (up).
    space = RoutingSpace((2, 3, 3))
    activations = np.zeros(space.activation_size)
    activations[3 * space.layers[0][1].index + DOWN] = 1
    activations[3 * space.layers[1][2].index + UP] = 1
    expected = [True, True, True, False, True, True, True, False]
    assert reached_from_gates(space, activations).tolist() == expected


def test_what_all_routes_open_is_grey_and_what_differs_has_its_colour():
    # Both keep stride 4 through two layers; the first alone goes down from layer 0, and so alone
    # reaches stride 8 of layer 1, which keeps.
    space = RoutingSpace.build(2, 2)
    rows = np.zeros((2, space.activation_size))
    for layer, gate in zip(space.layers, (0.2, 0.9), strict=True):
        rows[:, 3 * layer[0].index + KEEP] = gate
    rows[0, 3 * space.layers[0][0].index + DOWN] = 0.1
    rows[0, 3 * space.layers[1][1].index + KEEP] = 0.1
    reached = np.stack([reached_from_gates(space, row) for row in rows])
    reached[:, space.layers[0][1].index] = False
    reached[1, space.layers[1][1].index] = False
    figure = routes_figure(space, rows, ["first", "second"], reached)
    for axis in (0, 1):
        shared = lines(figure, "shared", axis)
        assert shared.get_segments()[0].tolist() == [[0, 0], [1, 0]]
        assert len(shared.get_segments()) == 2
        red, green, blue = shared.get_color()[0][:3]
        assert max(red, green, blue) - min(red, green, blue) < 0.1
        assert len(lines(figure, "cells-shared", axis).get_offsets()) == 2
    assert lines(figure, "open-down").get_segments()[0].tolist() == [[0, 0], [1, 1]]
    assert [len(lines(figure, "open-keep", axis).get_segments()) for axis in (0, 1)] == [1, 0]
    assert number_of_open_lines(figure, 1) == 0
    for name in ("up", "keep", "down"):
        strong = to_rgb(COLOURS[name])
        assert max(strong) - min(strong) > 0.4
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "open in all routes" in words
    assert {f"not in all routes: {name}" for name in COLOURS} <= {*words}
    alone = route_figure(space, rows[0], reached[0])
    assert number_of_open_lines(alone) == 4
    assert len(lines(alone, "shared").get_segments()) == 0


def test_an_image_stands_beside_its_route():
    space = RoutingSpace.build(3, 2)
    rows = np.zeros((2, space.activation_size))
    image = np.full((4, 8, 3), 90, np.uint8)
    figure = routes_figure(space, rows, ["first", "second"], images=[None, image])
    assert [len(axis.images) for axis in figure.axes] == [0, 0, 1, 0]
    assert figure.axes[3].get_title(loc="left") == "second"
    figure.draw_without_rendering()
    picture, grid = (figure.axes[i].get_window_extent() for i in (2, 3))
    assert picture.x1 < grid.x0
    assert grid.y0 < (picture.y0 + picture.y1) / 2 < grid.y1
    assert len(routes_figure(space, rows, ["first", "second"], images=[None] * 2).axes) == 2
    with pytest.raises(ValueError, match="images, got 1"):
        routes_figure(space, rows, ["first", "second"], images=[image])


def test_small_multiples_and_wrong_shapes():
    space = RoutingSpace.build(3, 2)
    rows = np.zeros((2, space.activation_size))
    rows[1, KEEP] = 1
    figure = routes_figure(space, rows, ["first", "second"])
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["first", "second"]
    assert [number_of_open_lines(figure, i) for i in (0, 1)] == [0, 1]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["stride 4", "stride 8"]
    with pytest.raises(ValueError, match="length 18"):
        route_figure(space, np.zeros(3))
    with pytest.raises(ValueError, match="titles"):
        routes_figure(space, rows, ["one"])
    with pytest.raises(ValueError, match="reached"):
        route_figure(space, rows[0], np.zeros(2, dtype=bool))
    with pytest.raises(ValueError, match="expected activations"):
        reached_from_gates(space, rows)
