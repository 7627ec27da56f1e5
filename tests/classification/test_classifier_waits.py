"""How often the host waits for the device in a training step of classifiers, and in evaluation."""

import pytest
import torch
from host_waits import HostWaits

from divdr.moe import (
    Balance,
    Collaboration,
    CollaborationSettings,
    Delegator,
    Hydra,
    HydraSettings,
    PooledGate,
    ResNetParts,
    StageClassifier,
    without_last_linear,
)

CLASSES = 20


def network(channels):
    parts = ResNetParts(channels=channels)
    stem = parts.stem()
    branch = parts.branch(stem.out_channels)
    return StageClassifier(stem, branch, branch.out_channels, CLASSES)


def hydra():
    parts = ResNetParts(channels=2)
    stem = parts.stem()
    trunk = parts.gater_trunk(stem.out_channels)
    branches = [parts.branch(stem.out_channels) for _ in range(20)]
    gater = PooledGate(trunk, trunk.out_channels, 20)
    made = Hydra(
        stem, branches, gater, branches[0].out_channels, CLASSES, HydraSettings(branches=20)
    )
    made.set_partition(torch.arange(CLASSES))
    return made


def collaboration(experts, subtasks):
    extractor, width = without_last_linear(network(2))
    made = Collaboration(
        Delegator(extractor, width, CLASSES, experts, subtasks),
        [network(2) for _ in range(experts)],
        CLASSES,
        CollaborationSettings(),
    )
    made.progress, made.threshold = 0.9, 0.5
    made.has_delegator.fill_(True)
    return made


SYSTEMS = {
    "hydra, 20 branches": hydra,
    "collaboration of 4": lambda: collaboration(4, 1),
    "collaboration of 16 in 4 subtasks": lambda: collaboration(16, 4),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_step_waits_four_times_and_a_forward_once(name):
    torch.manual_seed(0)
    system = SYSTEMS[name]()
    images, labels = torch.randn(32, 3, 8, 8), torch.arange(32) % CLASSES
    with HostWaits() as device:
        sum(system.losses(images, labels).values()).backward()
    assert len(device.waits) <= 4, device.places
    system.eval()
    with torch.no_grad(), HostWaits() as device:
        system(images)
    assert len(device.waits) == 1, device.places


def test_balance_over_steps_waits_for_nothing():
    balance = Balance([3, 2], steps=3)
    for _ in range(5):
        weights = [torch.rand(4, 3, requires_grad=True), torch.rand(4, 2, requires_grad=True)]
        with HostWaits() as device:
            sum(balance(weights, weights)).backward()
        assert device.waits == []
