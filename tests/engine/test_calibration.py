from types import SimpleNamespace

import pytest
import torch
from detectron2.utils import comm

from divdr.engine import calibrate_cost, calibration
from divdr.modeling import DynamicRouting, attach_routing


class _Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = DynamicRouting(layers=5, scales=3, channels=4, norm="BN")

    def forward(self, items):
        self.backbone(torch.stack([item["image"] for item in items]))
        return [{} for _ in items]


@pytest.fixture
def routed():
    """A model whose gates stand around their threshold, differently for every image."""
    torch.manual_seed(3)
    model = _Model()
    for cell in model.backbone.network.cells():
        torch.nn.init.normal_(cell.gate.predict.weight, std=0.5)
        torch.nn.init.normal_(cell.gate.predict.bias, mean=0.1, std=0.2)
    return model.train(), attach_routing(model)


def batches(seed, count=6):
    generator = torch.Generator().manual_seed(seed)
    levels = torch.rand(count * 4, generator=generator) * 3
    images = [level * torch.randn(3, 64, 64, generator=generator) for level in levels]
    return [[{"image": image} for image in images[i::count]] for i in range(count)]


def mean_share(model, data):
    model.eval()
    values = []
    with torch.no_grad():
        for items in data:
            model(items)
            values.append(model.backbone.routing.real_share)
    model.train()
    return float(torch.cat(values).mean())


def test_evaluation_costs_what_was_asked_for_by_what_is_open_least(routed):
    model, routing = routed
    data = batches(0)
    wanted = mean_share(model, data) * 0.7
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    threshold = calibrate_cost(model, routing, wanted, data)

    assert model.training
    assert threshold == model.backbone.network.gate_threshold > 0
    assert mean_share(model, data) == pytest.approx(wanted, rel=0.03)
    assert all(model.state_dict()[name].equal(value) for name, value in weights.items())
    # What stays open stays as far open.
    record = model.backbone.routing
    stays = record.activations > 0
    assert (record.logits[stays] > threshold).all()
    assert record.activations[stays].equal(record.logits[stays].tanh())


@pytest.mark.parametrize("factor", [0.985, 1.0, 1.2])
def test_what_is_near_or_below_is_left_alone(routed, factor, caplog):
    # A cost a little off is worth less than what closing gates for it costs in accuracy.
    model, routing = routed
    data = batches(0)
    wanted = mean_share(model, data) * factor
    with caplog.at_level("INFO"):
        assert calibrate_cost(model, routing, wanted, data) == 0.0
    assert f"in evaluation {100 * (1 / factor - 1):+.1f} % off" in caplog.text


def test_two_and_a_half_per_cent_are_corrected(routed):
    model, routing = routed
    data = batches(0)
    wanted = mean_share(model, data) / 1.025
    assert calibrate_cost(model, routing, wanted, data) > 0
    assert mean_share(model, data) == pytest.approx(wanted, rel=0.02)


def test_out_of_reach_nothing_is_closed(routed, caplog):
    model, routing = routed
    # The initial cell always decides for itself, and costs more than this.
    assert calibrate_cost(model, routing, 1e-6, batches(0)) == 0.0
    assert "cannot be reached" in caplog.text


def test_the_mean_is_over_the_images_of_all_processes(routed, monkeypatch):
    model, routing = routed
    own = batches(0, count=3)

    def with_another(part):  # which has twice as many images that run nothing
        if isinstance(part, int):
            return [part, 24]
        nothing = tuple(torch.zeros(24, *column.shape[1:]) for column in part)
        return [part, nothing]

    monkeypatch.setattr(comm, "all_gather", with_another)
    found = calibration.Calibration(model, routing, own).setting(0.0)
    assert found.share == pytest.approx(mean_share(model, own) / 3)


def test_the_weights_keep_the_threshold(routed):
    model, routing = routed
    data = batches(0)
    wanted = mean_share(model, data) * 0.7
    threshold = calibrate_cost(model, routing, wanted, data)
    other = _Model()
    other.load_state_dict(model.state_dict())
    assert other.backbone.network.gate_threshold == threshold
    assert mean_share(other, data) == mean_share(model, data)


@pytest.mark.parametrize(("max_iter", "stop", "at"), [(None, 4, 3), (6, 4, None), (4, 4, 3)])
def test_it_comes_once_with_the_last_step_of_the_whole_training(
    routed, monkeypatch, max_iter, stop, at
):
    model, routing = routed
    routing.cost = SimpleNamespace(share=0.5)
    seen = []
    monkeypatch.setattr(calibration, "calibrate_cost", lambda *args: seen.append(hook.trainer.iter))
    hook = calibration.CalibrationHook(model, routing, list, max_iter)
    for iteration in range(stop):
        hook.trainer = SimpleNamespace(iter=iteration, max_iter=stop)
        hook.after_step()
    assert seen == ([] if at is None else [at])
