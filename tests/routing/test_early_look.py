"""Routes that one look at the image decides before anything runs, and gates that start by cost."""

import pytest
import torch
from routed import images, mixed_network

from divdr.errors import ConfigError
from divdr.inference import InferencePlan
from divdr.routing import DynamicRoutingNetwork, RoutingSpace
from divdr.routing.cost import cost_table
from divdr.routing.gate import open_gates


def test_images_take_their_own_routes_which_are_known_before_the_stem():
    network = mixed_network(gate="early", shift=0.2)
    batch = images(6)
    with torch.no_grad():
        _, routing = network(batch)
        looked = torch.relu(torch.tanh(network.early(batch))).view(6, -1, 3)
    gates = routing.activations.view(6, -1, 3)
    reached = routing.reached
    assert not (reached == reached[0]).all(), "the images must differ in route"
    assert torch.equal(gates[reached], looked[reached])
    assert gates[~reached].eq(0).all()
    assert routing.logits.view(6, -1, 3)[~reached].eq(0).all()
    exists = torch.zeros_like(gates[0], dtype=torch.bool)
    for node in network.space.cells:
        exists[node.index, list(node.transforms)] = True
    assert looked[:, ~exists].eq(0).all()


def test_the_task_and_the_cost_reach_the_look_and_nothing_else_does_the_deciding():
    network = mixed_network(3, 3, gate="early", shift=1.0).train()
    maps, routing = network(images(4))
    assert all(cell.gate is None for cell in [network.initial, *network.cells()])
    for loss in (sum(m.mean() for m in maps), network.steerable_cost(routing, 1.0).mean() / 1e6):
        network.zero_grad()
        loss.backward(retain_graph=True)
        assert network.early.look[0][0].weight.grad.abs().sum() > 0


def test_frozen_it_says_the_same_of_an_image_and_learns_no_more():
    network = mixed_network(3, 3, gate="early", shift=0.2)
    batch = images(4)
    with torch.no_grad():
        alone = [network(x[None])[1].activations[0] for x in batch]
    assert not network.frozen
    network.gates_to_freeze().freeze()
    network.train()

    maps, routing = network(batch)

    assert network.frozen
    # In the training of others, too, by no statistics of its batch.
    assert torch.allclose(routing.activations, torch.stack(alone), atol=1e-6)
    sum(m.mean() for m in maps).backward()
    assert all(p.grad is None for p in network.early.parameters())
    assert sum(float(p.grad.abs().sum()) for p in network.stem.parameters()) > 0
    with pytest.raises(ConfigError, match="early"):
        mixed_network(3, 3).gates_to_freeze()


def test_its_cost_by_hand():
    network = DynamicRoutingNetwork(RoutingSpace.build(2, 2), channels=8, gate="early")
    table = cost_table(network, 64, 96)
    # 16 × 24 → 8 × 12 → 4 × 6; each convolution, its norm (twice) and ReLU, the mean, 4 cells × 3.
    first = 8 * 12 * 4 * (3 * 9 + 3)
    second = 4 * 6 * 8 * (4 * 9 + 3)
    wanted = first + second + 4 * 6 * 8 + 8 * 12
    assert table.early == wanted
    assert all(cell.gate == 0 for cell in (table.initial, *table.cells))
    assert table.tensors("cpu").stem == table.stem + wanted
    assert table.without_gates().early == 0


def test_a_route_may_be_fixed_and_a_threshold_closes():
    network = mixed_network(4, 3, gate="early", shift=0.5)
    batch = images(5)
    with torch.no_grad():
        before = network(batch)[1]
        network.set_gate_threshold(0.7)
        closed = network(batch)[1]
    assert (closed.real_cost < before.real_cost).any()
    wanted = before.logits.gt(0.7) & closed.reached.repeat_interleave(3, 1)
    assert torch.equal(closed.activations > 0, wanted)
    assert network.gate_threshold == 0.7
    network.set_gate_threshold(0.0)
    opened = (before.activations[0] > 0).view(-1, 3)
    network.fix_route(opened, torch.tensor([False, True, True]))
    assert network.stays_open
    assert torch.equal(network.fixed_route[0], opened)
    assert network.fixed_route[1].tolist() == [False, True, True]
    with torch.no_grad():
        fixed = network(batch)[1]
    assert torch.equal(fixed.activations > 0, opened.flatten().expand(5, -1))
    network.fix_route(None)
    assert network.fixed_route is None


