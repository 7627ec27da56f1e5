"""Operations of cells chosen for each image: training, costs, plans and what is left as it was."""

import pytest
import torch
from routed import images, mixed_network
from torch import nn

from divdr.errors import ConfigError
from divdr.inference import Dispatcher, DispatchPlan, InferencePlan, Route, StaticNetwork
from divdr.moe import OpGate, OpGates
from divdr.routing import DynamicRoutingNetwork, RoutingSpace, count_macs
from divdr.routing.chosen_ops import chosen_sum

OPS = ["conv_5x5", "conv_1x7_7x1", "squeeze_excite", "skip_connect"]


def choosing(k=(3, 1), **options):
    """Routes differ from image to image, and in every cell so do the operations."""
    network = mixed_network(4, 3, ops=OPS, op_gate=OpGates(*k), **options)
    generator = torch.Generator().manual_seed(5)
    for gate in (m for m in network.modules() if isinstance(m, OpGate)):
        gate.gate.score.weight.data.normal_(0, 2, generator=generator)
    return network


def batch(count=4):
    return images(count).double()


class Watched:
    """How many images each operation of each reported cell ran for."""

    def __init__(self, network):
        self.counts, self._handles = {}, []
        for cell in network.cells():
            for number, op in enumerate(cell.ops.values()):
                place = (cell.node.index, number)

                def note(module, args, output, place=place):
                    self.counts[place] = self.counts.get(place, 0) + len(args[0])

                self._handles.append(op.register_forward_hook(note))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for handle in self._handles:
            handle.remove()


@torch.no_grad()
def test_each_operation_runs_for_those_that_chose_it_and_costs_count_just_that():
    network, x = choosing(), batch()
    with Watched(network) as watched:
        _, routing = network(x)
    ran = routing.op_weights > 0  # (N, cells, O)
    assert ran.shape == (4, network.space.num_cells, len(OPS))
    assert len({str(row.tolist()) for row in ran}) > 2
    sums = ran.sum(0)
    assert watched.counts == {
        (c, o): int(sums[c, o]) for c in range(len(sums)) for o in range(4) if sums[c, o]
    }
    closed = routing.activations.unflatten(1, (-1, 3)).sum(2) < 1e-4
    assert not ran[closed].any()
    # k falls from 3 in layer 0 to 1 in layer 3: 3, 2, 2, 1.
    layers = [(cell.node.index, cell.node.layer) for cell in network.cells()]
    for index, layer in layers:
        chosen = ran[:, index].sum(1)[~closed[:, index]]
        assert (chosen == [3, 2, 2, 1][layer]).all()
    torch.testing.assert_close(routing.op_weights.sum(2)[~closed], torch.ones(int((~closed).sum())))

    # Its cost is what the same routes cost without any operation, and those that ran.
    sizes = network.space.map_sizes(*x.shape[-2:])
    plain = mixed_network(4, 3, ops=["skip_connect"])
    without = plain.cost(_only_paths(routing), *x.shape[-2:])[1]
    for image in range(4):
        by_hand = 0.0
        for cell in network.cells():
            shape = (cell.channels, *sizes[cell.node.scale])
            if not closed[image, cell.node.index]:
                by_hand += shape[0] * shape[1] * shape[2] + shape[0] * len(OPS)  # its gate
            for number, op in enumerate(cell.ops.values()):
                if ran[image, cell.node.index, number]:
                    by_hand += count_macs(op, shape)[0]
        initial = (network.initial.channels, *sizes[0])
        by_hand += sum(count_macs(op, initial)[0] for op in network.initial.ops.values())
        assert float(routing.real_cost[image] - without[image]) == pytest.approx(by_hand, rel=1e-4)
    again = network.cost(routing, *x.shape[-2:])
    assert again[0].equal(routing.expected_cost)
    assert again[1].equal(routing.real_cost)


def _only_paths(routing):
    record = routing.detach()
    record.op_weights = record.op_loads = None
    return record


def test_costs_of_the_new_operations_by_hand():
    network = choosing()
    cell = next(network.cells())  # 4 channels
    found = [count_macs(op, (4, 6, 5))[0] for op in cell.ops.values()]
    numbers = 4 * 6 * 5
    five = 2 * (numbers * 4 * 25 + 2 * numbers) + numbers
    strips = 2 * (numbers * 4 * 7 + 2 * numbers) + numbers
    assert found == [five, strips, numbers + 4 + 1 + 4, 0]  # squeezed to one neuron


@torch.no_grad()
def test_an_image_gets_the_same_alone():
    network, x = choosing(), batch()
    maps, routing = network(x)
    for image in range(len(x)):
        alone, record = network(x[image : image + 1])
        torch.testing.assert_close(record.op_weights[0], routing.op_weights[image])
        for one, all_of_them in zip(alone, maps, strict=True):
            torch.testing.assert_close(one[0], all_of_them[image])


