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


@torch.no_grad()
def shift(biases, by):
    for bias in biases:
        bias += by


@pytest.mark.parametrize("factor", [0.7, 1.15])
def test_evaluation_costs_what_was_asked_for(routed, factor):
    model, routing = routed
    data = batches(0)
    wanted = mean_share(model, data) * factor
    biases = [c.gate.predict.bias.detach().clone() for c in model.backbone.network.cells()]
    initial = model.backbone.network.initial.gate.predict.bias.detach().clone()

    by = calibrate_cost(model, routing, wanted, data)

    assert model.training
    assert (by < 0) == (factor < 1)
    assert mean_share(model, data) == pytest.approx(wanted, rel=0.03)
    for cell, bias in zip(model.backbone.network.cells(), biases, strict=True):
        assert cell.gate.predict.bias.detach().equal(bias + by)
    assert model.backbone.network.initial.gate.predict.bias.detach().equal(initial)


@pytest.mark.parametrize(("away", "least", "most"), [(-0.3, 0.2, 0.4), (-0.75, 0.5, 1.0)])
def test_it_goes_beyond_half_a_logit_only_where_it_must(routed, away, least, most):
    model, routing = routed
    data = batches(0)
    biases = [cell.gate.predict.bias for cell in model.backbone.network.cells()]
    start = [bias.detach().clone() for bias in biases]
    shift(biases, away)
    wanted = mean_share(model, data)
    shift(biases, -away)

    by = calibrate_cost(model, routing, wanted, data)

    assert least <= abs(by) <= most
    assert (by < 0) == (away < 0)
    assert mean_share(model, data) == pytest.approx(wanted, rel=0.01)
    for bias, value in zip(biases, start, strict=True):
        torch.testing.assert_close(bias.detach(), value + by)


def test_the_shift_is_found_to_a_thousandth(routed, monkeypatch):
    model, routing = routed
    bias = next(iter(model.backbone.network.cells())).gate.predict.bias
    start = float(bias[0].detach())

    def share(*args):  # falls evenly, and is right at -0.3137
        return 0.4 * (1 + float(bias[0].detach()) - start + 0.3137)

    monkeypatch.setattr(calibration, "_mean_share", share)
    assert calibrate_cost(model, routing, 0.4, []) == pytest.approx(-0.3137, abs=1.1e-3)


def test_two_per_cent_off_is_not_near_enough(routed):
    model, routing = routed
    data = batches(0)
    wanted = mean_share(model, data) * 0.98
    steps = []

    # Half a logit closes a hundredth of what is needed; only a whole one gets there.
    def share(model, routing, batches):
        bias = float(next(iter(routing.backbone.network.cells())).gate.predict.bias[0].detach())
        steps.append(bias)
        return wanted * (1.02 if bias > start - 0.5 else 1.0)

    start = float(next(iter(model.backbone.network.cells())).gate.predict.bias[0].detach())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "_mean_share", share)
        by = calibrate_cost(model, routing, wanted, data)
    assert by < -0.5


def test_the_mean_is_over_the_images_of_all_processes(routed, monkeypatch):
    model, routing = routed
    own = batches(0, count=3)
    # Another process with twice as many images, which run nothing.
    monkeypatch.setattr(comm, "all_gather", lambda pair: [pair, (0.0, 24)])
    model.eval()
    with torch.no_grad():
        found = calibration._mean_share(model, routing, own)
    assert found == pytest.approx(mean_share(model, own) / 3)


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


def test_a_model_that_hits_is_left_alone(routed):
    model, routing = routed
    data = batches(0)
    share = mean_share(model, data)
    assert calibrate_cost(model, routing, share, data) == 0.0


def test_out_of_reach_it_comes_as_near_as_a_logit_goes(routed):
    model, routing = routed
    data = batches(0)
    before = mean_share(model, data)
    by = calibrate_cost(model, routing, 1e-4, data)
    assert -1.0 <= by < -0.5
    assert mean_share(model, data) < before
