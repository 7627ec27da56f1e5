"""What a routed backbone learns from the maps of a trained one that opens everything."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from divdr.errors import CheckpointError
from divdr.inference import InferencePlan, Route
from divdr.modeling import DynamicRouting
from divdr.modeling.attach import attach_settings
from divdr.modeling.distillation import map_distance, read_teacher
from divdr.settings import DistillationSettings, RoutingSettings

SETTINGS = RoutingSettings(layers=3, scales=3, channels=4, stem_channels=4)


class Model(nn.Module):
    """A model whose loss is the mean of its maps."""

    def __init__(self, settings):
        super().__init__()
        self.backbone = DynamicRouting.of(settings)

    def forward(self, batch):
        maps = self.backbone(torch.stack([item["image"] for item in batch]))
        return {"loss": sum(m.mean() for m in maps.values())}


@pytest.fixture
def teacher(tmp_path):
    """A file with the weights of a network of all paths, under a neck, and that network."""
    torch.manual_seed(5)
    network = DynamicRouting.of(replace(SETTINGS, gate="none")).network
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    prefix = "backbone.bottom_up.network."
    weights = {prefix + name: value for name, value in network.state_dict().items()}
    path = tmp_path / "teacher.pth"
    torch.save({"model": {**weights, "sem_seg_head.weight": torch.ones(3)}}, path)
    return str(path), network.eval()


def batch():
    generator = torch.Generator().manual_seed(3)
    pictures = torch.randn(2, 3, 32, 48, generator=generator)
    return [{"image": p, "file_name": f"{i}.png"} for i, p in enumerate(pictures)]


def attached(path, weight=1.0, **changes):
    torch.manual_seed(0)
    chosen = DistillationSettings(weights=path, weight=weight)
    settings = replace(SETTINGS, distillation=chosen, **changes)
    model = Model(settings)
    attach_settings(model, settings, max_iter=10, batch_size=2)
    return model


def test_distance_by_hand():
    own = [torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[0.0, 0.0]]]])]
    wanted = [torch.tensor([[[[3.0, 2.0]]]]), torch.tensor([[[[5.0, 1.0]]]])]
    # 4 of 13, and all of it
    assert map_distance(own, wanted).item() == pytest.approx((4 / 13 + 1) / 2)
    assert map_distance(wanted, wanted).item() == 0


def test_the_loss_is_the_distance_to_the_teachers_maps(teacher):
    path, network = teacher
    model = attached(path, weight=2.5).train()
    losses = model(batch())
    with torch.no_grad():
        wanted, _ = network(torch.stack([item["image"] for item in batch()]))
    again = attached(path).train()
    found = again.backbone(torch.stack([item["image"] for item in batch()]))
    each = [
        ((one - other) ** 2).mean() / (other**2).mean()
        for one, other in zip(found.values(), wanted, strict=True)
    ]
    distance = sum(each) / len(each)
    assert losses["loss_distillation"].item() == pytest.approx(2.5 * distance.item(), rel=1e-5)
    losses["loss_distillation"].backward()
    assert model.backbone.network.stem.first[0].weight.grad.abs().sum() > 0


def test_who_does_not_train_needs_no_teacher(tmp_path):
    model = attached(str(tmp_path / "gone.pth")).eval()
    with torch.no_grad():
        assert model(batch()).keys() == {"loss"}
        model.train()
        assert "loss_distillation" not in model(batch())
    names = set(model.state_dict())
    assert names == set(Model(SETTINGS).state_dict())
    with pytest.raises(CheckpointError, match=r"gone\.pth"):
        model(batch())


def test_evaluation_runs_a_plan_all_the_same(teacher, monkeypatch):
    ran = []
    run = InferencePlan.unless_changed
    monkeypatch.setattr(InferencePlan, "unless_changed", lambda *args: ran.append(1) or run(*args))
    with torch.no_grad():
        attached(teacher[0]).eval()(batch())
    assert ran


def test_it_draws_no_random_numbers(teacher):
    model = attached(teacher[0]).train()
    torch.manual_seed(7)
    model(batch())
    found = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(found, torch.rand(1))


def test_a_route_learns_from_the_whole_network(teacher, tmp_path):
    route = tmp_path / "route.json"
    space = DynamicRouting.of(SETTINGS).space
    Route.open(space).write(route)
    model = attached(teacher[0], route=str(route), gate="none").train()
    loss = model(batch())["loss_distillation"]
    assert 0 < loss.item() < 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"head.weight": torch.ones(2)}}, "holds no routed backbone"),
        ({"model": {"backbone.network.stem.x": torch.ones(2)}}, "missing"),
    ],
)
def test_other_weights_are_refused(tmp_path, content, message):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    settings = replace(SETTINGS, distillation=DistillationSettings(weights=str(path)))
    with pytest.raises(CheckpointError, match=message):
        read_teacher(settings, 3)
