"""Statistics of the second stage over the batch of all processes."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from divdr.classification import (
    Collaboration,
    CollaborationSettings,
    Delegator,
    gather_rows,
)

SPLITS = [(0, 3), (3, 10)]


def make():
    torch.manual_seed(0)
    delegator = Delegator(nn.Linear(4, 6), 6, 3, 4, 2)
    experts = [nn.Linear(4, 3) for _ in range(4)]
    made = Collaboration(delegator, experts, 3, CollaborationSettings(delegator_share=0.0))
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


def as_process(rank, folder):
    dist.init_process_group(
        "gloo",
        f"file://{folder}/meeting",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    try:
        x, labels = batch()
        rows = slice(*SPLITS[rank])
        torch.save(gradients(make(), x[rows], labels[rows]), os.path.join(folder, f"{rank}.pt"))
        every, own = gather_rows(x[:0] if rank else x)
        assert every.equal(x)
        assert (own.start, own.stop) == ((10, 10) if rank else (0, 10))
    finally:
        dist.destroy_process_group()


def test_two_processes_learn_what_one_would(tmp_path):
    other = mp.get_context("spawn").Process(target=as_process, args=(1, str(tmp_path)))
    other.start()
    as_process(0, str(tmp_path))
    other.join()
    assert other.exitcode == 0
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    whole = gradients(make(), *batch())
    assert any(value.any() for value in whole[2:])
    for one, other, together in zip(*parts, whole, strict=True):  # DDP takes the mean
        torch.testing.assert_close((one + other) / 2, together, rtol=1e-4, atol=1e-6)
