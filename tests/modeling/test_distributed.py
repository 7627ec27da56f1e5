"""What gets no gradient, in several processes: maps that heads ignore, gates that are frozen."""

import os
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from two_processes import join, start_two

from divdr.engine import FreezeGatesHook
from divdr.engine.trainer import _distributed as distributed
from divdr.modeling import DynamicRouting, ProjectionNeck


class _OneLevel(torch.nn.Module):
    def __init__(self, backbone, level):
        super().__init__()
        self.backbone = backbone
        self.level = level

    def forward(self, x):
        return self.backbone(x)[self.level].mean()


def _train(rank, folder):
    join(rank, folder)
    torch.manual_seed(0)
    options = {"layers": 3, "scales": 3, "channels": 4, "norm": "BN"}
    bare = _OneLevel(DynamicRouting(**options), "res3")
    neck = ProjectionNeck(DynamicRouting(**options), ["res2", "res3", "res4"], 4)
    for model in (bare, _OneLevel(neck, "p3")):
        wrapped = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
        for step in range(3):  # a parameter without a gradient stops the second step
            torch.manual_seed(10 * rank + step)
            optimizer.zero_grad()
            wrapped(torch.randn(2, 3, 32, 32)).backward()
            optimizer.step()
        unused = [p for n, p in model.named_parameters() if "layers.2.0" in n or "project2" in n]
        assert unused
        assert all(p.grad is not None and not p.grad.any() for p in unused)
    _freeze(rank)
    total = sum(p.detach().double().sum() for p in model.parameters())
    torch.save(total, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def _freeze(rank):
    """Gates that are frozen on the way neither stop it nor move, and are the same everywhere."""
    torch.manual_seed(0)
    backbone = DynamicRouting(layers=3, scales=3, channels=4, norm="BN", gate="early")
    model = _OneLevel(backbone, "res3")
    wrapped = distributed(model).train()
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.1, weight_decay=0.1)
    loop = SimpleNamespace(iter=0)
    hook = FreezeGatesHook(backbone.network, 3)
    hook.trainer = loop
    seen = []
    for loop.iter in range(6):
        hook.before_step()
        torch.manual_seed(10 * rank + loop.iter)
        optimizer.zero_grad()
        wrapped(torch.randn(2, 3, 32, 32)).backward()
        optimizer.step()
        seen.append({k: v.clone() for k, v in backbone.network.early.state_dict().items()})
    assert not torch.equal(seen[2]["predict.weight"], seen[1]["predict.weight"])
    for name, value in seen[5].items():
        assert torch.equal(value, seen[3][name]), name
        pair = [torch.zeros_like(value) for _ in range(2)]
        dist.all_gather(pair, value)
        assert torch.equal(*pair), name


def test_maps_that_a_head_ignores_do_not_stop_distributed_training(tmp_path):
    start_two(_train, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
