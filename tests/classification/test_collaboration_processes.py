"""Statistics of the second stage over the batch of all processes."""

import torch
from torch import nn
from two_processes import in_two_processes

from divdr.moe import Collaboration, CollaborationSettings, Delegator, gather_rows

SPLITS = [(0, 3), (3, 10)]


def make():
    torch.manual_seed(0)
    delegator = Delegator(nn.Linear(4, 6), 6, 3, 4, 2)
    experts = [nn.Linear(4, 3) for _ in range(4)]
    made = Collaboration(delegator, experts, 3, CollaborationSettings(delegator_stage=0.0))
    made.progress = 0.5
    made.has_delegator.fill_(True)
    return made


def batch():
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(10, 4, generator=generator), torch.arange(10) % 3


def gradients(made, x, labels):
    losses = made.losses(x, labels)
    sum(losses.values()).backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in made.parameters()]
    return [value.detach() for value in losses.values()] + found


def _own_gradients(rank):
    x, labels = batch()
    rows = slice(*SPLITS[rank])
    found = gradients(make(), x[rows], labels[rows])
    every, own = gather_rows(x[:0] if rank else x)
    assert every.equal(x)
    assert (own.start, own.stop) == ((10, 10) if rank else (0, 10))
    return found


def test_two_processes_learn_what_one_would(tmp_path):
    parts = in_two_processes(_own_gradients, tmp_path)
    whole = gradients(make(), *batch())
    assert any(value.any() for value in whole[2:])
    for one, other, together in zip(*parts, whole, strict=True):  # DDP takes the mean
        torch.testing.assert_close((one + other) / 2, together, rtol=1e-4, atol=1e-6)
