"""Losses over parts of a batch: two processes with half of it each learn what one would."""

import pytest
import torch
from boxes import make, pooled, sampled
from detectron2.utils.events import EventStorage
from torch import nn
from two_processes import in_two_processes

from divdr.moe import Hydra, HydraSettings, PooledGate, ResNetParts

# Branch 0 has images in both halves, but not as many; branch 1 and 2 in one alone.
LABELS = [[0, 1, 2, 0], [4, 5, 5, 1]]
BOXES = [[0, 6, 2, 6, 1], [6, 1, 3, 5, 4]]
SYSTEMS = ("Hydra", "HydraBoxHead", "CoEBoxHead")


def hydra():
    parts = ResNetParts(channels=4)
    stem, trunk = parts.stem(), parts.gater_trunk(8)
    branches = [parts.branch(stem.out_channels) for _ in range(3)]
    settings = HydraSettings(top_k=2, train_threshold=0.0, branch_weight=0.5)
    made = Hydra(stem, branches, PooledGate(trunk, 16, 3), 16, 6, settings)
    made.set_partition(torch.arange(6) // 2)
    return made


def gradients(name, half=None):
    """Losses and gradients of the whole batch, or of a half."""
    torch.manual_seed(0)
    images = slice(None) if half is None else slice(half, half + 1)
    generator = torch.Generator().manual_seed(3)
    if name == "Hydra":
        model = hydra().train()
        x = torch.randn(2, 4, 3, 16, 16, generator=generator)[images].flatten(0, 1)
        losses = without_batches(model).losses(x, torch.tensor(LABELS)[images].flatten())
    else:
        head, predictor = make(name)
        model = nn.ModuleList([head, predictor]).train()
        x = pooled(10).unflatten(0, (2, 5))[images].flatten(0, 1)
        with EventStorage(15):  # in the second stage of the collaboration
            losses = head.losses(x, predictor, sampled(BOXES)[images])[1]
    sum(losses.values()).backward()
    found = {n: v.detach() for n, v in losses.items()}
    for key, p in model.named_parameters():
        found[key] = torch.zeros_like(p) if p.grad is None else p.grad
    return found


def without_batches(model):
    """BatchNorm's statistics are a process's own."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    return model


def _of_all_systems(rank):
    return {name: gradients(name, rank) for name in SYSTEMS}


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    return in_two_processes(_of_all_systems, tmp_path_factory.mktemp("halves"))


@pytest.mark.parametrize("name", SYSTEMS)
def test_two_processes_learn_what_one_would(name, halves):
    one, other = (half[name] for half in halves)
    whole = gradients(name)
    assert sum(bool(value.any()) for value in whole.values()) > 10
    for key, together in whole.items():  # DDP takes the mean
        mean = (one[key] + other[key]) / 2
        torch.testing.assert_close(mean, together, rtol=1e-4, atol=1e-6, msg=lambda m, k=key: k + m)
