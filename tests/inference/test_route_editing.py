import pytest
import torch
from planned import pictures, routed_network

from divdr.inference import InferencePlan, Route
from divdr.routing import RoutingSpace

# Layers of 2, 3 and 3 cells: indices 0 and 1; 2 to 4; 5 to 7.
SPACE = RoutingSpace.build(3, 3)


def test_gates_by_name():
    route = Route.open(SPACE, 0.5)
    assert route[0, 4, "down"] == 0.5
    assert route[-1, 4, "keep"] == 0.5
    assert route.opened(1, 16, "up", 0.25)[1, 16, "up"] == 0.25
    assert route.closed(1, 16, "up")[1, 16, "up"] == 0.0
    assert route[1, 16, "up"] == 0.5, "the first route stays as it was"
    assert route.closed(-1, 4, "down").initial.tolist() == [0.0, 0.5, 0.0]
    # Cell 1 of A is layer 0, stride 8, and has all three; cell 7, in the last layer, only keeps.
    assert route.gates[1].tolist() == [0.5, 0.5, 0.5]
    assert route.gates[7].tolist() == [0.0, 0.5, 0.0]


def test_what_an_edit_cuts_off_is_left_out_and_comes_back():
    route = Route.open(SPACE)
    everything = [(0, 4), (0, 8), (1, 4), (1, 8), (1, 16), (2, 4), (2, 8), (2, 16)]
    assert route.cells() == everything
    # Only (0, 8) leads to stride 16 of layer 1; to that of layer 2 so does (1, 8).
    cut = route.closed(0, 8, "down")
    assert cut.cells() == [c for c in everything if c != (1, 16)]
    assert cut.reached.tolist() == [True, True, True, True, False, True, True, True]
    assert cut.activations.view(-1, 3)[4].eq(0).all()
    assert cut.opened(0, 8, "down").activations.equal(route.activations)
    alone = cut.closed(1, 8, "down")
    assert (2, 16) not in alone.cells()


def test_a_closed_cell_passes_on_and_does_not_run():
    route = Route.open(SPACE).closed(1, 8)
    assert (1, 8) not in route.cells()
    assert route.reached.all()
    only = Route.open(SPACE).closed(-1, 4, "down").closed(0, 4).closed(1, 4)
    assert only.cells() == [(2, 4)]


def test_names_that_do_not_exist_are_refused():
    route = Route.open(SPACE)
    with pytest.raises(KeyError, match="no cell of stride 16 in layer 0"):
        route[0, 16, "keep"]
    with pytest.raises(KeyError, match="no 'up'; it has keep, down"):
        route.opened(0, 4, "up")
    with pytest.raises(KeyError, match="it has keep"):
        route.closed(2, 8, "down")
    with pytest.raises(KeyError, match="sideways"):
        route[0, 4, "sideways"]
    for value in (0.0, 1.5):
        with pytest.raises(ValueError, match="at most 1"):
            route.opened(0, 4, "keep", value)


def test_the_route_of_an_image_runs_what_the_image_ran():
    network = routed_network(5, 4)
    plan = InferencePlan(network)
    batch = pictures(3)
    _, record = plan(batch)
    for image in range(3):
        route = Route.of(network.space, record, image)
        assert route.reached.equal(record.reached[image])
        assert torch.allclose(route.activations.double(), record.activations[image], atol=1e-6)
        cost = route.real_cost(network, *batch.shape[-2:], gates=True)
        assert cost == pytest.approx(float(record.real_cost[image]), rel=1e-6)
        again = plan(batch[image : image + 1], route)[1]
        fixed = route.real_cost(network, *batch.shape[-2:])
        assert fixed == pytest.approx(float(again.real_cost), rel=1e-6)
        assert fixed < cost
        assert again.reached[0].equal(route.reached)
    with pytest.raises(ValueError, match="the record has"):
        Route.of(SPACE, record)
