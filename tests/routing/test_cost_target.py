import pytest
import torch
from routed import images, mixed_network

from divdr.errors import ConfigError
from divdr.routing import BatchCost, CostController, CostTarget, DynamicRoutingNetwork, RoutingSpace

# The stem costs 20 and everything 120, so that gates decide upon 100.
TARGET = CostTarget(share=0.49, start=10, ramp=4, gain=100.0, memory=20)


def cost(real: float) -> BatchCost:
    return BatchCost(real=real, fixed=20.0, full=120.0)


def test_the_set_point_falls_geometrically_to_the_target():
    controller = CostController(TARGET)
    # 0.49 to the power of 0, 1/4, 2/4, 3/4, 1 and 1, of 100, above 20
    wanted = [120.0, 103.666, 90.0, 78.5662, 69.0, 69.0]
    points = [controller.set_point(cost(100.0), i) for i in (9, 10, 11, 12, 13, 99)]
    assert points == pytest.approx(wanted, rel=1e-5)


def test_multiplier_by_hand():
    controller = CostController(TARGET)

    def multiplier(real: float, iteration: int) -> float:
        controller.observe(cost(real), iteration)
        return controller.multiplier(cost(real), iteration)

    assert multiplier(120.0, 9) == 0.0  # before the start
    assert multiplier(95.0, 11) == pytest.approx(5.0)  # 0.05 above 90: gain · 0.05, no memory
    assert multiplier(60.0, 11) == 0.0  # below the falling set point: nothing opens
    # At the target (69), each batch adds gain · error / memory = 5 · error to the memory.
    assert multiplier(79.0, 13) == pytest.approx(10.0 + 0.5)
    assert multiplier(79.0, 14) == pytest.approx(10.0 + 1.0)
    assert multiplier(69.0, 15) == pytest.approx(1.0)
    assert multiplier(59.0, 16) == pytest.approx(-10.0 + 0.5)


@pytest.mark.parametrize(("rate", "times"), [(1.0, 1.0), (0.5, 2.0), (0.1, 3.0), (0.0, 3.0)])
def test_a_falling_learning_rate_is_made_up_for_while_the_target_is_held(rate, times):
    controller = CostController(TARGET)
    controller.rate = rate
    controller.observe(cost(95.0), 11)
    assert controller.multiplier(cost(95.0), 11) == pytest.approx(5.0)  # on the way down it is not
    controller.observe(cost(79.0), 13)
    assert controller.multiplier(cost(79.0), 13) == pytest.approx(times * (10.0 + 0.5))


def test_its_state_goes_on_where_it_was():
    one, other = (CostController(CostTarget(gflops=60e-9, gain=100.0)) for _ in range(2))
    for step in range(5):
        one.observe(cost(100.0 + step), step)
    other.load_state_dict(one.state_dict())
    for controller in (one, other):
        controller.observe(BatchCost(50.0, 10.0, 60.0), 5)
    assert other.state_dict() == one.state_dict()
    assert other.multiplier(cost(90.0), 6) == one.multiplier(cost(90.0), 6) != 0.0


def test_gflops_are_a_mean_over_images_of_all_sizes():
    # Half of the batches are twice as large. All at share 0.5: small ones cost 10 + 0.5 · 50, large
    # ones 20 + 0.5 · 100, on average 52.5; the errors from there must cancel out.
    controller = CostController(CostTarget(gflops=52.5e-9, gain=1.0, memory=1))
    small, large = BatchCost(35.0, 10.0, 60.0), BatchCost(70.0, 20.0, 120.0)
    for step in range(10):
        controller.observe(large if step % 2 else small, step)
    assert controller.share == pytest.approx((52.5 - 15) / (90 - 15))
    errors = [controller.error(batch, 10) for batch in (small, large)]
    assert errors[0] < -0.1 < 0.1 < errors[1]
    assert sum(errors) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("gflops", [15e-9, 130e-9])
def test_gflops_out_of_reach_are_reported_early(gflops):
    controller = CostController(CostTarget(gflops=gflops, start=1000))
    for step in range(19):
        controller.observe(cost(100.0), step)
    with pytest.raises(ConfigError, match=r"out of reach: .* 2e-08 .* 1\.2e-07 with every gate"):
        controller.observe(cost(100.0), 19)


