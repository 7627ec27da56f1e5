"""Noise on gates and random routes, as training steps see them."""

from types import SimpleNamespace

import pytest
import torch

from divdr.engine.exploration import ExplorationHook
from divdr.routing import DynamicRoutingNetwork, RoutingSpace
from divdr.settings import ExplorationSettings

IMAGES = 6


@pytest.fixture
def network():
    torch.manual_seed(0)
    space = RoutingSpace.build(4, 3)
    return DynamicRoutingNetwork(space, channels=8, stem_channels=8).train()


def hook_on(network, seed=3, **settings):
    hook = ExplorationHook(network, ExplorationSettings(**settings), 100, seed)
    hook.trainer = SimpleNamespace(iter=0)
    hook.before_train()
    return hook


def step(hook, iteration):
    """(N, cells, 3) gates of a training step."""
    torch.manual_seed(1)
    hook.trainer.iter = iteration
    hook.before_step()
    with torch.no_grad():
        _, routing = hook.network(torch.randn(IMAGES, 3, 32, 64))
    gates = routing.activations.view(IMAGES, -1, 3)
    hook.after_step()
    return gates


def test_two_of_three_steps_take_a_random_route_of_all_images(network):
    hook = hook_on(network, random_until=0.5)
    own = step(hook, 99)
    existing = (own > 0).any(dim=0)
    assert torch.equal(step(hook, 0) > 0, own > 0)
    least = step(hook, 1) > 0
    reached = least.any(dim=-1)
    assert (least == least[:1]).all()
    assert (least.sum(dim=-1)[reached] == 1).all()
    some = step(hook, 2) > 0
    assert (some == some[:1]).all()
    assert 0 < some[0].sum() < existing.sum()
    assert torch.equal(step(hook, 2) > 0, some)
    assert not torch.equal(step(hook, 5) > 0, some)
    assert not torch.equal(step(hook_on(network, seed=4, random_until=0.5), 2) > 0, some)


def test_what_stays_open_keeps_its_gate(network):
    hook = hook_on(network, random_until=0.5)
    gate = next(network.cells()).gate
    x = torch.randn(IMAGES, 8, 8, 16)
    network.eval()
    wanted = gate(x)
    hook.trainer.iter = 2
    hook.before_step()
    assert torch.equal(gate(x), wanted)
    network.train()
    for layer in gate.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eval()
    found = gate(x)
    assert torch.equal(found[found > 0], wanted.expand_as(found)[found > 0])
    assert (found <= wanted).all()


@pytest.mark.parametrize(("iteration", "deviation"), [(0, 0.8), (10, 0.4), (20, 0.0), (60, 0.0)])
def test_noise_fades(network, iteration, deviation):
    hook = hook_on(network, noise=0.8, noise_until=20)
    gate = next(network.cells()).gate
    x = torch.randn(1, 8, 8, 16).expand(4000, -1, -1, -1)
    with torch.no_grad():
        quiet = gate(x)
        hook.trainer.iter = iteration
        hook.before_step()
        noise = gate(x) - quiet
    assert noise.std().item() == pytest.approx(deviation, rel=0.05, abs=1e-6)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.05)


def test_gates_are_left_alone_outside_training_steps(network):
    hook = hook_on(network, noise=1.0, random_until=0.5)
    hook.trainer.iter = 2
    hook.before_step()
    gate = next(network.cells()).gate
    x = torch.randn(2, 8, 8, 16)
    with torch.no_grad():
        disturbed = gate(x)
        hook.after_step()
        quiet = gate(x)
        assert not torch.equal(disturbed, quiet)
        hook.before_step()
        hook.after_train()
        assert torch.equal(gate(x), quiet)


def test_a_fixed_route_is_kept(network):
    hook = hook_on(network, noise=1.0, random_until=0.5)
    for cell in network.cells():
        cell.gate.route = torch.ones(len(cell.node.gated), dtype=torch.bool)
    network.initial.gate.route = torch.ones(len(network.initial.node.gated), dtype=torch.bool)
    assert torch.equal(step(hook, 2), step(hook, 99))
