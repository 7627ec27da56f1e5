import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planned import pictures, routed_network, same_maps

from divdr.inference import InferencePlan, Route, StaticNetwork
from divdr.routing import DynamicRoutingNetwork, RoutingSpace


def some_route(space: RoutingSpace, seed: int, share: float = 0.5) -> Route:
    """Each gate open with a probability, at a value of its own."""
    generator = torch.Generator().manual_seed(seed)
    route = Route.open(space)
    opened = torch.rand(route.gates.shape, generator=generator) < share
    values = torch.rand(route.gates.shape, generator=generator).clamp(min=0.1)
    initial = route.initial * torch.tensor([0.0, 0.7, float(seed % 2)])
    return Route(space, route.gates * opened * values, initial)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999),
    share=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
    height=st.integers(20, 70),
    width=st.integers(20, 70),
)
def test_it_computes_what_the_network_does_on_the_route(seed, share, height, width):
    network = routed_network(4, 4, seed=seed)
    route = some_route(network.space, seed, share)
    static = StaticNetwork(network, route)
    batch = pictures(2, height, width)
    wanted, record = InferencePlan(network)(batch, route)
    with torch.no_grad():
        same_maps(static(batch), wanted)
    planned, own = InferencePlan(static)(batch)
    same_maps(planned, wanted)
    assert own.real_cost.equal(record.real_cost)
    assert own.reached.equal(record.reached)
    assert float(own.real_cost[0]) == pytest.approx(route.real_cost(network, height, width))


def test_only_what_the_route_needs_remains_under_its_old_name():
    network = routed_network(4, 3)
    # Closed: a cell that is reached, one transform of another, and all ways to stride 16.
    route = Route.open(network.space).closed(1, 4).closed(2, 4, "down")
    for layer in range(3):
        route = route.closed(layer, 8, "down")
    static = StaticNetwork(network, route)
    state = static.state_dict()
    whole = network.state_dict()
    assert all(value.equal(whole[name]) for name, value in state.items())
    gone = {name for name in whole if name not in state}
    wanted = {name for name in whole if ".gate." in name}
    wanted |= {name for name in whole if name.startswith("layers.1.0.")}
    wanted |= {name for name in whole if name.startswith("layers.2.0.changes.down.")}
    for layer in range(1, 4):
        wanted |= {name for name in whole if name.startswith(f"layers.{layer}.2.")}
    wanted |= {name for name in whole if ".1.changes.down." in name}
    assert gone == wanted


def test_it_trains_and_leaves_the_network_alone():
    network = routed_network(3, 3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    static = StaticNetwork(network, Route.open(network.space)).train()
    sum(m.square().mean() for m in static(pictures(2))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in static.parameters())
    torch.optim.SGD(static.parameters(), lr=1.0).step()
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())


def test_another_route_is_refused():
    network = routed_network(3, 3)
    plan = InferencePlan(StaticNetwork(network, Route.open(network.space)))
    with pytest.raises(ValueError, match="its own route"):
        plan(pictures(1), torch.ones(network.space.activation_size))


def test_a_space_that_narrows():
    torch.manual_seed(0)
    network = DynamicRoutingNetwork(RoutingSpace((2, 3, 2)), channels=4).double().eval()
    route = Route.open(network.space).closed(1, 16)
    wanted, _ = InferencePlan(network)(pictures(2), route)
    with torch.no_grad():
        same_maps(StaticNetwork(network, route)(pictures(2)), wanted)