@pytest.mark.parametrize("gflops", [21e-9, 119e-9])
def test_gflops_within_reach_are_not(gflops):
    controller = CostController(CostTarget(gflops=gflops, start=1000))
    for step in range(40):
        controller.observe(cost(100.0), step)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either a share or"),
        ({"share": 0.3, "gflops": 5.0}, "either a share or"),
        ({"share": -0.3}, "either a share or"),
        ({"share": 1.0}, "below 1"),
        ({"share": 0.3, "gain": 0.0}, "gain must be above 0"),
        ({"share": 0.3, "memory": 0}, "memory must be above 0"),
        ({"share": 0.3, "temperature": -1.0}, "temperature must be above 0"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        CostTarget(**settings)


def test_share_is_1_with_every_gate_open_and_0_for_the_stem_alone():
    network = DynamicRoutingNetwork(RoutingSpace.build(4, 3), channels=4).eval()
    for cell in [network.initial, *network.cells()]:
        torch.nn.init.zeros_(cell.gate.predict.weight)
    with torch.no_grad():
        _, record = network(images(2).float())
    assert record.activations[:, 4].min() > 0  # keep of the second cell, say
    assert record.real_cost.tolist() == pytest.approx([record.full_real_cost] * 2)
    assert record.real_share.tolist() == pytest.approx([1.0, 1.0])
    record.real_cost[:] = record.fixed_cost
    assert record.real_share.tolist() == [0.0, 0.0]


def test_straight_through_has_the_value_of_what_runs():
    network = mixed_network()
    _, record = network(images(6))
    assert network.steerable_cost(record, 1.0).tolist() == record.real_cost.tolist()
    assert record.real_cost.unique().numel() > 1


def test_straight_through_gradient_is_that_of_the_smooth_count():
    network = mixed_network()
    _, record = network(images(6))
    record.logits.retain_grad()
    network.steerable_cost(record, 0.7).sum().backward()
    gradient = record.logits.grad.unflatten(1, (-1, 3))
    _check_against_a_loop(network, record, gradient, 0.7)
    # Raising a logit costs more on both sides of the threshold, wherever it decides anything.
    assert (gradient >= 0).all()
    reached = record.reached[..., None].expand_as(gradient)
    logits = record.logits.detach().unflatten(1, (-1, 3))
    exists = torch.tensor([[t in c.node.transforms for t in range(3)] for c in network.cells()])
    for side in ((logits > 0) & (logits < 5), (logits < 0) & (logits > -5)):
        assert (gradient[side & reached & exists] > 0).all()
    assert (~record.reached).any()
    assert (gradient[~reached] == 0).all()


def test_gates_that_are_well_closed_are_not_pushed_on():
    network = mixed_network()
    _, record = network(images(6))
    cost, closing = (network.steerable_cost(record, 0.3, closing=c) for c in (False, True))
    assert closing.tolist() == record.real_cost.tolist()
    (everywhere,) = torch.autograd.grad(cost.sum(), record.logits, retain_graph=True)
    (pushed,) = torch.autograd.grad(closing.sum(), record.logits)
    deep = record.logits < -2 * 0.3
    assert (everywhere[deep] > 0).any()
    assert (pushed[deep] == 0).all()
    torch.testing.assert_close(pushed[~deep], everywhere[~deep])
    assert (everywhere[(record.logits < 0) & ~deep] > 0).any()


def _check_against_a_loop(network, record, gradient, temperature):
    """d/dl of σ(l/T)·MACs by hand, image by image and cell by cell."""
    macs = _macs(network, record.size)
    for image in range(len(record)):
        logits = record.logits[image].detach().view(-1, 3)
        for cell in network.cells():
            if not record.reached[image, cell.node.index]:
                continue
            own, transforms = macs[cell.node.index]
            largest = max(cell.node.transforms, key=lambda t: float(logits[cell.node.index, t]))
            for t in cell.node.transforms:
                s = float(torch.sigmoid(logits[cell.node.index, t] / temperature))
                weight = transforms[t] + (own if t == largest else 0.0)
                wanted = weight * s * (1 - s) / temperature
                got = float(gradient[image, cell.node.index, t])
                assert got == pytest.approx(wanted, rel=1e-2, abs=0.05)  # counted in fp32


def _macs(network, size):
    from divdr.routing import cost_table

    return [(cell.cell, cell.transforms) for cell in cost_table(network, *size).cells]


def test_a_small_training_hits_its_target():
    torch.manual_seed(0)
    network = DynamicRoutingNetwork(RoutingSpace.build(3, 3), channels=4).train()
    head = torch.nn.Conv2d(4, 3, 1)
    parameters = [*network.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    controller = CostController(CostTarget(share=0.4, start=5, ramp=40))
    generator = torch.Generator().manual_seed(0)
    shares = []
    for step in range(90):
        x = torch.randn(4, 3, 32, 32, generator=generator)
        maps, record = network(x)
        wanted = torch.nn.functional.adaptive_avg_pool2d(x, maps[0].shape[-2:])
        task = torch.nn.functional.mse_loss(head(maps[0]), wanted)
        batch = BatchCost(float(record.real_cost.mean()), record.fixed_cost, record.full_real_cost)
        controller.observe(batch, step)
        cost_share = network.steerable_cost(record, 1.0).mean() / controller.span(batch)
        optimizer.zero_grad()
        (task + controller.multiplier(batch, step) * cost_share).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        shares.append(float(record.real_share.mean()))
    assert shares[0] > 0.8
    assert sum(shares[-20:]) / 20 == pytest.approx(0.4, rel=0.1)