def test_a_floor_lifts_what_is_open_and_opens_nothing():
    free, floored = (mixed_network(3, 3, gate="early", gate_floor=f) for f in (0.0, 0.5))
    batch = images(40)
    with torch.no_grad():
        logits = free.early(batch)[free(batch)[1].reached.repeat_interleave(3, 1)]
        before, after = (network(batch)[1].activations for network in (free, floored))
    is_open = before > 0
    assert before[is_open].min() < 0.5, "something must be lifted"
    assert ((logits < 0) & (logits > -0.5)).any(), "something must be nearly open"
    # The tangent of a sum: tanh(a + artanh(f)) = (tanh a + f) / (1 + f tanh a).
    lifted = torch.where(is_open, (before + 0.5) / (1 + 0.5 * before), 0.0)
    assert torch.allclose(after, lifted, rtol=1e-9)
    assert after[is_open].min() >= 0.5
    # The same of a gate that looks at a cell's input, and of one that looks at nothing.
    for gate in ("small", "static"):
        free, floored = (
            mixed_network(3, 3, gate=gate, gate_floor=f).layers[1][1].gate for f in (0.0, 0.5)
        )
        with torch.no_grad():
            x = torch.rand(4, 8, 12, 12, dtype=torch.float64)
            least, most = open_gates(free(x)), open_gates(floored(x))
        assert torch.equal(least > 0, most > 0)
        assert (least > 0).any()
        assert torch.allclose(most[most > 0], ((least + 0.5) / (1 + 0.5 * least))[least > 0])


def test_a_threshold_is_of_lifted_gates_and_a_floor_is_below_1():
    network = mixed_network(3, 3, gate="early", gate_floor=0.5, shift=0.3)
    batch = images(5)
    with torch.no_grad():
        values = open_gates(network.early(batch))
        network.set_gate_threshold(0.9)  # of tanh 0.716298
        closed = network(batch)[1]
    wanted = (values > 0.716298) & closed.reached.repeat_interleave(3, 1)
    assert torch.equal(closed.activations > 0, wanted)
    assert ((values > 0) & ~(values > 0.716298) & closed.reached.repeat_interleave(3, 1)).any()
    for floor in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="floor of gates"):
            DynamicRoutingNetwork(RoutingSpace.build(1, 1), gate_floor=floor)


def test_a_plan_of_it_expects_no_routes():
    network = mixed_network(3, 2, gate="early")
    with pytest.raises(ConfigError, match="nothing to specialise"):
        InferencePlan(network).specialise([images(2)])


@pytest.mark.parametrize("gate", ["small", "static"])
def test_gates_of_dear_transforms_start_lower(gate):
    torch.manual_seed(0)
    space = RoutingSpace.build(3, 3)
    network = DynamicRoutingNetwork(space, channels=8, gate=gate, gate_bias_cost=6.0)
    size = 8 * space.max_stride
    cell = network.layers[1][1]  # stride 8: a 16 × 16 map of 16 channels, up to 8 and down to 32
    pixels, width = (size // 8) ** 2, 16
    kept = pixels * width
    up = kept + pixels * 8 * (width + 3)
    down = kept + pixels // 4 * 32 * (width + 3)
    ops = cost_table(network, size, size).cells[cell.node.index].cell
    shares = torch.tensor([up, kept, down]) / (ops + up + kept + down)
    assert torch.allclose(cell.gate.last_bias, 1.5 - 6.0 * shares)
    assert cell.gate.last_bias[1] > 1.4
    keep, down = network.layers[1][0].gate.last_bias
    assert keep > 1.3
    assert down < 1.0
    plain = DynamicRoutingNetwork(space, channels=8, gate=gate)
    assert all(c.gate.last_bias.eq(1.5).all() for c in plain.cells())
