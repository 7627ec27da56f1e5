import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routed import images, keep_only, mixed_network, naive_forward

from divdr.errors import ConfigError
from divdr.routing import DynamicRoutingNetwork, RoutingSpace


def close(actual: torch.Tensor, wanted: torch.Tensor, bound: float = 1e-9) -> None:
    actual, wanted = actual.detach(), wanted.detach()
    scale = wanted.abs().max().clamp(min=1.0)
    assert float((actual - wanted).abs().max() / scale) <= bound


def agrees_with_naive(network, batch) -> torch.Tensor:
    with torch.no_grad():
        maps, routing = network(batch)
    for index, image in enumerate(batch):
        wanted, gates, reached, macs = naive_forward(network, image)
        for scale, one in enumerate(wanted):
            close(maps[scale][index], one)
        close(routing.activations[index].view(-1, 3), gates)
        assert routing.reached[index].equal(reached)
        assert float(routing.real_cost[index]) == pytest.approx(macs, rel=1e-6)
    return routing.reached


def test_batches_of_mixed_routes_equal_a_cell_by_cell_walk():
    reached = agrees_with_naive(mixed_network(shift=-0.3), images(6))
    assert not (reached == reached[0]).all(), "the images must differ in route"
    assert not reached.all()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["small", "full", "static", "early"]),
    st.floats(-1.5, 1.0),
    st.integers(9, 70),
    st.integers(9, 70),
)
def test_any_size_and_route_equals_the_walk(seed, gate, shift, height, width):
    network = mixed_network(4, 3, seed=seed, gate=gate, shift=shift)
    agrees_with_naive(network, images(3, height, width, seed))


def test_zero_image_beside_others():
    batch = images(3)
    batch[1] = 0
    agrees_with_naive(mixed_network(), batch)