@pytest.mark.parametrize("gate", ["small", "none"])
@torch.no_grad()
def test_plan_equals_network(gate):
    network, x = choosing(gate=gate), batch()
    wanted, routing = network(x)
    maps, record = InferencePlan(network)(x)
    same(maps, wanted)
    torch.testing.assert_close(record.op_weights, routing.op_weights, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(record.real_cost, routing.real_cost)
    torch.testing.assert_close(record.expected_cost, routing.expected_cost)
    assert record.op_loads.equal(routing.op_loads)


def same(maps, wanted):
    for one, other in zip(maps, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_static_experts_choose_operations_still_and_cannot_be_exported(tmp_path):
    from divdr.errors import DivdrError
    from divdr.inference.static_network import export

    network, x = choosing(), batch(3)
    _, routing = network(x[:1])
    route = Route.of(network.space, routing)
    static = StaticNetwork(network, route)
    wanted, record = InferencePlan(network)(x, route)
    same(static(x), wanted)
    same(InferencePlan(static)(x)[0], wanted)
    assert (record.op_weights[0] > 0).equal(routing.op_weights[0] > 0)
    first = sum(network.space.scales_per_layer[:1]) * 3
    dispatcher = Dispatcher(1, torch.zeros(1, first).double(), torch.zeros(1).double())
    _, dispatched = DispatchPlan(network, [static], dispatcher)(x[:1])
    assert (dispatched.op_weights > 0).equal(routing.op_weights > 0)
    with pytest.raises(DivdrError, match="cannot be exported"):
        export(static, x[:1], tmp_path / "static.pt2")


def test_gates_learn_operations_run_by_groups_and_the_others_get_a_gradient_of_zero():
    network = choosing().train()
    x = batch(3)
    with Watched(network) as watched:
        maps, routing = network(x)
    ran = routing.op_weights > 0
    closed = routing.activations.unflatten(1, (-1, 3)).sum(2) < 1e-4
    reached_open = ran.any(2)
    assert not (reached_open & closed).any()
    for (index, number), count in watched.counts.items():
        # A cell trains on all images that reach it, closed ones too.
        assert count >= int(ran[:, index, number].sum())
        assert count <= int(routing.reached[:, index].sum())
    loss = sum(m.square().mean() for m in maps) + routing.op_loads.var()
    loss.backward()
    for cell in network.cells():
        if (
            int(routing.reached[:, cell.node.index].sum())
            and reached_open[:, cell.node.index].any()
        ):
            assert cell.op_gate.gate.score.weight.grad.abs().sum() > 0
            assert cell.op_gate.gate.noise.weight.grad is not None
    assert all(p.grad is not None for p in network.parameters())
    unchosen = [
        (cell, number) for cell in network.cells() for number in range(4)
        if (cell.node.index, number) not in watched.counts
    ]  # fmt: skip
    assert unchosen
    for cell, number in unchosen:
        for parameter in list(cell.ops.values())[number].parameters():
            assert not parameter.grad.any()


def test_conditional_training_changes_nothing():
    found = []
    for conditional in (False, True):
        network = choosing(conditional_training=conditional, drop_path=0.3).train()
        network.drop_path.progress = 1.0
        torch.manual_seed(7)
        maps, routing = network(batch(3))
        (sum(m.square().mean() for m in maps) + routing.activations.sum()).backward()
        found.append((maps, routing.op_weights, [p.grad for p in network.parameters()]))
    (maps, weights, gradients), (others, same_weights, same_gradients) = found
    assert weights.equal(same_weights)
    assert all(a.equal(b) for a, b in zip(maps, others, strict=True))
    for one, other in zip(gradients, same_gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_sum_is_what_it_was():
    plain, named = mixed_network(), mixed_network(op_gate=None)
    assert not any("op_gate" in name for name in plain.state_dict())
    x = images(3).double()
    with torch.no_grad():
        (maps, record), (others, again) = plain(x), named(x)
    assert record.op_weights is None
    assert InferencePlan(plain)(x)[1].op_weights is None
    assert all(a.equal(b) for a, b in zip(maps, others, strict=True))
    assert record.real_cost.equal(again.real_cost)


def test_weighted_sum_by_hand_and_under_autocast():
    x = torch.arange(6.0).view(3, 1, 1, 2)
    weights = torch.tensor([[0.25, 0.75], [1.0, 0.0], [0.0, 1.0]])
    double, minus = (lambda y: 2 * y), (lambda y: -y)
    found = chosen_sum([double, minus], x, weights)
    assert found.flatten().tolist() == [0.0, -0.25, 4.0, 6.0, -4.0, -5.0]
    conv = nn.Conv2d(1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert chosen_sum([conv, nn.Identity()], x, weights).dtype == torch.float32
        assert chosen_sum([conv], x, weights[:, :1]).dtype == torch.bfloat16


def test_settings_that_cannot_be():
    space = RoutingSpace.build(3, 2)
    with pytest.raises(ConfigError, match=r"OP_GATE.K_FIRST is 3, but a cell has 2 of"):
        DynamicRoutingNetwork(space, channels=4, op_gate=OpGates(3, 1))
