"""Gather, run, scatter: against loops over the samples, and how often the host waits for it."""

import pytest
import torch
from host_waits import HostWaits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from divdr.moe import Group, overwrite, restrict, run_all, run_groups, scatter_sum

N, E, C = 7, 4, 3


class Times(nn.Module):
    """Multiplies by a number, so that one sees who ran."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(float(factor)))

    def forward(self, x):
        return x * self.factor


EXPERTS = [Times(10**k) for k in range(E)]
X = torch.arange(1.0, N + 1)[:, None].expand(N, C).contiguous()
masks = st.lists(st.lists(st.booleans(), min_size=E, max_size=E), min_size=N, max_size=N).map(
    torch.tensor
)


@settings(max_examples=40, deadline=None)
@given(masks, st.booleans())
def test_a_sum_is_that_of_the_chosen_by_their_weights(chosen, everything):
    weights = torch.rand(N, E, generator=torch.Generator().manual_seed(0))
    groups = list((run_all if everything else run_groups)(EXPERTS, X, chosen))
    if not groups:
        return
    plain, weighted = scatter_sum(groups, N), scatter_sum(groups, N, weights)
    for row in range(N):
        own = [k for k in range(E) if chosen[row, k]]
        total = sum(10.0**k for k in own) * (row + 1)
        torch.testing.assert_close(plain[row], torch.full((C,), float(total)))
        total = sum(float(weights[row, k]) * 10.0**k for k in own) * (row + 1)
        torch.testing.assert_close(weighted[row], torch.full((C,), float(total)))


def test_weights_get_their_gradient_and_maps_are_summed_as_well():
    maps = torch.ones(2, 3, 2, 2)
    weights = torch.tensor([[0.25, 0.75], [1.0, 0.0]], requires_grad=True)
    chosen = torch.tensor([[True, True], [True, False]])
    total = scatter_sum(list(run_groups(EXPERTS[:2], maps, chosen)), 2, weights)
    assert total[:, 0, 0, 0].tolist() == [7.75, 1.0]  # a quarter of 1 and three of 10
    total[:, 0, 0, 0].sum().backward()
    assert weights.grad.tolist() == [[1.0, 10.0], [1.0, 0.0]]


def test_an_answer_is_the_expert_s_where_one_ran():
    answers = torch.zeros(4, C, requires_grad=True)
    chosen = torch.tensor([[0, 1], [0, 0], [1, 0], [0, 1]]).bool()
    found = overwrite(answers, run_groups(EXPERTS[:2], X[:4], chosen))
    assert found[:, 0].tolist() == [10.0, 0.0, 3.0, 40.0]
    found.sum().backward()
    assert answers.grad[:, 0].tolist() == [0.0, 1.0, 0.0, 0.0]
    half = overwrite(
        torch.zeros(4, C, dtype=torch.bfloat16), run_groups(EXPERTS[:1], X[:4], chosen)
    )
    assert half.dtype == torch.bfloat16


@settings(max_examples=40, deadline=None)
@given(masks, masks, st.booleans())
def test_groups_keep_the_wanted_rows(chosen, wanted, places):
    groups = list(run_groups(EXPERTS, X, chosen))
    if not places:
        groups = [Group(g.expert, g.rows, g.output) for g in groups]
    kept = restrict(groups, wanted)
    found = {(g.expert, row) for g in kept for row in g.rows.tolist()}
    assert found == {(k, n) for n in range(N) for k in range(E) if chosen[n, k] and wanted[n, k]}
    for group in kept:
        assert len(group.rows)
        assert group.output[:, 0].tolist() == [(n + 1) * 10.0**group.expert for n in group.rows]
        if group.places is not None:
            assert group.places.tolist() == group.rows.tolist()


@pytest.mark.parametrize("count", [2, 20])
def test_the_host_waits_once_for_all_experts(count):
    experts = [nn.Linear(3, 2) for _ in range(count)]
    x = torch.randn(32, 3)
    chosen = torch.rand(32, count, generator=torch.Generator().manual_seed(0)) < 0.3
    wanted = chosen & (torch.arange(32) % 2 == 0)[:, None]
    with HostWaits() as device:
        groups = list(run_groups(experts, x, chosen))
        assert device.waits == ["cpu"]
        scatter_sum(restrict(groups, wanted), 32)
    assert device.waits == ["cpu", "cpu"]  # once for each of the two masks
    assert [g.rows.tolist() for g in groups] == [
        chosen[:, k].nonzero()[:, 0].tolist() for k in range(count)
    ]


def test_the_stand_in_sees_what_waits():
    mask, x = torch.tensor([True, False]), torch.ones(2)
    with HostWaits() as device:
        x[mask]
        mask.any().item()
        x[torch.arange(2)]
        mask.cpu().tolist()
        (x + x).sum()
    assert device.waits == ["__getitem__", "item", "__getitem__", "cpu"]
