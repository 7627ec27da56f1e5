import copy

import pytest
import torch
from planned import pictures, routed_network, same_maps
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from divdr.errors import ConfigError
from divdr.inference import Dispatcher, DispatchPlan, Route, StaticNetwork, vote
from divdr.routing import RoutingSpace, cost_table

LAYERS = 2


def prefix(network) -> int:
    """Cells of the first layers."""
    return sum(network.space.scales_per_layer[:LAYERS])


def three_experts(network, batch, routing):
    """Experts of two images each, a dispatcher, and what it picks for every image."""
    experts = torch.tensor([0, 1, 2, 0, 1, 2])
    networks = []
    for k in range(3):
        members = experts == k
        route = vote(network.space, routing.activations[members], routing.initial[members], 0.4)
        networks.append(StaticNetwork(network, route))
    dispatcher = Dispatcher.fit(network.space, routing.activations, experts, 3, LAYERS)
    picked = dispatcher.pick(routing.activations)
    assert len(picked.unique()) == 3
    return networks, dispatcher, picked


def taken(network, batch):
    with torch.no_grad():
        return network(batch)[1]


def expected_route(network, routing, networks, experts):
    """Each image's own gates in the first layers, its expert's in the others."""
    rows = routing.activations.clone()
    for image, k in enumerate(experts.tolist()):
        rows[image, 3 * prefix(network) :] = networks[k].route.activations[3 * prefix(network) :]
    return rows


@pytest.mark.parametrize("gates", ["after", "before"])
def test_each_image_goes_on_as_its_expert_does(gates):
    network = routed_network(5, 4)
    batch = pictures(6)
    routing = taken(network, batch)
    networks, dispatcher, experts = three_experts(network, batch, routing)
    if gates == "before":
        dispatcher = Dispatcher.fit(network.space, routing.logits, experts, 3, LAYERS)
        experts = dispatcher.pick(routing.logits)
    maps, record = DispatchPlan(network, networks, dispatcher, gates=gates)(batch)
    route = expected_route(network, routing, networks, experts)
    with torch.no_grad():
        wanted, followed = network(batch, route)
    same_maps(maps, wanted)
    assert torch.allclose(record.activations, followed.activations)
    assert record.reached.equal(followed.reached)
    assert not (record.activations[0] == record.activations[1]).all()


def test_one_image_and_any_order_give_the_same():
    network = routed_network(5, 4)
    batch = pictures(6)
    routing = taken(network, batch)
    networks, dispatcher, _ = three_experts(network, batch, routing)
    plan = DispatchPlan(network, networks, dispatcher)
    together, record = plan(batch)
    order = torch.tensor([5, 0, 3, 1])
    same_maps(plan(batch[order])[0], [m[order] for m in together])
    for image in range(6):
        alone, one = plan(batch[image : image + 1])
        same_maps(alone, [m[image : image + 1] for m in together])
        assert one.real_cost[0] == record.real_cost[image]


def test_experts_have_weights_of_their_own_behind_the_shared_layers():
    network = routed_network(5, 4)
    batch = pictures(6)
    routing = taken(network, batch)
    networks, dispatcher, experts = three_experts(network, batch, routing)
    with torch.no_grad():
        for k, static in enumerate(networks):
            for cell in static.cells():
                for p in cell.parameters():
                    p.mul_(1 + 0.1 * (k + 1))
    maps, _ = DispatchPlan(network, networks, dispatcher)(batch)
    route = expected_route(network, routing, networks, experts)
    for image, k in enumerate(experts.tolist()):
        other = copy.deepcopy(network)
        state = {
            name: value
            for name, value in networks[k].state_dict().items()
            if name.startswith("layers.") and int(name.split(".")[1]) >= LAYERS
        }
        assert state
        other.load_state_dict(state, strict=False)
        with torch.no_grad():
            # The other network's own gates must not matter, nor do they: the route is given.
            wanted, _ = other(batch[image : image + 1], route[image : image + 1])
        same_maps([m[image : image + 1] for m in maps], wanted)


def test_cost_counts_the_gates_of_the_shared_layers():
    network = routed_network(5, 4)
    batch = pictures(6)
    routing = taken(network, batch)
    networks, dispatcher, experts = three_experts(network, batch, routing)
    record = DispatchPlan(network, networks, dispatcher)(batch)[1]
    table = cost_table(network, *batch.shape[-2:])
    route = expected_route(network, routing, networks, experts).unflatten(1, (-1, 3))
    for image in range(6):
        total = table.stem + table.initial.gate + table.initial.cell
        total += sum(
            cost
            for cost, gate in zip(table.initial.transforms, routing.initial[image], strict=True)
            if gate > 0
        )
        for index, cell in enumerate(table.cells):
            if not record.reached[image, index]:
                continue
            total += cell.gate if index < prefix(network) else 0.0
            if route[image, index].sum() >= 1e-4:
                total += cell.cell
                total += sum(
                    cost
                    for cost, gate in zip(cell.transforms, route[image, index], strict=True)
                    if gate > 0
                )
        assert float(record.real_cost[image]) == pytest.approx(total, rel=1e-6)


def test_no_images():
    network = routed_network(5, 4)
    networks, dispatcher, _ = three_experts(network, pictures(6), taken(network, pictures(6)))
    maps, record = DispatchPlan(network, networks, dispatcher)(pictures(0))
    assert [len(m) for m in maps] == [0, 0, 0, 0]
    assert maps[2].shape[1] == 16
    assert record.activations.shape == (0, network.space.activation_size)


def test_the_dispatcher_is_scikit_learns_classifier():
    generator = torch.Generator().manual_seed(0)
    space = RoutingSpace.build(4, 3)
    values = torch.rand(60, space.activation_size, generator=generator)
    experts = torch.arange(60) % 3
    values[:, 1] += experts * 0.3
    values[:, 4] -= (experts == 1) * 0.4
    for count in (2, 3):
        members = experts < count
        x, labels = values[members], experts[members]
        dispatcher = Dispatcher.fit(space, x, labels, 4, 1)
        seen = x[:, :6].numpy()  # layer 0 has two cells
        scaler = StandardScaler().fit(seen)
        model = LogisticRegression(max_iter=10_000).fit(scaler.transform(seen), labels.numpy())
        wanted = model.predict(scaler.transform(seen))
        assert dispatcher.pick(x).tolist() == wanted.tolist()
        assert 0.5 < (wanted == labels.numpy()).mean() < 1.0
    alone = Dispatcher.fit(space, values[experts == 2], experts[experts == 2], 4, 1)
    assert alone.pick(values).unique().tolist() == [2], "experts without images are never picked"


def test_what_does_not_fit_is_refused():
    network = routed_network(5, 4)
    networks, dispatcher, _ = three_experts(network, pictures(6), taken(network, pictures(6)))
    for layers in (0, 5):
        with pytest.raises(ConfigError, match="looks at 1 to 4 of the 5 layers"):
            Dispatcher.fit(network.space, torch.zeros(2, 51), torch.zeros(2), 2, layers)
    with pytest.raises(ConfigError, match="is for 3 experts"):
        DispatchPlan(network, networks[:2], dispatcher)
    with pytest.raises(ConfigError, match="eval"):
        DispatchPlan(network, [networks[0].train(), *networks[1:]], dispatcher)
    networks[0].eval()
    other = routed_network(4, 4)
    with pytest.raises(ConfigError, match="another routing space"):
        DispatchPlan(network, [StaticNetwork(other, Route.open(other.space))] * 3, dispatcher)
