"""Cost targets through a Detectron2 model: losses, log, state, several processes."""

import os

import pytest
import torch
import torch.distributed as dist
from detectron2.utils.events import EventStorage
from host_waits import HostWaits
from two_processes import join, start_two

from divdr.engine import load_config
from divdr.errors import ConfigError
from divdr.modeling import DynamicRouting, attach_routing, attach_routing_from_config
from divdr.routing import CostTarget, Ramp


class _Model(torch.nn.Module):
    """A model that is little more than its backbone."""

    def __init__(self, gate="small", channels=4):
        super().__init__()
        self.backbone = DynamicRouting(layers=3, scales=3, channels=channels, norm="BN", gate=gate)

    def forward(self, x):
        features = self.backbone(x)
        return {"loss_task": features["res2"].mean()}


def steered(**settings):
    torch.manual_seed(0)
    model = _Model().train()
    return model, attach_routing(model, cost_target=CostTarget(**settings))


def test_the_loss_pulls_real_cost_down_and_says_so():
    model, routing = steered(share=0.5, gain=10.0, memory=1000)
    with EventStorage() as storage:
        loss = model(torch.randn(2, 3, 32, 32))["loss_budget"]
    share = float(routing.backbone.routing.real_share.mean())
    assert share > 0.5
    # λ = gain · error · (1 + 1 / memory), and the loss is λ · error.
    multiplier = 10.0 * (share - 0.5) * 1.001
    assert float(loss.detach()) == pytest.approx(multiplier * (share - 0.5), rel=1e-4)
    assert storage.latest()["train/real_share"][0] == pytest.approx(share)
    assert storage.latest()["train/budget_multiplier"][0] == pytest.approx(multiplier, rel=1e-4)
    loss.backward()
    # A step of descent lowers the last gates; earlier ones also change what later ones look at.
    for cell in routing.backbone.network.layers[-1]:
        assert (cell.gate.predict.bias.grad > 0).all()


def test_closed_gates_are_left_alone_until_they_have_to_open():
    for share, moved in ((0.2, False), (0.9, True)):
        model, routing = steered(share=share, gain=10.0, memory=1000)
        gates = [cell.gate for cell in routing.backbone.network.layers[-1]]
        for gate in gates:
            torch.nn.init.constant_(gate.predict.bias, -4.0)
        model(torch.randn(2, 3, 32, 32))["loss_budget"].backward()
        assert 0.2 < float(routing.backbone.routing.real_share.mean()) < 0.9
        assert all(bool((gate.predict.bias.grad < 0).any()) == moved for gate in gates)
        assert all(bool((gate.predict.bias.grad == 0).all()) != moved for gate in gates)


def test_before_the_start_nothing_is_asked():
    model, _ = steered(share=0.5, start=3)
    with EventStorage(2):
        loss = model(torch.randn(2, 3, 32, 32))["loss_budget"]
    assert float(loss.detach()) == 0.0


def test_passes_without_gradients_leave_the_controller_alone():
    model, routing = steered(share=0.5)
    model(torch.randn(2, 3, 32, 32))
    before = routing.state_dict()["cost"]
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 32))
    model.eval()(torch.randn(2, 3, 32, 32))
    assert routing.state_dict()["cost"] == before
    assert before["batches"] == 1


def test_the_controller_comes_back_from_a_checkpoint_and_may_be_new(tmp_path):
    model, routing = steered(gflops=1e-4)
    for _ in range(3):
        model(torch.randn(2, 3, 32, 32))
    torch.save(routing.state_dict(), tmp_path / "state.pth")
    _, other = steered(gflops=1e-4)
    other.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    assert other.cost.state_dict() == routing.cost.state_dict()
    assert other.cost.state_dict()["integral"] != 0.0
    other.load_state_dict({"steps": 4})  # of a run without a cost target


