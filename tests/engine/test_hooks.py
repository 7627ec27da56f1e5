import pytest
import torch
from detectron2.engine import TrainerBase
from detectron2.utils import comm

from divdr.engine import ClusteringHook, DropPathHook, FixRouteHook, SeedHook
from divdr.engine.hooks import refill_bank
from divdr.experts import LocalExperts
from divdr.inference import Route
from divdr.inference.controls import route_of_share
from divdr.modeling import DynamicRouting, attach_routing
from divdr.routing import CostTarget, DynamicRoutingNetwork, Periods, RoutingSpace


class _Loop(TrainerBase):
    def __init__(self, *hooks, step=lambda iteration: None):
        super().__init__()
        self.register_hooks(hooks)
        self._step = step
        self.seen = {}

    def run_step(self):
        self._step(self.iter)

    def after_step(self):
        super().after_step()
        latest = self.storage.latest().items()
        self.seen[self.iter] = {k: v for k, (v, when) in latest if when == self.iter}


def two_groups(count=20):
    rows = torch.rand(count, 6) * 0.1
    rows[: count // 2, 0] += 1.0
    return rows


def test_clustering_runs_every_period_and_is_logged():
    experts = LocalExperts(2, 6)
    experts.bank.update([f"{i:02}" for i in range(20)], two_groups(), 0)
    loop = _Loop(ClusteringHook(experts, Periods(2, 3)))
    loop.train(0, 10)
    # From iteration 2 on, every third: done after iterations 4 and 7 (counted from 0).
    assert [i for i, values in loop.seen.items() if "clustering/inter_experts" in values] == [4, 7]
    values = loop.seen[4]
    rows = experts.bank.rows
    centres = torch.stack([rows[:10].mean(0), rows[10:].mean(0)])
    inter = float((centres[0] - centres[1]).norm())
    assert values["clustering/inter_experts"] == pytest.approx(inter, rel=1e-4)
    spread = torch.cat([rows[:10] - centres[0], rows[10:] - centres[1]]).norm(dim=1)
    assert values["clustering/intra_centre_experts"] == pytest.approx(
        float(spread.mean()), rel=1e-4
    )
    assert values["clustering/sigma2"] == pytest.approx(float((spread**2).sum() / 19), rel=1e-4)
    assert {values["clustering/size_0"], values["clustering/size_1"]} == {10}
    assert loop.seen[7]["clustering/movement"] == pytest.approx(0, abs=1e-5)
    assert "clustering/seconds" in values
    assert "clustering/intra_pairs_experts" in values


def test_clustering_waits_for_enough_images():
    experts = LocalExperts(3, 6)
    experts.bank.update(["a", "b"], two_groups(2), 0)
    _Loop(ClusteringHook(experts, Periods(0, 1))).train(0, 2)
    assert not experts.ready


def test_bank_is_refilled_before_clustering_if_asked():
    experts = LocalExperts(2, 6)
    calls = []

    def refill():
        calls.append(True)
        experts.bank.update([f"{i:02}" for i in range(20)], two_groups(), 0)

    _Loop(ClusteringHook(experts, Periods(0, 2), refill)).train(0, 5)
    assert len(calls) == 2
    assert experts.ready


def test_refill_is_the_evaluation_of_every_image():
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(6)).train()
    network[0].running_mean.fill_(0.5)
    experts = LocalExperts(2, 6)
    experts.bank.update(["stale"], torch.ones(1, 6), 0)
    images = {f"{i}": torch.randn(6) for i in range(5)}
    last = {}

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network
            self.frozen = torch.nn.Identity().eval()

        def forward(self, items):
            last["values"] = self.inner(torch.stack([images[i["file_name"]] for i in items]))
            raise AssertionError("the backbone is enough")

    model = Model().train()
    model.frozen.eval()
    loader = [[{"file_name": str(i)} for i in part] for part in ((0, 1), (2,), (3,), (4,))]
    keys = lambda items: [i["file_name"] for i in items]  # noqa: E731
    network.register_forward_hook(lambda module, args, out: last.update(values=out))
    refill_bank(model, network, experts, loader, lambda: last["values"], keys, 7)
    assert model.training
    assert network[0].training
    assert not model.frozen.training
    with pytest.raises(AssertionError, match="the backbone is enough"):
        model(loader[0])
    assert experts.bank.keys == ["0", "1", "2", "3", "4"]
    wanted = torch.stack([(images[k] - 0.5) / (1 + 1e-5) ** 0.5 for k in experts.bank.keys])
    assert experts.bank.rows.allclose(wanted, atol=1e-3)  # half precision
    assert experts.bank.steps.tolist() == [7] * 5