def test_closed_cell_passes_its_input_on_unchanged():
    network = mixed_network(3, 2)
    torch.nn.init.zeros_(network.initial.gate.predict.weight)
    for cell in network.cells():
        torch.nn.init.zeros_(cell.gate.predict.weight)
        torch.nn.init.constant_(cell.gate.predict.bias, -1.0)
    batch = images(2)
    with torch.no_grad():
        maps, routing = network(batch)
        first = torch.relu(
            network.initial.ops["sep_conv_3x3"](network.stem(batch)) + network.stem(batch)
        )
    # Every gate is closed: what the initial cell keeps travels along stride 4 as it is.
    close(maps[0], first * routing.initial[:, 1, None, None, None])
    assert routing.activations.eq(0).all()
    stem_and_gates = naive_forward(network, batch[0])[3]
    assert float(routing.real_cost[0]) == pytest.approx(stem_and_gates, rel=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_without_a_keep_a_closed_cell_ends_the_way(training):
    # Layers of 2, 3 and 2 cells: that of stride 16 has nothing to keep to.
    network = DynamicRoutingNetwork(RoutingSpace((2, 3, 2)), channels=4).double().eval()
    dead_end = next(c for c in network.cells() if (c.node.layer, c.node.scale) == (1, 2))
    torch.nn.init.zeros_(dead_end.gate.predict.weight)
    torch.nn.init.constant_(dead_end.gate.predict.bias, -1.0)
    agrees_with_naive(network, images(2))
    with torch.no_grad():
        wanted, _ = network(images(2))
        freeze_statistics(network.train(training))
        maps, _ = network(images(2))
    for one, other in zip(maps, wanted, strict=True):
        close(one, other)


def test_scale_that_no_image_reaches_is_zero():
    network = mixed_network(3, 3)
    keep_only(network)
    with torch.no_grad():
        maps, routing = network(images(2))
    assert maps[0].abs().sum() > 0
    assert maps[1].eq(0).all()
    assert maps[2].eq(0).all()
    assert maps[2].shape == (2, 16, 4, 6)
    assert routing.reached[0].tolist() == [True, False, True, False, False, True, False, False]


def freeze_statistics(network) -> None:
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()


def test_training_does_not_depend_on_the_batch_when_statistics_are_frozen():
    network = mixed_network(shift=-0.3).train()
    freeze_statistics(network)
    batch = images(4)
    maps, routing = network(batch)
    assert not routing.reached.all()
    weights = [torch.randn_like(m[:1]) for m in maps]
    together = sum((m * w).sum() for m, w in zip(maps, weights, strict=True))
    (together + routing.expected_cost.sum() / 1e6).backward()
    batch_gradients = [p.grad.clone() for p in network.parameters()]

    network.zero_grad()
    for index in range(len(batch)):
        alone, record = network(batch[index : index + 1])
        for scale, one in enumerate(alone):
            close(maps[scale][index], one[0])
        close(routing.activations[index], record.activations[0])
        close(routing.expected_cost[index] / 1e6, record.expected_cost[0] / 1e6, 1e-5)
        loss = sum((m * w).sum() for m, w in zip(alone, weights, strict=True))
        (loss + record.expected_cost.sum() / 1e6).backward()
    for parameter, wanted in zip(network.parameters(), batch_gradients, strict=True):
        close(parameter.grad, wanted)


def test_training_and_evaluation_agree_when_statistics_are_frozen():
    network = mixed_network(shift=-0.3)
    batch = images(4)
    with torch.no_grad():
        evaluated, routing = network(batch)
        freeze_statistics(network.train())
        trained, record = network(batch)
    for one, other in zip(trained, evaluated, strict=True):
        close(one, other)
    assert record.reached.equal(routing.reached)
    assert record.real_cost.equal(routing.real_cost)


def test_batch_statistics_come_from_images_that_reach_the_cell():
    network = mixed_network(4, 3, shift=-0.5).train()
    batch = images(6)
    with torch.no_grad():
        counts = network(batch)[1].reached.sum(dim=0)
    index = next(i for i, n in enumerate(counts.tolist()) if 0 < n < len(batch))
    cell = list(network.cells())[index]
    depthwise, pointwise = cell.ops["sep_conv_3x3"][0], cell.ops["sep_conv_3x3"][1]
    pointwise[1].momentum = 1.0
    seen = []
    cell.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        reached = network(batch)[1].reached[:, index]
        assert len(seen[0]) == int(reached.sum()) < len(batch)
        wanted = pointwise[0](depthwise(seen[0]))
    close(pointwise[1].running_mean, wanted.mean(dim=(0, 2, 3)))


def test_every_parameter_has_a_gradient_though_cells_are_unreached():
    network = mixed_network(4, 3, shift=-2.0).train()
    maps, routing = network(images(2))
    assert not routing.reached.any(dim=0).all()
    sum(m.sum() for m in maps).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_network_without_gates_opens_everything():
    network = mixed_network(4, 3, gate="none")
    agrees_with_naive(network, images(2))
    with torch.no_grad():
        _, routing = network(images(2))
    assert routing.reached.all()
    exists = torch.zeros(network.space.num_cells, 3)
    for node in network.space.cells:
        exists[node.index, list(node.transforms)] = 1
    assert routing.activations[0].view(-1, 3).equal(exists)
    assert float(routing.expected_cost[0]) == pytest.approx(routing.full_cost)


def test_gates_start_nine_tenths_open():
    network = DynamicRoutingNetwork(RoutingSpace.build(3, 3), channels=4).eval()
    for cell in network.cells():
        torch.nn.init.zeros_(cell.gate.predict.weight)
    with torch.no_grad():
        _, routing = network(images(1).float())
    open_values = routing.activations[routing.activations > 0]
    assert torch.allclose(open_values, torch.tensor(1.5).tanh())


def test_imposed_route_is_followed():
    network = mixed_network(shift=-0.3)
    batch = images(3)
    with torch.no_grad():
        maps, routing = network(batch)
        again, _ = network(batch, routing.activations)
        other, _ = network(batch, routing.activations[[1, 2, 0]])
    for one, two in zip(maps, again, strict=True):
        close(one, two)
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(maps, other, strict=True))


def test_published_reach_runs_cells_behind_closed_transforms_on_zeros():
    network = mixed_network(3, 2, reach="published")
    keep_only(network)
    with torch.no_grad():
        maps, routing = network(images(1))
        cell = network.layers[2][1]
        from_zeros = cell.feature(torch.zeros(1, 8, 8, 12).double())
    assert routing.reached.all()
    assert not maps[1].eq(0).all()
    assert from_zeros.shape == maps[1].shape