def test_contradictions_are_reported_in_a_sentence():
    with pytest.raises(ConfigError, match="replaces the published budget loss"):
        attach_routing(_Model(), cost_target=CostTarget(share=0.5), budget=Ramp(0.8, 0, 0))
    with pytest.raises(ConfigError, match=r'MODEL\.ROUTING\.GATE is "none"'):
        attach_routing(_Model(gate="none"), cost_target=CostTarget(share=0.5))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("FIX_ROUTE 0.6", "set TARGET_SHARE or TARGET_GFLOPS"),
        # 0.2 and 0.3 of 200 iterations are the defaults of start and ramp.
        ("FIX_ROUTE 0.4 TARGET_SHARE 0.5", r"is iteration 80, before .* iteration 100"),
        ("FREEZE_GATES 0.4 TARGET_SHARE 0.5", 'for MODEL.ROUTING.GATE "early" alone'),
    ],
)
def test_a_route_is_fixed_when_it_costs_the_target(keys, message):
    words = keys.split()
    words[::2] = [f"MODEL.ROUTING.BUDGET.{word}" for word in words[::2]]
    with pytest.raises(ConfigError, match=message):
        attach_routing_from_config(_Model(), load_config("", [*words, "SOLVER.MAX_ITER", "200"]))


def test_frozen_gates_are_driven_to_no_cost():
    words = ["BUDGET.FREEZE_GATES", "0.6", "BUDGET.TARGET_SHARE", "0.5"]
    words[::2] = [f"MODEL.ROUTING.{word}" for word in words[::2]]
    model = _Model(gate="early")
    routing = attach_routing_from_config(model, load_config("", words))
    found = []
    for _ in range(2):
        model.train()
        model.backbone(torch.rand(2, 3, 64, 64))
        with EventStorage() as storage:
            found.append(set(routing.losses(model.backbone.routing, 0, storage=storage)))
        model.backbone.network.gates_to_freeze().freeze()
    assert [kinds & {"loss_budget"} for kinds in found] == [{"loss_budget"}, set()]
    both = load_config("", [*words, "MODEL.ROUTING.BUDGET.FIX_ROUTE", "0.6"])
    with pytest.raises(ConfigError, match="a route for all, or one for each image"):
        attach_routing_from_config(_Model(gate="early"), both)


def test_settings_come_from_the_config():
    keys = {"TARGET_SHARE": 0.3, "TARGET_START": 50.0, "TARGET_RAMP": 0.5, "TARGET_GAIN": 7.0}
    keys |= {"TARGET_MEMORY": 9, "TARGET_TEMPERATURE": 0.5}
    overrides = [str(x) for k, v in keys.items() for x in (f"MODEL.ROUTING.BUDGET.{k}", v)]
    cfg = load_config("", [*overrides, "SOLVER.MAX_ITER", "200"])
    wanted = CostTarget(0.3, 0.0, 50, 100, gain=7.0, memory=9, temperature=0.5)
    assert attach_routing_from_config(_Model(), cfg).cost.target == wanted
    assert attach_routing_from_config(_Model(), load_config()).cost is None


def _in_two_processes(rank, folder):
    join(rank, folder)
    model, routing = steered(share=0.2)
    torch.manual_seed(rank)
    network = routing.backbone.network
    if rank:  # of different cost on each
        torch.nn.init.constant_(network.layers[0][0].gate.predict.bias, -9.0)
    with EventStorage() as storage:
        model(torch.randn(2, 3, 32, 32))
    own = float(routing.backbone.routing.real_share.mean())
    noted = {name: value for name, (value, _) in storage.latest().items()}
    torch.save((own, noted, routing.cost.state_dict()), os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def test_processes_agree_on_the_mean_of_their_images(tmp_path):
    start_two(_in_two_processes, str(tmp_path))
    (one, noted, state), (other, noted_too, state_too) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in range(2)
    )
    assert abs(one - other) > 0.01
    assert noted["train/real_share"] == pytest.approx((one + other) / 2, rel=1e-5)
    assert noted["train/budget_multiplier"] == noted_too["train/budget_multiplier"]
    assert state == state_too


def test_a_target_asks_once_a_step():
    x = torch.randn(2, 3, 32, 32)
    counts = []
    # Fewer channels are not for oneDNN, and HostWaits hides from cells that this is a CPU.
    models = [_Model(channels=8).train() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    attach_routing(models[0], cost_target=CostTarget(share=0.5, gain=10.0, memory=1000))
    for model in models:
        with HostWaits() as device:
            sum(model(x).values()).backward()
        counts.append(len(device.waits))
    assert counts[0] == counts[1] + 1
