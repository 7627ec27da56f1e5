"""A fixed route and a calibrated cost go with the weights, whoever saves and loads them."""

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer

from divdr.modeling import DynamicRouting, attach_routing
from divdr.settings import RoutingSettings

IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
# A bias near 0 has some gates of random weights open and some closed.
KINDS = ["small", "early", "static"]


def _model(gate, seed):
    torch.manual_seed(seed)
    model = torch.nn.Module()
    settings = RoutingSettings(layers=4, scales=3, channels=4, gate=gate, gate_bias=0.1)
    model.backbone = DynamicRouting.of(settings)
    return model.eval()


def _straight(network):
    opened = torch.zeros(network.space.num_cells, 3, dtype=torch.bool)
    for node in network.space.cells:
        opened[node.index, 1] = 1 in node.gated and node.scale == 0
    initial = torch.tensor([t in network.space.initial.gated for t in range(3)])
    return opened, initial


def _maps(model):
    with torch.no_grad():
        return model.backbone(IMAGES)


@pytest.mark.parametrize("gate", KINDS)
def test_a_plain_checkpointer_brings_the_route(gate, tmp_path):
    model, other = _model(gate, 1), _model(gate, 2)
    opened, initial = _straight(model.backbone.network)
    model.backbone.fix_route(opened, initial)
    path = DetectionCheckpointer(model, str(tmp_path))
    path.save("fixed")
    _maps(other)  # has a plan, which the route must drop

    DetectionCheckpointer(other).load(str(tmp_path / "fixed.pth"))

    found = other.backbone.network.fixed_route
    assert found[0].equal(opened)
    assert found[1].equal(initial)
    expected = _maps(model)
    for name, value in _maps(other).items():
        assert torch.equal(value, expected[name]), name
    assert (other.backbone.routing.activations > 0).view(3, -1, 3).equal(opened.expand(3, -1, -1))


@pytest.mark.parametrize("gate", KINDS)
def test_weights_without_a_route_take_it_away(gate):
    model, other = _model(gate, 1), _model(gate, 2)
    other.backbone.fix_route(*_straight(other.backbone.network))
    other.load_state_dict({"backbone.network.stem.none": torch.zeros(1)}, strict=False)
    assert other.backbone.network.fixed_route is not None  # these were weights of something else
    other.load_state_dict(model.state_dict())
    assert other.backbone.network.fixed_route is None
    expected = _maps(model)
    for name, value in _maps(other).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("gate", KINDS)
def test_a_plain_checkpointer_brings_the_threshold(gate, tmp_path):
    model, other = _model(gate, 1), _model(gate, 2)
    whole = _maps(model)
    model.backbone.set_gate_threshold(0.12)
    cost = float(model.backbone.routing.real_cost.mean())
    expected = _maps(model)
    DetectionCheckpointer(model, str(tmp_path)).save("calibrated")
    _maps(other)

    DetectionCheckpointer(other).load(str(tmp_path / "calibrated.pth"))

    assert other.backbone.network.gate_threshold == 0.12
    for name, value in _maps(other).items():
        assert torch.equal(value, expected[name]), name
    assert float(other.backbone.routing.real_cost.mean()) < cost  # it does close something
    assert any(not torch.equal(whole[name], value) for name, value in expected.items())


def test_weights_without_a_threshold_leave_that_of_the_config():
    model, other = _model("small", 1), _model("small", 2)
    other.backbone.set_gate_threshold(0.2)
    other.load_state_dict(model.state_dict())
    assert other.backbone.network.gate_threshold == 0.2


def test_a_checkpoint_that_has_the_threshold_beside_the_weights_is_understood():
    model = _model("small", 1)
    routing = attach_routing(model)
    routing.load_state_dict({**routing.state_dict(), "threshold": 0.3})
    assert model.backbone.network.gate_threshold == 0.3


def test_a_checkpoint_that_has_the_route_beside_the_weights_is_understood():
    model = _model("small", 1)
    routing = attach_routing(model)
    opened, initial = _straight(model.backbone.network)
    state = {**routing.state_dict(), "route": [opened, initial]}
    routing.load_state_dict(state)
    assert model.backbone.network.fixed_route[0].equal(opened)
