import warnings

import pytest
import torch
from planned import pictures, routed_network, same_maps

from divdr.inference import CurrentPlan, InferencePlan, Route

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("gate", ["small", "full", "none"])
@pytest.mark.parametrize("reach", ["open", "published"])
def test_cuda_equals_the_network_on_the_cpu(gate, reach):
    network = routed_network(5, 4, gate=gate, reach=reach)
    batch = pictures(5)
    with torch.no_grad():
        wanted, routing = network(batch)
    maps, record = InferencePlan(network.cuda())(batch.cuda())
    same_maps([m.cpu() for m in maps], wanted)
    assert record.activations.is_cuda
    assert record.activations.cpu().allclose(routing.activations)
    assert record.reached.cpu().equal(routing.reached)
    assert record.real_cost.cpu().allclose(routing.real_cost)


def waits(function) -> int:
    """How often the host waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in caught)


def test_the_host_waits_once_a_layer_at_most():
    network = routed_network(5, 4).float().cuda()
    plan = InferencePlan(network)
    batch = pictures(4).float().cuda()
    _, record = plan(batch)
    assert 0 < waits(lambda: plan(batch)) <= 1 + 5
    # The given route comes to the host once, the initial cell asks once.
    assert waits(lambda: plan(batch, record.activations)) <= 2
    route = Route.of(network.space, record)
    assert waits(lambda: plan(batch, route)) <= 3


def test_bfloat16_on_cuda():
    network = routed_network(3, 3, shift=4.0).float().cuda()
    batch = pictures(3).float().cuda()
    maps, record = InferencePlan(network, dtype=torch.bfloat16)(batch)
    with torch.no_grad():
        wanted, _ = network(batch)
    assert record.activations.dtype == torch.float32
    for one, other in zip(maps, wanted, strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).norm() / other.norm()) < 0.05


def test_moving_makes_a_new_plan():
    network = routed_network()
    holder = CurrentPlan()
    plan = holder.of(network)
    network.cuda()
    assert holder.of(network) is not plan
    assert holder.of(network).device.type == "cuda"


@pytest.mark.parametrize("reach", ["open", "published"])
def test_a_specialised_plan_captures_its_routes_and_gives_the_same(reach):
    network = routed_network(5, 4, reach=reach).float().cuda()
    plan = InferencePlan(network)
    batch = pictures(6).float().cuda()
    special = plan.specialise([batch[:3]])
    for _ in range(3):  # captured when a route comes again
        for image in range(6):
            (maps, record), (wanted, other) = (
                special(batch[image : image + 1]),
                plan(batch[image : image + 1]),
            )
            assert record.activations.allclose(other.activations, atol=1e-5)
            same_maps(maps, wanted, 1e-4)
    assert special._graphs
    maps, _ = special(batch)
    same_maps(maps, plan(batch)[0], 1e-4)


def test_a_captured_route_waits_once():
    network = routed_network(5, 4).float().cuda()
    plan = InferencePlan(network)
    image = pictures(1).float().cuda()
    special = plan.specialise([image])
    for _ in range(3):
        special(image)
    assert waits(lambda: special(image)) <= 1


def test_a_changed_weight_is_noticed_behind_a_graph():
    network = routed_network(3, 3).float().cuda()
    holder = CurrentPlan(images=1)
    image = pictures(1).float().cuda()
    for _ in range(4):
        holder.run(network, image)
    with torch.no_grad():
        network.stem.first[0].weight.mul_(1.5)
        wanted, _ = network(image)
    same_maps(holder.run(network, image)[0], wanted, 1e-4)


def test_a_step_in_which_a_loss_is_broken_is_skipped_on_the_device():
    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, fused=True)
    optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    for broken, wanted in ((1.0, 1.0), (0.0, 0.9)):
        optimizer.found_inf = torch.tensor(broken, device="cuda")
        weight.grad = torch.full_like(weight, float("nan") if broken else 1.0)
        optimizer.step()
        assert weight.tolist() == pytest.approx([wanted] * 3)
