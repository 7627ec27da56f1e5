"""Numbers that are none, in losses and in files of figures."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.utils.events import EventStorage
from host_waits import HostWaits
from torch import nn

from divdr.engine.finite import LossCheck, MetricsFile
from divdr.errors import NonFiniteLossError


class Head(nn.Module):
    ignore_value = 255


class Model(nn.Module):
    """Loses as Detectron2's heads do: the mean over pixels with a class."""

    def __init__(self):
        super().__init__()
        self.sem_seg_head = Head()
        self.weight = nn.Parameter(torch.ones(2, 3))
        LossCheck.attach(self)

    def forward(self, inputs):
        labels = torch.stack([item["sem_seg"] for item in inputs])
        scores = torch.randn(len(inputs), 4, 4, 2) @ self.weight
        loss = F.cross_entropy(scores.permute(0, 3, 1, 2), labels, ignore_index=255)
        return {"loss_sem_seg": loss, "loss_box": self.weight.sum() * 0 + inputs[0].get("add", 0.0)}


def item(value, **more):
    return {"sem_seg": torch.full((4, 4), value), **more}


def test_a_batch_without_any_label_counts_as_nothing(caplog):
    model = Model()
    losses = model([item(255), item(255)])
    assert float(losses["loss_sem_seg"]) == 0
    sum(losses.values()).backward()
    assert model.weight.grad.tolist() == [[0.0] * 3] * 2
    assert "No pixel of this batch has a class" in caplog.text
    assert float(model([item(255), item(1)])["loss_sem_seg"]) > 0


@pytest.mark.parametrize(
    ("inputs", "name"),
    [([item(255, add=float("inf"))], "loss_box"), ([item(1, add=float("nan"))], "loss_box")],
)
def test_other_losses_that_are_not_finite_stop_the_training(inputs, name):
    with pytest.raises(NonFiniteLossError, match=name):
        Model()(inputs)


def test_a_broken_network_is_no_batch_without_labels():
    model = Model()
    nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(NonFiniteLossError, match="loss_sem_seg"):
        model([item(1)])


def test_a_deferred_check_stops_nothing_and_tells_the_device():
    model = Model()
    check = LossCheck.of(model)
    check.deferred = True
    for inputs, broken in (
        ([item(1)], 0.0),
        ([item(1, add=float("inf"))], 1.0),
        ([item(255)], 0.0),  # no pixel has a class
        ([item(255, add=float("nan"))], 1.0),
    ):
        losses = model(inputs)
        assert float(check.broken()) == broken
        assert check.broken() is None
        if inputs[0]["sem_seg"].min() == 255:
            assert float(losses["loss_sem_seg"]) == 0
    # Without gradients there is no step to leave out.
    with torch.no_grad(), pytest.raises(NonFiniteLossError, match="loss_box"):
        model([item(1, add=float("nan"))])
    twin = copy.deepcopy(model)
    assert LossCheck.of(twin) is not check
    with pytest.raises(NonFiniteLossError, match="loss_box"):
        twin([item(1, add=float("nan"))])


@pytest.mark.parametrize(("labels", "wanted"), [((255, 255), 0.0), ((255, 1), None)])
def test_labels_on_a_device_are_looked_at_there(labels, wanted):
    model = Model()
    LossCheck.of(model).deferred = True
    inputs = [item(label) for label in labels]
    with HostWaits() as device:
        losses = model(inputs)
        sum(losses.values()).backward()
        broken = LossCheck.of(model).broken()
        assert device.waits == [], device.places
    assert float(broken) == 0
    assert model.weight.grad.isfinite().all()
    assert (
        float(losses["loss_sem_seg"].detach()) == 0 if wanted == 0 else losses["loss_sem_seg"] > 0
    )


def test_evaluation_is_left_alone():
    model = Model().eval()
    assert torch.isnan(model([item(255)])["loss_sem_seg"])


def test_metrics_are_json_line_by_line(tmp_path):
    path = str(tmp_path / "metrics.json")
    for start in (0, 4):  # the second as a run that goes on
        writer = MetricsFile(path)
        with EventStorage(start) as storage:
            for _ in range(2):
                storage.put_scalar("loss", 2.0 * storage.iter, smoothing_hint=False)
                if storage.iter == 1:
                    storage.put_scalar("sem_seg/IoU-c", float("nan"), smoothing_hint=False)
                writer.write()
                storage.step()
            writer.write()
        writer.close()

    def refuse(word):
        raise ValueError(word)

    texts = Path(path).read_text().splitlines()
    lines = [json.loads(text, parse_constant=refuse) for text in texts]
    assert lines == [
        {"iteration": 0, "loss": 0.0},
        {"iteration": 1, "loss": 2.0, "sem_seg/IoU-c": None},
        {"iteration": 4, "loss": 8.0},
        {"iteration": 5, "loss": 10.0},
    ]
