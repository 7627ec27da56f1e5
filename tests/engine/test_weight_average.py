"""The average of weights: its numbers, its place in a run, and what it is worth afterwards."""

import copy

import pytest
import torch
from classifier_runs import options, results, run
from detectron2.engine import HookBase
from torch import nn

from divdr.engine.checkpointer import AVERAGED, RoutingCheckpointer
from divdr.engine.precise_bn import PreciseBNHook
from divdr.engine.weight_average import InAverageHook, WeightAverage, beside
from divdr.errors import CheckpointError
from divdr.settings import AverageSettings


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))


def averaged(model, steps, **settings):
    """An average over steps that move the weights by chance, and the weights of every step."""
    average = WeightAverage(model, AverageSettings(enabled=True, **settings))
    seen = []
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        model(torch.randn(4, 2, 5, 5))
        average.update()
        seen.append({k: v.clone().double() for k, v in model.state_dict().items()})
    return average, seen


@pytest.mark.parametrize("warm_up", [False, True])
def test_average_by_hand(warm_up):
    model = network()
    average, seen = averaged(model, 6, decay=0.7, warm_up=warm_up)
    wanted = seen[0]
    for step, weights in enumerate(seen[1:], start=1):
        decay = min(0.7, (1 + step) / (10 + step)) if warm_up else 0.7
        wanted = {k: decay * wanted[k] + (1 - decay) * v for k, v in weights.items()}
    found = average.model_state()
    for name, value in wanted.items():
        if name == "1.num_batches_tracked":
            assert found[name] == 6
        else:
            torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-6)


def test_weights_come_back_to_the_bit_also_after_an_error():
    model = network()
    average, seen = averaged(model, 3, decay=0.5)
    before = average.model_state()

    def fail():
        with average.in_model():
            assert not model[0].weight.double().equal(seen[-1]["0.weight"])
            model[1].running_mean.fill_(7.0)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(v.double().equal(seen[-1][k]) for k, v in model.state_dict().items())
    assert all(v.equal(before[k]) for k, v in average.model_state().items())
    with average.in_model(keep=True):
        model[1].running_mean.fill_(7.0)
    assert average.model_state()["1.running_mean"].tolist() == [7.0] * 3
    assert model[1].running_mean.double().equal(seen[-1]["1.running_mean"])


def test_it_goes_on_exactly_and_refuses_another_model():
    model = network()
    average, _ = averaged(model, 4)
    state = copy.deepcopy(average.state_dict())
    twin = WeightAverage(copy.deepcopy(model), AverageSettings(enabled=True))
    twin.load_state_dict(state)
    for each in (average, twin):
        with torch.no_grad():
            each._model[0].weight.fill_(3.0)
        each.update()
    assert twin.steps == 5
    assert all(v.equal(average.model_state()[k]) for k, v in twin.model_state().items())
    other = WeightAverage(nn.Linear(2, 2), AverageSettings(enabled=True))
    with pytest.raises(CheckpointError, match="average of weights is of another model"):
        other.load_state_dict(state)


def test_statistics_are_estimated_for_the_average_itself(tmp_path):
    """Precise BatchNorm of the average is of its own activations, and the model keeps its own."""
    model = network()
    average, _ = averaged(model, 3, decay=0.9, warm_up=False)
    batches = [torch.randn(8, 2, 6, 6) for _ in range(2)]
    hook = InAverageHook(
        average,
        [PreciseBNHook(0, model, lambda: batches, 2)],
        (0, 2),
        RoutingCheckpointer(model, str(tmp_path)),
    )

    class Ends(HookBase):
        iter, max_iter = 4, 5

    hook.trainer = Ends()
    before = copy.deepcopy(model.state_dict())
    state = average.model_state()
    weight, bias = state["0.weight"][:, :, 0, 0], state["0.bias"]
    hook.after_step()
    seen = torch.cat(batches).permute(0, 2, 3, 1).reshape(-1, 2) @ weight.T + bias
    saved = torch.load(tmp_path / AVERAGED, weights_only=True)["model"]
    torch.testing.assert_close(saved["1.running_mean"], seen.mean(0))
    torch.testing.assert_close(saved["1.running_var"], seen.var(0, correction=0))
    for name, value in model.state_dict().items():
        assert name == "1.num_batches_tracked" or value.equal(before[name])


def test_no_run_goes_on_from_it(tmp_path):
    model = network()
    checkpointer = RoutingCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000004")
    torch.save(checkpointer.content(model.state_dict()), tmp_path / AVERAGED)
    (tmp_path / "last_checkpoint").write_text("gone.pth")
    assert checkpointer.get_checkpoint_file().endswith("model_0000004.pth")


def test_results_stand_beside_each_other():
    one, two = {"sem_seg": {"mIoU": 1.0}}, {"sem_seg": {"mIoU": 2.0}}
    assert beside(one, two, ["a"]) == {"sem_seg": {"mIoU": 1.0}, "sem_seg_ema": {"mIoU": 2.0}}
    both = beside({"a": one, "b": two}, {"a": two, "b": one}, ["a", "b"])
    assert both["b"] == {"sem_seg": {"mIoU": 2.0}, "sem_seg_ema": {"mIoU": 1.0}}


def test_a_run_evaluates_saves_and_resumes_it(tmp_path, few_digits):
    config = "digits_dynk.yaml"
    keys = ["SOLVER.EMA.ENABLED", "True", "SOLVER.EMA.DECAY", "0.9", "SOLVER.MAX_ITER", "8"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    run(config, options(whole, few_digits, *keys))
    figures = results(whole, few_digits[1])
    assert figures["classification"] != figures["classification_ema"]
    run(config, options(part, few_digits, *keys, "SOLVER.STOP_ITER", 5))
    run(config, options(part, few_digits, *keys), resume=True)
    assert results(part, few_digits[1]) == figures
    one, other = (torch.load(f / AVERAGED, weights_only=True) for f in (whole, part))
    assert all(value.equal(other["model"][name]) for name, value in one["model"].items())
    last = torch.load(whole / "model_final.pth", weights_only=True)
    assert last["weight_average"]["steps"] == 8
    assert "weight_average" not in one
    assert "trainer" not in one
    alone = tmp_path / "alone"
    weights = ["MODEL.WEIGHTS", whole / AVERAGED]
    run(config, options(alone, few_digits, *weights), eval_only=True)
    again = results(alone, few_digits[1])["classification"]
    assert again == figures["classification_ema"]