def test_one_value_per_channel_trains_by_running_statistics():
    network = mixed_network(3, 3).train()
    maps, _ = network(images(1, 17, 17))
    sum(m.sum() for m in maps).backward()
    assert all(torch.isfinite(m).all() for m in maps)


def test_drop_path_grows_with_depth_and_progress():
    network = DynamicRoutingNetwork(RoutingSpace.build(4, 2), channels=4, drop_path=0.4)
    schedule = network.drop_path
    assert schedule.probability(3, 4) == 0.0
    schedule.progress = 0.5
    assert schedule.probability(3, 4) == pytest.approx(0.2)
    assert schedule.probability(0, 4) == pytest.approx(0.05)


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    from divdr.routing.ops import drop_path

    x = torch.ones(4000, 2, 1, 1)
    y = drop_path(x, 0.25)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert y[:, 0].equal(y[:, 1])
    assert float(y.mean()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "tiny"}, "small, full, static, early, none"),
        ({"ops": ("sep_conv_9x9",)}, "sep_conv_3x3"),
        ({"ops": ()}, "at least one"),
        ({"ops": ("skip_connect", "skip_connect")}, "different"),
        ({"channels": 3}, "even"),
        ({"reach": "some"}, "open, published"),
        ({"drop_path": 1.0}, "0, 1"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(options, message):
    with pytest.raises(ConfigError, match=message):
        DynamicRoutingNetwork(RoutingSpace.build(2, 2), **{"channels": 4, **options})


@pytest.mark.cuda
def test_cuda_equals_cpu():
    network = mixed_network(shift=-0.3)
    batch = images(4)
    with torch.no_grad():
        maps, routing = network(batch)
        on_gpu, record = network.float().cuda()(batch.float().cuda())
    for one, other in zip(on_gpu, maps, strict=True):
        close(one.cpu(), other.float(), 1e-3)
    close(record.activations.cpu(), routing.activations.float(), 1e-3)


def test_drop_path_acts_in_training_alone():
    network = DynamicRoutingNetwork(RoutingSpace.build(1, 2), channels=4, drop_path=0.5).double()
    network.drop_path.progress = 1.0
    cell = network.layers[0][0]
    x = images(64, 9, 9)[:, :1].repeat(1, 4, 1, 1)
    freeze_statistics(network.train())
    with torch.no_grad():
        trained = cell.feature(x)
        operation = cell.ops["sep_conv_3x3"](x)
        kept, dropped = torch.relu(x + 2 * operation), torch.relu(x)
        survived = [m.allclose(k) for m, k in zip(trained, kept, strict=True)]
        for image, alive in enumerate(survived):
            close(trained[image], kept[image] if alive else dropped[image])
        close(cell.eval().feature(x), torch.relu(x + operation))
    assert 16 < sum(survived) < 48  # a half of 64


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (5, 4), (3, 9), (1, 1)])
def test_small_gates_see_a_quarter_of_the_map(size):
    gate = DynamicRoutingNetwork(RoutingSpace.build(1, 1), channels=4).layers[0][0].gate
    seen = []
    gate.reduce.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(1, 4, *size)
    gate.eval()(x)
    rows, columns = (max(1, length // 4) for length in size)
    assert seen[0].shape[-2:] == (rows, columns) == gate.map_size(*size)
    if min(size) < 4:
        return
    # Pixel i of the small map lies between pixels 4 i + 1 and 4 i + 2 of the large one.
    at = [[4 * i + 1 for i in range(count)] for count in (rows, columns)]
    wanted = torch.zeros(1, 4, rows, columns)
    for r in range(rows):
        for c in range(columns):
            wanted[..., r, c] = x[..., at[0][r] : at[0][r] + 2, at[1][c] : at[1][c] + 2].mean(
                (2, 3)
            )
    close(seen[0], wanted, 1e-6)


def test_the_cost_of_a_size_is_counted_once(monkeypatch):
    from divdr.routing import network as module

    counted = []
    count = module.cost_table
    monkeypatch.setattr(
        module, "cost_table", lambda *args: counted.append(args[1:]) or count(*args)
    )
    network = mixed_network(2, 2)
    with torch.no_grad():
        for height in (32, 48, 32, 48):
            network(images(1, height, 32))
    assert counted == [(32, 32), (48, 32)]
