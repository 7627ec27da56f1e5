"""A loss that is not finite reaches no weight, whenever the host looks; and how often it does."""

import math

import pytest
import torch
from detectron2.utils.events import EventStorage
from host_waits import HostWaits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import in_two_processes

from divdr import get_divdr_config
from divdr.engine import build_optimizer
from divdr.engine.finite import LossCheck
from divdr.engine.solver import loss_check_period
from divdr.engine.training_loop import TrainingLoop
from divdr.errors import NonFiniteLossError

STEPS = 8


class Model(nn.Module):
    """Two losses; a batch may add something to the second, without or with a gradient."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        LossCheck.attach(self)

    def forward(self, batch):
        x, added, times = batch
        y = self.norm(self.line(x))
        return {"loss_one": y.square().mean(), "loss_two": (y - 1).abs().mean() * times + added}


def batches(broken=None, kind="nan", count=STEPS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    made = [(torch.randn(6, 4, generator=generator), 0.0, 1.0) for _ in range(count)]
    if broken is not None:
        x = made[broken][0]
        spoilt = {"nan": (x, math.nan, 1.0), "constant": (x, math.inf, 1.0)}
        spoilt["gradient"] = (x, 0.0, math.inf)
        made[broken] = spoilt[kind]
    return made


def config(period, optimizer="SGD", *, clip="", device="cpu"):
    cfg = get_divdr_config()
    cfg.SOLVER.LOSS_CHECK_PERIOD, cfg.SOLVER.OPTIMIZER = period, optimizer
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY = 0.05, 0.01
    cfg.MODEL.DEVICE = device
    if clip:
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
        cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip
        cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.1
    return cfg


def loop_of(data, cfg, dtype="float32"):
    model = Model()
    optimizer = build_optimizer(cfg, model)
    return small_scale(TrainingLoop(model, data, optimizer, dtype, cfg.SOLVER.LOSS_CHECK_PERIOD))


def small_scale(loop):
    """One with which nothing overflows: halved, it then changes no result."""
    if loop.grad_scaler.is_enabled():
        loop.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return loop


def train(loop, steps=STEPS):
    """Until the end or an error, which is returned with the storage."""
    with EventStorage() as storage:
        for loop.iter in range(steps):
            storage.iter = loop.iter
            try:
                loop.run_step()
                if loop.iter == steps - 1:
                    loop.look()
            except NonFiniteLossError as error:
                return error, storage
    return None, storage


def state(loop):
    optimizer = loop.optimizer.state_dict()["state"]
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    learned = {k: v for k, v in loop.model.state_dict().items() if not k.endswith(statistics)}
    return learned, {
        f"{number}.{name}": torch.as_tensor(value)
        for number, entry in optimizer.items()
        for name, value in entry.items()
    }


def same(one, other, *, rtol=0.0, atol=0.0):
    for mine, theirs in zip(state(one), state(other), strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            torch.testing.assert_close(value, theirs[key], rtol=rtol, atol=atol)


@settings(max_examples=30, deadline=None)
@given(
    broken=st.integers(0, STEPS - 1),
    period=st.integers(2, STEPS),
    kind=st.sampled_from(["nan", "constant", "gradient"]),
    optimizer=st.sampled_from(["SGD", "ADAM", "ADAMW"]),
    clip=st.sampled_from(["", "full_model", "value", "norm"]),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
)
def test_a_broken_step_is_as_if_it_had_not_been(broken, period, kind, optimizer, clip, dtype):
    cfg = config(period, optimizer, clip=clip)
    loop = loop_of(batches(broken, kind), cfg, dtype)
    assert loop.period == period
    error, _ = train(loop)
    assert isinstance(error, NonFiniteLossError)
    assert f"loss_two is not finite in iteration {broken}" in str(error)
    # It stops at the next look, and all other steps up to there were taken.
    last = min(STEPS, (broken // period + 1) * period)
    assert loop.iter == last - 1
    without = batches()
    del without[broken]
    wanted = loop_of(without, cfg, dtype)
    train(wanted, last - 1)
    same(loop, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_looking_at_every_loss_stops_before_it_is_learned_from(dtype):
    loop = loop_of(batches(3), config(1), dtype)
    error, _ = train(loop)
    assert "loss_two is not finite; training stops" in str(error)
    assert loop.iter == 3
    wanted = loop_of(batches(), config(1), dtype)
    train(wanted, 3)
    same(loop, wanted)


@pytest.mark.parametrize("optimizer", ["SGD", "ADAM"])
def test_period_and_fused_steps_change_neither_weights_nor_figures(optimizer):
    loops, found = [], []
    for period in (1, 3):
        loop = loop_of(batches(), config(period, optimizer))
        _, storage = train(loop)
        loops.append(loop)
        names = ("loss_one", "loss_two", "total_loss", "data_time", "rank_data_time")
        found.append({name: storage.history(name).values() for name in names})
    same(*loops, rtol=1e-4, atol=1e-5)
    for name, values in found[0].items():
        assert [at for _, at in found[1][name]] == [at for _, at in values] == list(range(STEPS))
        if "time" not in name:
            numbers = [value for value, _ in values]
            assert [value for value, _ in found[1][name]] == pytest.approx(numbers, rel=1e-4)


def test_others_optimisers_are_looked_after_every_iteration():
    model = Model()
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    assert TrainingLoop(model, [], plain, period=20).period == 1
    assert TrainingLoop(nn.Linear(1, 1), [], plain, period=20).period == 1


def test_a_resumed_run_goes_on_as_before():
    cfg = config(4)
    whole = loop_of(batches(), cfg)
    train(whole)
    first = loop_of(batches()[:5], cfg)
    train(first, 5)
    second = loop_of(batches()[5:], cfg)
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(first.state_dict())
    train(second, 3)
    same(second, whole)


def test_a_gpu_is_looked_at_every_twenty_iterations():
    periods = {device: loss_check_period(config(0, device=device)) for device in ("cpu", "cuda")}
    assert periods == {"cpu": 1, "cuda": 20}
    # So its optimiser must be able to skip a step by itself.
    optimizer = build_optimizer(config(0, device="cuda"), Model())
    assert optimizer.param_groups[0]["fused"]


@pytest.mark.parametrize("optimizer", ["SGD", "ADAMW"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_host_waits_for_the_look_alone(optimizer, dtype):
    loop = loop_of(batches(count=20), config(10, optimizer, clip="value"), dtype)
    with EventStorage() as storage, HostWaits() as device:
        for loop.iter in range(20):
            storage.iter = loop.iter
            loop.run_step()
            assert len(device.waits) == (loop.iter + 1) // 10, device.places
    assert len(storage.history("total_loss").values()) == 20


def _of_one_process(rank, dtype):
    cfg = config(4)
    model = Model()
    optimizer = build_optimizer(cfg, model)
    data = batches(2 if rank else None, seed=1 + rank)
    loop = small_scale(TrainingLoop(DistributedDataParallel(model), data, optimizer, dtype, 4))
    error, _ = train(loop)
    return str(error), loop.iter, state(loop)


def _of_process(rank):
    found = {dtype: _of_one_process(rank, dtype) for dtype in ("float32", "float16")}
    # The same without the step that one of the two could not make.
    model = Model()
    data = batches(seed=1 + rank)
    del data[2]
    loop = TrainingLoop(
        DistributedDataParallel(model), data, build_optimizer(config(4), model), period=4
    )
    train(loop, 3)
    return found, state(loop)


def test_processes_leave_out_the_same_step_and_stop_together(tmp_path):
    parts = in_two_processes(_of_process, tmp_path)
    for found, wanted in parts:
        for dtype, (error, last, learned) in found.items():
            assert "loss_two is not finite in iteration 2" in error
            assert last == 3
            loose = 1e-6 if dtype == "float32" else 2e-2
            for mine, theirs in zip(learned, wanted, strict=True):
                for key, value in mine.items():
                    assert value.isfinite().all()
                    torch.testing.assert_close(value, theirs[key], rtol=loose, atol=loose)
    for one, other in zip(parts[0][0]["float32"][2], parts[1][0]["float32"][2], strict=True):
        assert all(value.equal(other[key]) for key, value in one.items() if "norm" not in key)
