import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from divdr.errors import ConfigError
from divdr.routing import DOWN, KEEP, UP, RoutingSpace
from divdr.routing.ops import Stem

LAYER17 = [2, 3] + [4] * 14 + [5]


@pytest.mark.parametrize(
    ("layers", "scales_per_layer", "cells", "activations"),
    [(16, (), 61, 183), (17, LAYER17, 66, 198), (33, (), 129, 387)],
)
def test_sizes_of_the_published_spaces(layers, scales_per_layer, cells, activations):
    space = RoutingSpace.build(layers, 4, scales_per_layer)
    assert space.num_cells == cells
    assert space.activation_size == activations
    assert len(space.cells) == cells


def test_transforms_of_a_small_space():
    # Layers of 2, 3 and 3 cells. Layer 0: stride 4 keeps or goes down, stride 8 does all three
    # (stride 16 exists in layer 1). Layer 1: stride 16 has nothing coarser. Layer 2 only keeps.
    space = RoutingSpace.build(3, 3)
    first, second, last = space.layers
    assert [node.transforms for node in first] == [(KEEP, DOWN), (UP, KEEP, DOWN)]
    assert [node.transforms for node in second] == [(KEEP, DOWN), (UP, KEEP, DOWN), (UP, KEEP)]
    assert [node.transforms for node in last] == [(KEEP,)] * 3
    assert space.initial.transforms == (KEEP, DOWN)
    assert second[1].index == 3  # after both cells of layer 0 and the finest of layer 1


@st.composite
def _spaces(draw):
    counts, previous = [], 1
    for _ in range(draw(st.integers(1, 7))):
        previous = draw(st.integers(max(1, previous - 1), min(5, previous + 1)))
        counts.append(previous)
    return RoutingSpace(tuple(counts))


@given(_spaces())
def test_edges_lead_to_cells_and_every_cell_has_one(space):
    for layer, following in zip(space.layers, [*space.layers[1:], None], strict=True):
        led_to = {node.target_scale(t) for node in layer for t in node.transforms}
        if following is None:
            assert all(node.transforms == (KEEP,) for node in layer)
        else:
            assert led_to == {node.scale for node in following}
            assert all(node.transforms for node in layer)
    assert [node.index for node in space.cells] == list(range(space.num_cells))


@given(st.integers(3, 200), st.integers(3, 200))
def test_map_sizes_are_those_of_the_stem(height, width):
    stem = Stem(3, 2, torch.nn.Identity, inner=2)
    with torch.no_grad():
        shape = stem(torch.zeros(1, 3, height, width)).shape[-2:]
        assert RoutingSpace.build(3, 3).map_sizes(height, width)[0] == tuple(shape)
        halved = torch.nn.functional.conv2d(
            torch.zeros(1, 1, *shape), torch.zeros(1, 1, 1, 1), stride=2
        )
    assert RoutingSpace.build(3, 3).map_sizes(height, width)[1] == tuple(halved.shape[-2:])


@pytest.mark.parametrize("counts", [(), (0,), (3,), (2, 4), (2, 3, -1)])
def test_impossible_spaces_are_refused(counts):
    with pytest.raises(ConfigError):
        RoutingSpace(tuple(counts))


@pytest.mark.parametrize("counts", [(2, 3, 1), (2, 3, 3, 1), (2, 3, 4, 2, 3)])
def test_a_cell_that_leads_nowhere_is_refused(counts):
    layer = next(i for i in range(len(counts) - 1) if counts[i + 1] < counts[i] - 1)
    message = f"layer {layer + 1} has {counts[layer + 1]} scales .* {counts[layer]}: .* nowhere"
    with pytest.raises(ConfigError, match=message):
        RoutingSpace(counts)
    RoutingSpace((2, 3, 2, 1))  # one at a time is well


def test_too_small_an_image_is_refused():
    with pytest.raises(ValueError, match="2×9"):
        RoutingSpace.build(2, 2).map_sizes(2, 9)
