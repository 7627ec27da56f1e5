"""Static networks beside routed ones: gates that look at nothing, networks of one route, widths."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planned import agrees, pictures, routed_network, same_maps

from divdr.errors import ConfigError, DataError
from divdr.inference import InferencePlan, Route, StaticNetwork, read_route
from divdr.inference.controls import (
    chains_route,
    majority_route,
    random_route,
    real_share,
    route_of_share,
    width_of_cost,
)
from divdr.inference.trimming import weights_on_route
from divdr.routing import DynamicRoutingNetwork, RoutingSpace
from divdr.routing.cost import cost_table


def some_route(space: RoutingSpace, seed: int, share: float) -> Route:
    """A route with each gate open by chance; at least one cell of the last layer is reached."""
    generator = torch.Generator().manual_seed(seed)
    route = Route.open(space)
    while True:
        keep = torch.rand(route.gates.shape, generator=generator) < share
        first = torch.rand(3, generator=generator) < share
        found = Route(space, route.gates * keep, route.initial * first)
        if found.reached[-space.out_scales :].any():
            return found


def on_route(network: DynamicRoutingNetwork, route: Route, **options) -> DynamicRoutingNetwork:
    """A network of the route alone, with the weights of a whole one."""
    made = DynamicRoutingNetwork(route.restricted(), channels=4, **options).double().eval()
    whole = network.state_dict()
    kept = {k: whole[k] for k in made.state_dict() if ".gate." not in k and k[:4] != "gate"}
    missing, unexpected = made.load_state_dict(kept, strict=False)
    assert not unexpected
    assert all(".gate." in name for name in missing)
    return made


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.3, 1.0))
def test_a_network_of_a_route_is_what_that_route_makes_of_the_whole_one(seed, share):
    whole = routed_network(4, 3, seed=seed)
    route = some_route(whole.space, seed, share)
    batch = pictures(3, 40, 56, seed)
    made = on_route(whole, route, gate="none")
    routing = agrees(made, batch)
    with torch.no_grad():
        same_maps(made(batch)[0], StaticNetwork(whole, route)(batch))
    same_maps(made(batch)[0], InferencePlan(whole)(batch, route)[0])
    assert routing.activations[0].equal(route.activations.to(routing.activations))
    assert routing.reached[0].equal(route.reached)
    assert float(routing.real_cost[0]) == pytest.approx(route.real_cost(whole, 40, 56))
    assert routing.full_real_cost == pytest.approx(float(routing.real_cost[0]))


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    share=st.floats(0.3, 1.0),
    gate=st.sampled_from(["small", "full", "static"]),
    shift=st.floats(-30.0, 1.0),
)
def test_gates_on_a_route_say_how_far_and_never_whether(seed, share, gate, shift):
    whole = routed_network(4, 3, seed=seed)
    route = some_route(whole.space, seed, share)
    made = on_route(whole, route, gate=gate)
    for cell in (made.initial, *made.cells()):
        if cell.gate is not None:
            cell.gate.last_bias.data.fill_(shift)
    routing = agrees(made, pictures(3, 40, 56, seed))
    assert ((routing.activations > 0) == (route.activations > 0)).all()
    assert (routing.activations.unflatten(1, (-1, 3)).sum(2)[:, :] != 0).any() or share < 1
    assert len(routing.real_cost.unique()) == 1


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.3, 1.0))
def test_a_network_fixed_to_a_route_is_the_network_of_that_route(seed, share):
    whole = routed_network(4, 3, seed=seed)
    route = some_route(whole.space, seed, share)
    batch = pictures(3, 40, 56, seed)
    with torch.no_grad():
        before = whole(batch)[0]
    made = DynamicRoutingNetwork(route.restricted(), channels=4).double().eval()
    made.load_state_dict(weights_on_route(whole, made, route))

    whole.fix_route(route.gates > 0, route.initial > 0)

    assert whole.stays_open
    routing = agrees(whole, batch)  # plans as well
    with torch.no_grad():
        same_maps(whole(batch)[0], made(batch)[0])
    reached = route.reached[:, None]
    for row in routing.activations.view(3, -1, 3):
        assert ((row > 0) == ((route.gates > 0) & reached)).all()
    assert float(routing.real_cost.std()) == 0.0
    with pytest.raises(ConfigError, match="one cost"):
        whole.set_gate_threshold(0.1)
    opened, initial = whole.fixed_route
    assert opened.equal(route.gates > 0)
    assert initial.equal(route.initial > 0)
    whole.fix_route(None)
    with torch.no_grad():
        same_maps(whole(batch)[0], before)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.1, 0.9))
def test_a_route_of_a_share_is_the_nearest_of_those_that_most_open(seed, share):
    network = routed_network(4, 3, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    every = Route.open(network.space)
    opened = torch.rand(every.gates.shape, generator=generator) * every.gates
    initial = torch.rand(3, generator=generator) * every.initial

    found = route_of_share(network, opened.flatten(), initial, (40, 56), share)

    table = cost_table(network, 40, 56)
    full = every.real_cost(network, 40, 56, gates=True)
    off = []
    for threshold in [0.0, *opened.flatten().tolist()]:
        first = (initial > min(threshold, float(initial.max()) / 2)).float()
        one = Route(network.space, (opened > threshold).float(), first)
        if one.reached[-3:].any():
            spent = one.real_cost(network, 40, 56, gates=True) - table.stem
            off.append(abs(spent / (full - table.stem) - share))
    assert abs(real_share(network, found, (40, 56)) - share) == pytest.approx(min(off), abs=1e-6)
    assert found.reached[-3:].any()


def test_parts_off_a_route_are_not_built():
    space = RoutingSpace.build(3, 3)
    route = Route.open(space).closed(0, 8).closed(1, 4, "down").closed(-1, 4, "down")
    made = DynamicRoutingNetwork(route.restricted(), channels=4, gate="small")
    names = {
        name.split(".", 3)[1] + "." + name.split(".", 3)[2]
        for name in made.state_dict()
        if name.startswith("layers.")
    }
    # Layer 0's coarser cell is not reached, so that only stride 4 goes down to layer 1's stride 8.
    assert "0.0" in names
    assert "0.1" not in names
    assert {"1.0", "1.1"} <= names
    assert "1.2" not in names
    assert not [n for n in made.state_dict() if n.startswith("layers.1.0.changes.down")]


def test_a_closed_cell_on_a_route_passes_on_and_has_no_weights():
    space = RoutingSpace.build(3, 2)
    route = Route.open(space).closed(1, 4)
    made = DynamicRoutingNetwork(route.restricted(), channels=4, gate="static").double()
    assert not list(made.layers[1][0].parameters())
    for mode in (True, False):
        made.train(mode)
        maps, routing = made(pictures(2))
        assert routing.reached.all()
        assert routing.activations.unflatten(1, (-1, 3))[:, 2].eq(0).all()
        assert len(maps) == 2
    sum(m.sum() for m in maps).backward()
    assert all(p.grad is not None for p in made.parameters())


def test_static_gates_are_one_number_a_transform_and_free():
    space = RoutingSpace.build(3, 2)
    made = DynamicRoutingNetwork(space, channels=4, gate="static")
    names = [n for n in made.state_dict() if "gate" in n]
    assert "initial.gate.bias" in names
    assert all(n.endswith(".gate.bias") for n in names)
    assert made.layers[0][0].gate.bias.tolist() == [1.5] * 2  # keep and down
    gateless = DynamicRoutingNetwork(space, channels=4, gate="none")
    one, other = (cost_table(n, 32, 64).tensors("cpu") for n in (made, gateless))
    assert one.full_real_cost == other.full_real_cost
    made.eval()
    _, routing = made(pictures(5).float())
    assert (routing.activations == routing.activations[0]).all()
    assert routing.activations[0, 1].item() == pytest.approx(0.9051483)  # tanh(1.5)


def test_static_gates_learn_from_loss_and_cost():
    made = DynamicRoutingNetwork(RoutingSpace.build(3, 2), channels=4, gate="static")
    made.train()
    _, routing = made(pictures(2).float())
    made.steerable_cost(routing, 1.0).mean().backward()
    grad = made.layers[1][1].gate.bias.grad
    assert (grad > 0).all()  # a higher logit costs more


@pytest.mark.parametrize("gflops", [0.0009, 0.0012, 0.0015])
def test_random_routes_cost_what_is_asked_for_and_lead_somewhere(gflops):
    space = RoutingSpace.build(5, 3)
    network = DynamicRoutingNetwork(space, channels=8, stem_channels=4, gate="none")
    found = [random_route(network, gflops, (64, 96), seed=s, tolerance=0.02) for s in range(6)]
    for route in found:
        made = DynamicRoutingNetwork(
            route.restricted(), channels=8, stem_channels=4, gate="none"
        ).eval()
        x = torch.randn(1, 3, 64, 96)
        _, routing = made(x)
        assert float(routing.real_cost) / 1e9 == pytest.approx(gflops, rel=0.02)
        assert route.reached[-space.out_scales :].all()
        # Nothing leads nowhere: every part of it has a gradient from the outputs.
        made.train()
        sum(m.square().sum() for m in made(x.repeat(2, 1, 1, 1))[0]).backward()
        assert all(p.grad is not None for p in made.parameters())
    again = random_route(network, gflops, (64, 96), seed=0, tolerance=0.02)
    assert again.gates.equal(found[0].gates)
    assert any(not r.gates.equal(found[0].gates) for r in found[1:])


def test_a_cost_without_a_route_is_refused():
    network = DynamicRoutingNetwork(RoutingSpace.build(3, 2), channels=4, gate="none")
    with pytest.raises(ConfigError, match="no route that leads to all outputs costs 9"):
        random_route(network, 9.0, (32, 64))


def test_the_majority_opens_what_most_images_open():
    network = routed_network(4, 3, shift=0.2)
    with torch.no_grad():
        _, routing = network(pictures(9))
    route = majority_route(network, routing.activations, routing.initial, (48, 64), threshold=0.5)
    opened = (routing.activations > 0).sum(dim=0) > 4.5
    assert ((route.activations > 0) <= opened).all()
    inside = route.reached.repeat_interleave(3)
    assert ((route.activations > 0) == (opened & inside)).all()
    assert set(route.gates.unique().tolist()) <= {0.0, 1.0}


def test_the_majority_is_taken_where_its_cost_is_the_images_mean():
    network = routed_network(4, 3, shift=0.2)
    with torch.no_grad():
        _, routing = network(pictures(9))
    found = majority_route(network, routing.activations, routing.initial, (48, 64))
    free = cost_table(network, 48, 64).without_gates().tensors("cpu")
    gates = routing.activations.unflatten(1, (-1, 3))
    aim = float(free.real(gates, routing.initial, routing.reached).mean())
    off = abs(found.real_cost(network, 48, 64) - aim)
    for share in torch.arange(9) / 9 + 1e-6:
        other = majority_route(
            network, routing.activations, routing.initial, (48, 64), threshold=float(share)
        )
        assert off <= abs(other.real_cost(network, 48, 64) - aim) + 1e-3


@pytest.mark.parametrize("gflops", [0.002, 0.011, 0.05])
def test_a_width_costs_what_is_asked_for(gflops):
    space = RoutingSpace.build(4, 3)

    def build(channels: int, stem: int) -> DynamicRoutingNetwork:
        return DynamicRoutingNetwork(space, channels=channels, stem_channels=stem, gate="none")

    width = width_of_cost(build, gflops, (64, 128), channels=32, stem_channels=16)
    made = build(width.channels, width.stem_channels).eval()
    _, routing = made(torch.zeros(1, 3, 64, 128))
    assert float(routing.real_cost) / 1e9 == pytest.approx(width.gflops)
    # No even number of channels is nearer, with the stem in proportion.
    for channels in range(2, 80, 2):
        stem = max(4, round(channels / 2))
        other = cost_table(build(channels, stem), 64, 128).tensors("cpu").full_real_cost / 1e9
        assert abs(width.gflops - gflops) <= max(abs(other - gflops), 0.01 * gflops)


def test_routes_are_written_and_read(tmp_path):
    space = RoutingSpace.build(4, 3)
    route = some_route(space, 3, 0.7).opened(0, 4, "keep", 0.123456789)
    route.write(tmp_path / "route.json")
    again = read_route(tmp_path / "route.json", space)
    assert torch.allclose(again.activations, route.activations, rtol=1e-6)
    assert again.restricted() == route.restricted()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gates": [[0, 1]]}, "needs 3 gates for each of 4 cells"),
        ({"scales_per_layer": [1, 2]}, r"layers of \[1, 2\] cells"),
        ({"initial": [1, 0, 0]}, "opens 'up' of the cell of stride 4 in layer -1"),
        ({"initial": [0, 2, 0]}, "a gate of 2.0"),
        ({"gates": None}, "holds no route"),
        ({"initial": [0, 0, 1], "gates": [[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]}, None),
    ],
)
def test_files_that_are_no_route_of_the_space_are_named(tmp_path, change, message):
    space = RoutingSpace.build(2, 2)
    path = tmp_path / "route.json"
    Route.open(space).write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    if message is None:
        read_route(path, space)
        return
    with pytest.raises(DataError, match=message):
        read_route(path, space)


def test_a_route_that_ends_early_is_refused(tmp_path):
    # Stride 8's cell of layer 0 goes nowhere, and has no keep to pass on by.
    space = RoutingSpace((2, 1))
    route = Route.open(space).closed(0, 8).closed(-1, 4, "keep")
    route.write(tmp_path / "route.json")
    with pytest.raises(DataError, match="leads to no cell of the last layer"):
        read_route(tmp_path / "route.json", space)


def test_what_a_route_cannot_be_combined_with():
    space = Route.open(RoutingSpace.build(2, 2)).restricted()
    with pytest.raises(ConfigError, match=r"MODEL\.ROUTING\.REACH"):
        DynamicRoutingNetwork(space, channels=4, reach="published")


def chains_by_hand(space: RoutingSpace, chains: int, last: int) -> Route:
    """Chains at strides 4, 8, ..., the coarsest from the layer ``last`` on, drawn gate by gate."""
    none = torch.zeros(3)
    route = Route(space, torch.zeros(space.num_cells, 3), none.clone())
    route.initial[1] = 1.0
    middle = (space.num_layers - 1) // 2
    running = []
    for number in range(chains):
        first = max(0, number - 1) if number < chains - 1 or number == 0 else last
        running.append(first)
        stride = 4 * 2**number
        for layer in range(first, space.num_layers):
            route = route.opened(layer, stride, "keep")
        if number and first == 0:
            route.initial[2] = 1.0
        elif number:
            route = route.opened(first - 1, stride // 2, "down")
        if number and first <= middle:
            route = route.opened(middle, stride // 2, "down").opened(middle, stride, "up")
    return route


@settings(max_examples=25, deadline=None)
@given(data=st.data(), layers=st.integers(3, 9), scales=st.integers(1, 4))
def test_chains_are_those_that_a_person_would_draw(data, layers, scales):
    network = routed_network(layers, scales, gate="none")
    chains = data.draw(st.integers(1, network.space.out_scales))
    last = data.draw(st.integers(max(0, chains - 2), layers - 1)) if chains > 1 else 0
    wanted = chains_by_hand(network.space, chains, last)
    size = (64, 128)
    found = chains_route(network, wanted.real_cost(network, *size) / 1e9, size, chains=chains)
    assert found.gates.equal(wanted.gates)
    assert found.initial.equal(wanted.initial)
    assert found.reached[-network.space.out_scales :][:chains].all()
    with pytest.raises(ConfigError, match=f"the space has {network.space.out_scales} strides"):
        chains_route(network, 1.0, size, chains=network.space.out_scales + 1)
