"""Losses over parts of a batch: two processes with half of it each learn what one would."""

import maps
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
SINGLE_GATES = ("SingleGateBoxHead", "SingleGateSegmentor")
STAGES = ("gate", "experts")


def hydra():
    parts = ResNetParts(channels=4)
    stem, trunk = parts.stem(), parts.gater_trunk(8)
    branches = [parts.branch(stem.out_channels) for _ in range(3)]
    settings = HydraSettings(top_k=2, train_threshold=0.0, branch_weight=0.5)
    made = Hydra(stem, branches, PooledGate(trunk, 16, 3), 16, 6, settings)
    made.set_partition(torch.arange(6) // 2)
    return made


def single_gate(name, half, stage=None):
    """Losses of a stage and their gradients, or, if it is None, clusters that were made.

    The first process has other numbers of proposals, and of pixels with labels, than the second.
    """
    torch.manual_seed(0)
    images = slice(None) if half is None else slice(half, half + 1)
    if name == "SingleGateBoxHead":
        head, predictor = make(name)
        x = pooled(27, seed=7).split([6, 3] * 3)
        labels = [[0, 6, 2, 6, 1, 3], [6, 1, 3]]
        head.gate.fit_samples(head.embed(pooled(30, seed=4)))

        def run(k):
            own = torch.cat(x[2 * k : 2 * k + 2][images])
            return head.train().losses(own, predictor, sampled(labels)[images])[1]
    else:
        head = without_batches(maps.build())
        features, targets = maps.features(count=6), maps.labels(count=6)
        targets[::2, :50] = maps.IGNORE

        def run(k):
            own = slice(2 * k, 2 * k + 2)
            head.training = True
            return head(maps.at(maps.at(features, own), images), targets[own][images])[1]

    if stage is None:
        head.gate.fitted.fill_(False)
        head.begin(head.stages[0], lambda: (run(k) for k in range(3)))
        return {key: value.clone() for key, value in head.gate.named_buffers()}
    head.progress = head.stages[STAGES.index(stage)].start
    losses = run(0)
    sum(losses.values()).backward()
    found = {n: p.grad for n, p in head.named_parameters() if p.grad is not None}
    return found | {n: v.detach() for n, v in losses.items()}


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
    every = [(name, stage) for name in SINGLE_GATES for stage in (*STAGES, None)]
    return {name: gradients(name, rank) for name in SYSTEMS} | {
        (name, stage): single_gate(name, rank, stage) for name, stage in every
    }


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


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", SINGLE_GATES)
def test_two_processes_learn_a_stage_as_one_would(name, stage, halves):
    one, other = (half[name, stage] for half in halves)
    whole = single_gate(name, None, stage)
    assert sum(bool(value.any()) for value in whole.values()) >= 3
    for key, together in whole.items():
        mean = (one[key] + other[key]) / 2
        torch.testing.assert_close(mean, together, rtol=1e-4, atol=1e-6, msg=lambda m, k=key: k + m)


@pytest.mark.parametrize("name", SINGLE_GATES)
def test_two_processes_find_the_clusters_of_all_rows(name, halves):
    one, other = (half[name, None] for half in halves)
    for key, value in one.items():
        assert value.equal(other[key])
    alone = single_gate(name, None)
    torch.testing.assert_close(one["temperature"], alone["temperature"], rtol=1e-4, atol=1e-6)
    centres = [torch.tensor(sorted(found["centres"].tolist())) for found in (one, alone)]
    torch.testing.assert_close(*centres, rtol=1e-4, atol=1e-5)
