"""What a training says of its routing, when, and how often."""

import logging
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage
from scipy.stats import entropy as scipy_entropy

from divdr.engine.routing_watch import RoutingWatchHook
from divdr.experts.routing_warnings import FILE, routing_warnings
from divdr.modeling import DynamicRouting, attach_routing
from divdr.modeling.supervision import _entropy
from divdr.routing import CostTarget, Ramp


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = DynamicRouting(layers=2, scales=2, channels=4)


def watched(folder, max_iter=100, resumed=False, **settings):
    """A hook whose bank is filled and clustered by hand, and its trainer."""
    routing = attach_routing(Small(), num_experts=2, **settings)
    hook = RoutingWatchHook(routing, str(folder), max_iter)
    storage = EventStorage()
    hook.trainer = SimpleNamespace(
        iter=0, max_iter=max_iter, storage=storage, resumed=resumed, model=None
    )
    hook.before_train()
    return hook, routing


def cluster(hook, routing, rows, iteration):
    routing.experts.bank.update([f"{i}.png" for i in range(len(rows))], rows, iteration)
    routing.experts.cluster(iteration)
    hook.trainer.iter = iteration
    hook.after_step()


def gates(routing, count=20):
    """Half of the images open all, the others the first cell alone; values differ."""
    space = routing.backbone.space
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(count, space.activation_size, generator=generator) * 0.9 + 0.05
    rows[count // 2 :, 3:] = 0
    return rows


def kinds(folder):
    return [(warning.kind, warning.iteration) for warning in routing_warnings(folder)]


def test_healthy_routing_is_left_alone(tmp_path, caplog):
    hook, routing = watched(tmp_path)
    with caplog.at_level(logging.WARNING):
        for iteration in range(10, 100, 10):
            cluster(hook, routing, gates(routing), iteration)
    assert not caplog.text
    assert not (tmp_path / FILE).exists()


def test_each_is_told_once_and_not_again_after_a_resumption(tmp_path, caplog):
    def go_on(resumed):
        hook, routing = watched(tmp_path, resumed=resumed)
        rows = gates(routing, 40)
        rows[:] = rows[-1]  # one route for all
        rows[:39, 0] += 0.001 * torch.arange(39)
        rows[39, 0] += 5.0  # and one image far away from the others
        with caplog.at_level(logging.WARNING):
            for iteration in range(10, 100, 10):
                cluster(hook, routing, rows, iteration)

    go_on(resumed=False)
    told = kinds(tmp_path)
    # Experts after three clusterings, routes from half of training on, cells five later.
    assert told[:2] == [("one_expert", 30), ("one_route", 50)]
    assert ("unused_cells", 90) in told
    assert caplog.text.count("one and the same route") == 1
    go_on(resumed=True)
    assert kinds(tmp_path) == told
    assert caplog.text.count("one and the same route") == 1
    go_on(resumed=False)
    assert kinds(tmp_path) == told
    assert caplog.text.count("one and the same route") == 2


def test_gates_that_look_at_nothing_are_not_judged(tmp_path):
    hook, routing = watched(tmp_path)
    routing.backbone.network = DynamicRouting(layers=2, scales=2, channels=4, gate="none").network
    rows = torch.ones(40, routing.backbone.space.activation_size)  # all alike: one expert has them
    for iteration in range(10, 100, 10):
        cluster(hook, routing, rows, iteration)
    assert kinds(tmp_path) == []


@pytest.mark.parametrize(("share", "told"), [(0.31, []), (0.4, [("cost_target", 99)])])
def test_cost_is_judged_at_the_end(tmp_path, share, told):
    target = CostTarget(share=0.3, start=0, ramp=10, memory=5)
    hook, _ = watched(tmp_path, cost_target=target)
    for value in [9.0] + [share] * 20:
        hook.trainer.storage.put_scalar("train/real_share", value)
    hook.trainer.iter = 99
    hook.after_step()
    assert kinds(tmp_path) == told


def test_a_budget_is_judged_by_the_expected_share(tmp_path):
    hook, routing = watched(tmp_path, budget=Ramp(0.5, 20, 10), budget_target=0.1)
    for _ in range(20):
        hook.trainer.storage.put_scalar("train/expected_share", 0.5)
    cluster(hook, routing, gates(routing), 60)
    assert kinds(tmp_path) == []  # it has not had half of its time
    cluster(hook, routing, gates(routing), 80)
    assert kinds(tmp_path) == [("budget", 80)]


def test_shares_of_open_gates_by_layer_and_entropy_of_use(tmp_path):
    """Of the gates of cells that images reach; four gates in the first layer, two in the last."""
    hook, routing = watched(tmp_path)
    space = routing.backbone.space
    assert space.scales_per_layer == (2, 2)
    activations = torch.zeros(3, space.activation_size)
    reached = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]]).bool()
    activations[0, [1, 2, 3, 4, 7, 10]] = 0.5  # all that there are
    activations[1, [1, 7]] = 0.5  # one of two, then one of one
    record = SimpleNamespace(activations=activations, reached=reached)
    record = type("Record", (SimpleNamespace,), {"__len__": lambda self: 3})(**vars(record))
    routing._log_gates(hook.trainer.storage, record)
    latest = {k: v.latest() for k, v in hook.trainer.storage.histories().items()}
    assert latest == {"routing/open_layer_0": pytest.approx(5 / 6), "routing/open_layer_1": 1.0}
    assert _entropy([5, 5]) == pytest.approx(1.0)
    assert _entropy([10, 0, 0]) == 0.0
    assert _entropy([3, 1]) == pytest.approx(scipy_entropy([3, 1], base=2))
    assert _entropy([4]) == 1.0
