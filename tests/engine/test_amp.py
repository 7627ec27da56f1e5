import copy

import pytest
import torch
from detectron2.utils.events import EventStorage

from divdr.engine.training_loop import TrainingLoop
from divdr.errors import ConfigError


class _Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = torch.nn.Linear(4, 2)
        self.seen = []

    def forward(self, x):
        y = self.line(x)
        self.seen.append(y.dtype)
        return {"loss_one": y.float().square().mean(), "loss_two": y.float().abs().mean()}


def trainer_of(dtype, batches):
    model = _Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return TrainingLoop(model, batches, optimizer, dtype)


def steps(trainer, count):
    with EventStorage():
        for trainer.iter in range(count):
            trainer.run_step()


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_step_is_that_of_the_gradients_in_half_precision(name):
    batches = [torch.randn(8, 4) / 10 for _ in range(3)]
    trainer = trainer_of(name, batches)
    twin = copy.deepcopy(trainer.model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    steps(trainer, 3)
    for batch in batches:
        with torch.autocast("cpu", getattr(torch, name)):
            losses = twin(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert not twin.line.weight.equal(_Line().line.weight)
    assert trainer.model.seen == [getattr(torch, name)] * 3
    for one, other in zip(trainer.model.parameters(), twin.parameters(), strict=True):
        assert one.allclose(other, rtol=2e-3, atol=2e-4)  # gradients round where they are scaled


def test_gradients_beyond_float16_move_nothing_and_lower_the_scale():
    trainer = trainer_of("float16", [torch.full((8, 4), 60.0)] * 30)
    before = copy.deepcopy(trainer.model.state_dict())
    scale = trainer.grad_scaler.get_scale()
    steps(trainer, 1)
    assert trainer.grad_scaler.get_scale() == scale / 2
    assert all(before[k].equal(v) for k, v in trainer.model.state_dict().items())
    steps(trainer, 20)
    assert not before["line.weight"].equal(trainer.model.line.weight)


def test_a_resumed_run_scales_as_before():
    trainer = trainer_of("float16", [torch.full((8, 4), 60.0)] * 5)
    steps(trainer, 3)
    twin = trainer_of("float16", [])
    twin.load_state_dict(trainer.state_dict())
    assert twin.grad_scaler.get_scale() == trainer.grad_scaler.get_scale() < 2**16
    # From the other precision, which scales nothing, and to it.
    twin.load_state_dict(trainer_of("bfloat16", []).state_dict())
    trainer_of("bfloat16", []).load_state_dict(trainer.state_dict())


def test_other_precisions_are_refused():
    with pytest.raises(ConfigError, match="float16, bfloat16, not 'float8'"):
        trainer_of("float8", [])
