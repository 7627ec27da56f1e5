import copy
import pickle

import pytest
import torch
from planned import routed_network

from divdr.inference import CurrentPlan, InferencePlan
from divdr.inference.current_plan import Fingerprint


def _step(network):
    optimizer = torch.optim.SGD([network.layers[0][0].ops["sep_conv_3x3"][0].weight], lr=0.1)
    optimizer.param_groups[0]["params"][0].grad = torch.ones_like(
        optimizer.param_groups[0]["params"][0]
    )
    optimizer.step()


def _edit(network):
    with torch.no_grad():
        network.stem.first[0].weight[0, 0, 0, 0] += 1


def _edit_in_inference_mode(network):
    with torch.inference_mode():
        network.stem.first[0].weight.mul_(2)


def _assign_data(network):
    weight = network.stem.first[0].weight
    weight.data = weight.data * 2


def _replace_parameter(network):
    network.stem.first[0].weight = torch.nn.Parameter(network.stem.first[0].weight.detach() * 2)


def _statistics(network):
    network.stem.first[1].running_mean += 1


def _replace_layer(network):
    network.stem.first[2] = torch.nn.Identity()


def _batch_statistics(network):
    network.stem.first[1].train()


def _there_and_back(network):
    # The third memory may get the address of the first.
    network.half()
    network.double()


CHANGES = [
    _step,
    _edit,
    _edit_in_inference_mode,
    _assign_data,
    _replace_parameter,
    _statistics,
    _replace_layer,
    _batch_statistics,
    _there_and_back,
    lambda network: network.float(),
    lambda network: network.load_state_dict(routed_network(seed=7).state_dict()),
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_makes_a_new_plan(change):
    network = routed_network()
    holder = CurrentPlan()
    plan = holder.of(network)
    assert holder.of(network) is plan
    fingerprint = Fingerprint(network)
    assert fingerprint.matches()
    change(network)
    assert not fingerprint.matches()
    assert holder.of(network) is not plan


def test_running_leaves_a_plan_fresh():
    network = routed_network()
    holder = CurrentPlan()
    plan = holder.of(network)
    x = torch.randn(2, 3, 32, 32).double()
    plan(x)
    with torch.no_grad():
        network(x)
    assert holder.of(network) is plan
    holder.drop()
    assert holder.of(network) is not plan


def test_each_precision_has_its_plan():
    network = routed_network().float()
    holder = CurrentPlan()
    one, other = holder.of(network), holder.of(network, torch.bfloat16)
    assert (one.dtype, other.dtype) == (torch.float32, torch.bfloat16)
    assert holder.of(network) is one
    assert holder.of(network, torch.bfloat16) is other


def test_another_network_has_another_plan():
    holder = CurrentPlan()
    one = holder.of(routed_network())
    assert holder.of(routed_network()) is not one


def test_training_and_watched_networks_have_none():
    network = routed_network()
    holder = CurrentPlan()
    handle = network.layers[0][0].register_forward_hook(lambda *args: None)
    assert holder.of(network) is None
    handle.remove()
    assert holder.of(network) is not None
    assert holder.of(network.train()) is None


def test_weights_made_in_inference_mode_are_followed():
    with torch.inference_mode():
        network = routed_network()
        holder = CurrentPlan()
        plan = holder.of(network)
        assert holder.of(network) is plan
        network.stem.first[0].weight.mul_(2)
        assert holder.of(network) is not plan


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_specialised_plan_follows_every_change(change):
    network = routed_network().eval()
    holder = CurrentPlan(images=4)
    x = torch.randn(2, 3, 32, 32).double()
    for _ in range(3):
        holder.run(network, x)
    assert holder._held.specialised
    change(network)
    if not all(m.training == network.training for m in network.modules()):
        return  # a layer alone trains: its batch statistics are no plan's
    found = holder.run(network, x.to(next(network.parameters()).dtype))[0]
    wanted = network(x.to(next(network.parameters()).dtype))[0]
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
    assert not holder._held.specialised


def test_routes_are_learned_from_the_first_images_that_gates_decide_for():
    network = routed_network()
    holder = CurrentPlan(images=5)
    x = torch.randn(2, 3, 32, 32).double()
    route = InferencePlan(network)(x)[1].activations
    for _ in range(4):
        holder.run(network, x, route)
    assert not holder._held.specialised
    for count in (1, 2, 3):
        assert not holder._held.specialised
        holder.run(network, x)
        assert bool(holder._held.specialised) == (count == 3)
    assert not holder._held.plans
    maps, record = holder.run(network, x, route)
    wanted, other = InferencePlan(network)(x, route)
    assert all(one.allclose(two) for one, two in zip(maps, wanted, strict=True))
    assert record.real_cost.equal(other.real_cost)
    assert holder.run(network.train(), x) is None
    assert copy.deepcopy(holder)._images == 5


def test_copies_start_without_a_plan():
    network = routed_network()
    holder = CurrentPlan()
    holder.of(network)
    assert copy.deepcopy(holder)._held is None
    assert len(pickle.dumps(holder)) < 200
    assert pickle.loads(pickle.dumps(holder))._held is None