def test_a_refill_that_fails_leaves_the_model_as_it_was():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2)).train()
    with pytest.raises(TypeError):
        refill_bank(model, model[0], LocalExperts(2, 2), [[{}]], lambda: None, lambda i: ["a"], 0)
    assert model.training
    assert model(torch.zeros(1, 2)).shape == (1, 2)


def test_the_bank_is_complete_before_every_checkpoint():
    calls = []
    experts = LocalExperts(2, 6)
    experts.bank.synchronise = lambda: calls.append(loop.iter)
    loop = _Loop(ClusteringHook(experts, Periods(100, 100), checkpoint_period=3))
    loop.train(0, 8)
    assert calls == [2, 5, 7]  # after iterations 3 and 6, and at the end
    calls.clear()
    _Loop.train(loop, 0, 4)
    assert calls == [2, 3]
    loop = _Loop(ClusteringHook(experts, Periods(100, 100)))
    calls.clear()
    loop.train(0, 4)
    assert calls == [3]


def test_seeds_depend_on_the_iteration_alone():
    def draws(start):
        found = []
        _Loop(SeedHook(3), step=lambda i: found.append(float(torch.rand(())))).train(start, 6)
        return found

    whole = draws(0)
    assert len(set(whole)) == 6
    assert draws(4) == whole[4:]


def test_drop_path_follows_training():
    network = DynamicRoutingNetwork(RoutingSpace.build(2, 2), channels=4, drop_path=0.4)
    seen = []
    hook = DropPathHook([network], 4)
    _Loop(hook, step=lambda i: seen.append(network.drop_path.progress)).train(0, 4)
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_a_route_is_fixed_once_by_what_all_processes_open(monkeypatch, caplog):
    model = torch.nn.Module()
    model.backbone = DynamicRouting(layers=4, scales=3, channels=4, norm="GN")
    target = CostTarget(share=0.5)
    routing = attach_routing(model, cost_target=target)
    network = model.backbone.network
    exists = Route.open(network.space)
    # One process opens these, the other those; both of them what leads straight on.
    straight = Route(network.space, exists.gates * torch.tensor([0.0, 1.0, 0.0]), exists.initial)
    own = torch.cat([straight.gates.flatten(), straight.initial])
    other = torch.cat([exists.gates.flatten(), exists.initial]) * 0.4
    monkeypatch.setattr(comm, "all_gather", lambda part: [part, torch.maximum(other, own)])

    def step(iteration):
        seen.append(network.stays_open)
        routing.opened, routing.opened_size = own, (64, 64)

    seen = []
    _Loop(FixRouteHook(routing, 3), step=step).train(0, 6)
    assert seen == [False, False, False, True, True, True]
    opened, initial = network.fixed_route
    gates, first = (
        (own + torch.maximum(other, own)).div(2).split([network.space.activation_size, 3])
    )
    wanted = route_of_share(network, gates, first, (64, 64), 0.5)
    assert opened.equal(wanted.gates > 0)
    assert initial.equal(wanted.initial > 0)
    assert routing.watch_opened is False
    # A run that goes on later has nothing to note.
    _Loop(FixRouteHook(routing, 3)).train(5, 6)
    assert routing.watch_opened is False
