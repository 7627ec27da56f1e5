"""Networks without what no image uses: the same routes and maps at less cost."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from planned import agrees, fix_gates, pictures, routed_network, same_maps

from divdr.errors import ConfigError, DataError
from divdr.inference import Route, read_route
from divdr.inference.trimming import used_route, weights_on_route
from divdr.routing import DynamicRoutingNetwork, RoutingSpace
from divdr.routing.cost import cost_table
from divdr.routing.gate import GateOptions, StaticGate, constant_bias, open_gates


def trimmed(whole, routing, gate="small", at_mean=False):
    rows = routing.activations, routing.initial, routing.reached
    route = used_route(whole.space, *rows, at_mean=at_mean)
    made = DynamicRoutingNetwork(
        route.restricted(), channels=4, gate=gate, route_gates="decide"
    ).double()
    made.load_state_dict(weights_on_route(whole, made, route))
    return made.eval(), route


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.floats(-1.5, 0.5))
@example(seed=416, shift=-1.0811666901590473)  # constant gates, which look at large maps
def test_the_images_take_the_same_routes_at_less_cost(seed, shift):
    whole = routed_network(4, 3, seed=seed)
    for cell in (whole.initial, *whole.cells()):
        cell.gate.last_bias.data += shift
    batch = pictures(4, 40, 56, seed)
    with torch.no_grad():
        before = whole(batch)[1]
    made, route = trimmed(whole, before)
    after = agrees(made, batch)  # its plan too
    # Routes are kept in single precision: values of constant gates are rounded, by as much as an
    # untrained network then tells from nothing else. It is run with the same values.
    gates = before.activations.unflatten(1, (-1, 3))
    for index, cell in enumerate([whole.initial, *whole.cells()], start=-1):
        if index in route.constant:
            initial = index < 0
            own = before.initial if initial else gates[before.reached[:, index], index]
            value = (route.initial if initial else route.gates[index]).double()
            torch.testing.assert_close(own, value.expand_as(own), rtol=1e-6, atol=1e-7)
            logits = value.clamp(max=1 - 2.0**-24).atanh()[list(cell.node.gated)]
            fix_gates(cell, *torch.where(logits > 0, logits, -1.0).tolist())
    with torch.no_grad():
        maps, rounded = whole(batch)
        same_maps(made(batch)[0], maps)
    assert (rounded.activations > 0).equal(before.activations > 0)
    left = after.activations.double()  # in single precision where no gate is left
    torch.testing.assert_close(left, rounded.activations, rtol=1e-6, atol=1e-9)
    # Every part that is left is used: some image opens it, or passes a cell by it.
    for node, cell in zip(made.space.cells, whole.cells(), strict=True):
        seen, own = before.reached[:, node.index], gates[:, node.index]
        closed = own.sum(1) < 1e-4
        for transform in cell.node.transforms:
            used = bool((seen & ~closed & (own[:, transform] > 0)).any())
            used |= transform == 1 and bool((seen & closed).any())
            assert (transform in node.transforms) == used, (node, transform)
        assert node.bare == (bool(seen.any()) and bool(closed[seen].all()) and 1 in cell.node.gated)
    # What it saves are gates alone: all of cells that never decide, rows of the others.
    saved = torch.zeros(len(batch))
    tables = [cost_table(network, 40, 56) for network in (whole, made)]
    for index in range(whole.space.num_cells):
        one, other = (table.cells[index].gate for table in tables)
        assert other <= one
        saved += before.reached[:, index] * (one - other)
    saved += tables[0].initial.gate - tables[1].initial.gate
    torch.testing.assert_close(
        before.real_cost - after.real_cost, saved.to(before.real_cost), rtol=1e-4, atol=4
    )
    count = [sum(p.numel() for p in network.parameters()) for network in (whole, made)]
    everything = Route.open(whole.space).restricted() == route.restricted()
    assert count[1] == count[0] if everything else count[1] < count[0]


def test_a_cell_that_some_images_pass_keeps_its_keep():
    space = RoutingSpace.build(2, 2)
    gates = torch.zeros(2, space.num_cells, 3)
    gates[:, 0, 2] = 0.5  # layer 0, stride 4: both go down,
    gates[0, 1, 0] = 0.25  # stride 8: one goes up, the other passes
    gates[:, 3, 1] = torch.tensor([5e-5, 0.0])  # layer 1, stride 8: closed, by a hair
    gates[0, 2, 1] = 0.5  # layer 1, stride 4
    initial = torch.tensor([[0.0, 0.5, 0.5]]).repeat(2, 1)
    reached = torch.tensor([[True, True, True, True], [True, True, False, True]])
    route = used_route(space, gates.flatten(1), initial, reached)
    assert route.gates.tolist() == [[0, 0, 0.5], [0.25, 0.25, 0], [0, 0.5, 0], [0, 0, 0]]
    nodes = route.restricted().cells
    assert [node.transforms for node in nodes] == [(2,), (0, 1), (1,), (1,)]
    assert [node.bare for node in nodes] == [False, False, False, True]
    with pytest.raises(ConfigError, match="no image"):
        used_route(space, torch.zeros(0, 12), torch.zeros(0, 3), torch.zeros(0, 4).bool())


def test_gates_that_say_the_same_of_every_image_become_numbers():
    whole = routed_network(4, 3, seed=3)
    fix_gates(whole.layers[1][0], 0.3, 9.0)
    fix_gates(whole.layers[2][1], 0.5, -1.0, 20.0)  # tanh(20) is 1 in any precision
    batch = pictures(4, 40, 56, 2)
    with torch.no_grad():
        maps, before = whole(batch)
    fixed = [whole.layers[1][0].node, whole.layers[2][1].node]
    assert all(before.reached[:, node.index].sum() > 1 for node in fixed)
    made, route = trimmed(whole, before)
    assert route.constant >= {node.index for node in fixed}
    assert route.restricted().layers[2][1].transforms == (0, 2)
    gates = made.layers[2][1].gate, made.layers[1][0].gate
    assert all(isinstance(gate, StaticGate) for gate in gates)
    assert open_gates(gates[0].bias).tolist() == pytest.approx([math.tanh(0.5), 1.0])
    after = agrees(made, batch, 1e-6)
    with torch.no_grad():
        same_maps(made(batch)[0], maps, 1e-6)
    torch.testing.assert_close(after.activations, before.activations, rtol=1e-6, atol=1e-7)
    # Gates that look at nothing cost nothing.
    table = cost_table(made, 40, 56)
    assert all(table.cells[node.index].gate == 0 for node in fixed)
    assert not any(f"layers.1.0.gate.{end}" in made.state_dict() for end in ("reduce", "predict"))


def test_gates_that_are_always_open_become_their_mean_when_asked():
    whole = routed_network(4, 3, seed=5, shift=2.0)
    batch = pictures(5, 40, 56, 2)
    with torch.no_grad():
        _, before = whole(batch)
    made, route = trimmed(whole, before, at_mean=True)
    exact = trimmed(whole, before)[1].constant
    gates = before.activations.unflatten(1, (-1, 3))
    wanted = set()
    for node in whole.space.cells:
        own = gates[before.reached[:, node.index], node.index]  # of the images that come there
        if len(own) and all((row > 0).equal(own[0] > 0) for row in own) and own[0].sum() > 1e-4:
            wanted.add(node.index)
            gate = list(made.cells())[node.index].gate
            values = own.mean(0)[list(made.space.cells[node.index].gated)]
            torch.testing.assert_close(open_gates(gate.bias), values.double(), rtol=1e-5, atol=0)
    assert len(wanted) > len(exact)
    assert route.constant - {-1} == wanted
    after = agrees(made, batch, 1e-6)
    own = after.activations.unflatten(1, (-1, 3))[:, sorted(wanted)]
    reached = after.reached[:, sorted(wanted)]
    for column in range(own.shape[1]):
        assert len(own[reached[:, column], column].unique(dim=0)) <= 1


@pytest.mark.parametrize(
    ("stays_open", "floor", "least"), [(False, 0.0, 0.011), (True, 0.0, 0.011), (False, 0.25, 0.25)]
)
def test_a_gate_that_looks_at_nothing_has_the_values_it_is_given(stays_open, floor, least):
    gate = StaticGate(4, GateOptions("static", 0.0, stays_open, floor)).double()
    values = torch.tensor([least, 0.3, 0.9, 1.0])
    gate.bias.data = constant_bias(values, gate)
    found = open_gates(gate(torch.zeros(2, 1, 1, 1)))
    for row in found.tolist():
        assert row == pytest.approx(values.tolist(), rel=1e-6)


def test_one_image_makes_nothing_constant_and_files_say_what_is(tmp_path):
    space = RoutingSpace.build(2, 2)
    gates = torch.zeros(1, space.num_cells, 3)
    gates[:, :, 1] = 0.5
    initial, reached = torch.tensor([[0.0, 0.5, 0.5]]), torch.ones(1, 4, dtype=torch.bool)
    assert used_route(space, gates.flatten(1), initial, reached).constant == frozenset()
    twice = (part.repeat(2, *[1] * (part.dim() - 1)) for part in (gates, initial, reached))
    gates, initial, reached = twice
    gates[1, 2, 1] = 0.25
    route = used_route(space, gates.flatten(1), initial, reached)
    assert route.constant == {-1, 0, 1, 3}
    route.write(tmp_path / "route.json")
    assert read_route(tmp_path / "route.json", space).constant == route.constant
    text = (tmp_path / "route.json").read_text()
    (tmp_path / "route.json").write_text(text.replace("[-1, 0, 1, 3]", "[4]"))
    with pytest.raises(DataError, match=r"cells that do not exist: \[4\]"):
        read_route(tmp_path / "route.json", space)


def test_gates_on_a_route_may_decide():
    route = Route.open(RoutingSpace.build(3, 3)).closed(1, 8)
    batch = pictures(3, 40, 56, 1)
    made = DynamicRoutingNetwork(route.restricted(), channels=4, route_gates="decide").double()
    for cell in made.cells():
        if cell.gate is not None:
            fix_gates(cell, *[-9.0] * len(cell.node.gated))
    routing = agrees(made.eval(), batch)
    assert not routing.activations.any()
    assert not made.stays_open
    with pytest.raises(ConfigError, match="route_gates"):
        DynamicRoutingNetwork(route.restricted(), channels=4, route_gates="closed")
