import pytest
import torch
from planned import fix_gates, pictures, routed_network, same_maps, same_record

from divdr.inference import InferencePlan, Route
from divdr.inference.cell_plan import GatePlan


def taken(network, batch):
    with torch.no_grad():
        return network(batch)[1]


@pytest.mark.parametrize("reach", ["open", "published"])
@pytest.mark.parametrize("gate", ["small", "none"])
def test_a_route_for_each_image_equals_the_network(reach, gate):
    network = routed_network(5, 4, reach=reach, gate=gate)
    batch = pictures(4)
    routes = taken(routed_network(5, 4, seed=2), pictures(4, seed=8)).activations
    routes[1] = 0
    maps, record = InferencePlan(network)(batch, routes)
    with torch.no_grad():
        wanted, routing = network(batch, routes)
    same_maps(maps, wanted)
    assert record.activations.equal(routing.activations)
    assert record.reached.equal(routing.reached)
    assert record.initial.allclose(routing.initial)
    assert record.expected_cost.allclose(routing.expected_cost)
    if gate == "none":
        assert record.real_cost.equal(routing.real_cost)


def test_one_route_serves_all_images():
    network = routed_network(4, 3)
    batch = pictures(3)
    route = taken(network, batch).activations[1]
    plan = InferencePlan(network)
    wanted, routing = plan(batch, route.expand(3, -1))
    for given in (route, route[None]):
        maps, record = plan(batch, given)
        same_maps(maps, wanted)
        same_record(record, routing)


def test_gates_do_not_run_and_are_not_counted(monkeypatch):
    network = routed_network(4, 3)
    batch = pictures(2)
    plan = InferencePlan(network)
    routing = taken(network, batch)
    ran = []
    decide = GatePlan.__call__
    monkeypatch.setattr(GatePlan, "__call__", lambda gate, x: ran.append(1) or decide(gate, x))
    record = plan(batch, routing.activations)[1]
    assert len(ran) == 1, "the initial cell decides for itself"
    assert record.logits.eq(0).all()
    from divdr.routing import cost_table

    table = cost_table(network, *batch.shape[-2:])
    for image in range(2):
        gates = sum(c.gate for c, r in zip(table.cells, routing.reached[image], strict=True) if r)
        wanted = float(routing.real_cost[image]) - gates
        assert float(record.real_cost[image]) == pytest.approx(wanted, rel=1e-5)
    ran.clear()
    record = plan(batch, Route.of(network.space, routing, 1))[1]
    assert ran == []
    wanted -= table.initial.gate
    assert record.real_cost.tolist() == pytest.approx([wanted] * 2, rel=1e-5)


def test_a_route_object_decides_for_the_initial_cell_too():
    network = routed_network(3, 3, gate="full")
    batch = pictures(2)
    route = Route.open(network.space, 0.7).closed(-1, 4, "down").closed(1, 8)
    maps, record = InferencePlan(network)(batch, route)
    assert torch.allclose(record.initial, torch.tensor([0.0, 0.7, 0.0]))
    assert not record.reached[:, 1].any()
    fix_gates(network.initial, float(torch.tensor(0.7).double().atanh()), -1.0)
    with torch.no_grad():
        wanted, routing = network(batch, route.activations.expand(2, -1).double())
    same_maps(maps, wanted, 1e-6)
    assert record.reached.equal(routing.reached)


@pytest.mark.parametrize("shape", [(3, 24), (24, 1), (23,), (1, 2, 24)])
def test_routes_of_another_shape_are_refused(shape):
    network = routed_network(3, 3)
    with pytest.raises(ValueError, match=r"a route for 2 images is \(2, 24\)"):
        InferencePlan(network)(pictures(2), torch.ones(shape))
