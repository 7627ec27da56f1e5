"""A batch in parts: the step of the whole batch, whatever else training does."""

import copy
import logging
import math

import pytest
import torch
import torch.distributed as dist
from detectron2.modeling import SemanticSegmentor
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from two_processes import join, start_two

from divdr.engine import build_optimizer, load_config
from divdr.engine.batches import split_batch
from divdr.engine.finite import LossCheck
from divdr.engine.precise_bn import warn_of_small_batches
from divdr.engine.trainer import Trainer, _distributed
from divdr.engine.training_loop import TrainingLoop
from divdr.errors import ConfigError, NonFiniteLossError
from divdr.modeling import DynamicRouting, DynamicRoutingDecoder, attach_routing, attached_routing
from divdr.routing import BatchCost, CostController, CostTarget, Ramp, SynchronisedBatchNorm

CLOSE = {"rtol": 1e-6, "atol": 1e-9}
"""Of gradients up to 0.1: shares of cost are of float32 and all else of float64."""


def images(count=4, ignored=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        labels = torch.randint(0, 3, (64, 96), generator=generator)
        labels[torch.rand(64, 96, generator=generator) < ignored * number] = 255
        pixels = torch.rand(3, 64, 96, generator=generator, dtype=torch.float64)
        made.append({"image": pixels, "sem_seg": labels, "file_name": f"{number}.png"})
    return made


def segmentor(norm="GN"):
    torch.manual_seed(0)
    backbone = DynamicRouting(layers=3, scales=3, channels=4, norm=norm, gate="full")
    for cell in backbone.network.cells():
        nn.init.normal_(cell.gate.predict.weight, 0, 1.0)
    head = DynamicRoutingDecoder(input_shape=backbone.output_shape(), num_classes=3, norm=norm)
    model = SemanticSegmentor(
        backbone=backbone, sem_seg_head=head, pixel_mean=[0.5] * 3, pixel_std=[1.0] * 3
    )
    routing = attach_routing(model, num_experts=2, budget=Ramp(0.8, 0, 0), budget_target=0.1)
    LossCheck.attach(model)
    rows = torch.rand(4, backbone.space.activation_size, generator=torch.Generator().manual_seed(1))
    routing.experts.bank.update([f"other {i}" for i in range(4)], rows, 0)
    routing.experts.cluster(0)
    return model.double().train()


def gradients(model, batch, parts, steps=1):
    """Of one step, by name, and what was logged."""
    # Nothing moves, so that the gradients of the last step are those at the first weights.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loop = TrainingLoop(model, [batch] * steps, optimizer, parts=parts)
    with EventStorage() as storage:
        for loop.iter in range(steps):
            loop.run_step()
    names = ("total_loss", "loss_sem_seg") if comm.is_main_process() else ()
    logged = {name: storage.history(name).latest() for name in names}
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, logged


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("norm", ["GN", "FrozenBN"])
def test_gradients_and_losses_are_those_of_the_batch(norm, parts):
    model = segmentor(norm)
    whole, logged = gradients(copy.deepcopy(model), images(), 1)
    summed, again = gradients(copy.deepcopy(model), images(), parts)
    assert whole.keys() == summed.keys()
    assert max(float(g.abs().max()) for g in whole.values()) > 1e-3
    for name, gradient in whole.items():
        torch.testing.assert_close(summed[name], gradient, **CLOSE)
    assert again == pytest.approx(logged, rel=1e-6)


def test_parts_with_other_numbers_of_labelled_pixels_weigh_alike():
    """Each part's loss is a mean over its own labelled pixels."""
    model, batch = segmentor(), images(ignored=0.25)
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    found, _ = gradients(copy.deepcopy(model), batch, 4)
    alone = [gradients(copy.deepcopy(model), [item], 1)[0] for item in batch]
    for name, gradient in found.items():
        mean = torch.stack([each[name] for each in alone]).mean(0)
        torch.testing.assert_close(gradient, mean, **CLOSE)
    whole, _ = gradients(copy.deepcopy(model), batch, 1)
    assert any(not torch.allclose(found[n], g, rtol=1e-6) for n, g in whole.items())


class Line(nn.Module):
    """Two losses of a list of rows; one of the rows may spoil the second."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(4, 3)
        LossCheck.attach(self)

    def forward(self, batch):
        y = self.line(torch.stack([x for x, _ in batch]))
        added = sum(spoil for _, spoil in batch)
        return {"loss_one": y.square().mean(), "loss_two": (y - 1).abs().mean() + added}


def rows(count=4, spoilt=None, seed=1):
    generator = torch.Generator().manual_seed(seed)
    made = [(torch.randn(4, generator=generator), 0.0) for _ in range(count)]
    if spoilt is not None:
        made[spoilt] = (made[spoilt][0], math.nan)
    return made


def trained(batches, parts, dtype="float32", period=1, clip=False):
    cfg = load_config("", ["MODEL.DEVICE", "cpu", "SOLVER.BASE_LR", "0.1"])
    cfg.SOLVER.LOSS_CHECK_PERIOD = period
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    clipping.ENABLED, clipping.CLIP_TYPE, clipping.CLIP_VALUE = clip, "full_model", 0.1
    model = Line()
    loop = TrainingLoop(model, batches, build_optimizer(cfg, model), dtype, period, parts)
    if loop.grad_scaler.is_enabled():
        loop.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    error = None
    with EventStorage():
        for loop.iter in range(len(batches)):
            try:
                loop.run_step()
            except NonFiniteLossError as caught:
                error = caught
        if period > 1:
            with pytest.raises(NonFiniteLossError) if error is None else EventStorage():
                loop.look()
    return model


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-6), ("float16", 5e-3)])
def test_scaled_and_clipped_steps_are_those_of_the_batch(dtype, rtol):
    batches = [rows(seed=seed) for seed in range(5)]
    for clip in (False, True):
        one, other = (trained(batches, parts, dtype, clip=clip) for parts in (1, 2))
        for name, value in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, rtol=rtol, atol=rtol / 10)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("spoilt", [0, 3])
def test_a_broken_part_leaves_the_whole_step_out(dtype, spoilt):
    batches = [rows(seed=0), rows(seed=1, spoilt=spoilt), rows(seed=2)]
    found = trained(batches, 2, dtype, period=8).state_dict()
    wanted = Line()
    optimizer = torch.optim.SGD(wanted.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for batch in (batches[0], batches[2]):
        optimizer.zero_grad()
        sum(wanted(batch).values()).backward()
        optimizer.step()
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=5e-3, atol=1e-3)


def test_processes_exchange_gradients_once_a_step(tmp_path):
    """In processes of their own, which end with the threads of their group."""
    start_two(_process, str(tmp_path))


def _process(rank, folder):
    join(rank, folder)
    model, exchanging = _distributed(segmentor()), []
    model.module.register_forward_pre_hook(
        lambda module, args: exchanging.append(model.require_backward_grad_sync)
    )
    summed, _ = gradients(model, images()[2 * rank : 2 * rank + 2], 2)
    assert exchanging == [False, True]
    dist.destroy_process_group()
    # The mean over processes is that over the batch.
    for name, gradient in gradients(segmentor(), images(), 1)[0].items():
        torch.testing.assert_close(summed[f"module.{name}"], gradient, **CLOSE)


@pytest.fixture
def small(scenes, overrides, repository, names_under):
    """Trains the demo's model with GroupNorm."""

    def train(folder, *pairs, stop=6, resume=False):
        pairs = [*overrides, "MODEL.ROUTING.NORM", "GN", "SOLVER.MAX_ITER", "6", *pairs]
        pairs += ["SOLVER.IMS_PER_BATCH", "4", "DATASETS.TEST", "()", "SOLVER.STOP_ITER", str(stop)]
        pairs += ["OUTPUT_DIR", str(folder), "DATALOADER.NUM_WORKERS", "0"]
        cfg = load_config(str(repository / "configs/demo/divdr.yaml"), pairs)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume)
        trainer.train()
        routing = attached_routing(trainer.model)
        return trainer.model.state_dict(), routing.experts

    with names_under(scenes):
        yield train


def test_a_run_in_parts_sees_the_same_batches_and_goes_on_exactly(small, tmp_path):
    pairs = ["MODEL.ROUTING.DROP_PATH", "0.0"]
    _, bank = small(tmp_path / "batch", *pairs)
    pairs += ["SOLVER.ACCUMULATE", "2"]
    whole, experts = small(tmp_path / "whole", *pairs)
    small(tmp_path / "part", *pairs, stop=3)
    again, same = small(tmp_path / "part", *pairs, resume=True)
    assert all(whole[name].equal(again[name]) for name in whole)
    assert experts.centres.equal(same.centres)
    assert experts.bank.rows.equal(same.bank.rows)
    assert experts.bank.keys == bank.bank.keys
    # The same images in the same steps as without parts.
    assert experts.bank.steps.equal(bank.bank.steps)


def test_memory_of_a_cost_target_moves_once_a_step():
    target = CostTarget(share=0.5, gain=10.0, memory=4)
    costs = [(6.0, 5.0, 8.0), (9.0, 3.0, 4.0)]
    controller = CostController(target)
    controller.parts = 3
    for step in costs:
        for real in step:
            controller.observe(BatchCost(real, 1.0, 11.0), 0)
    # Each step adds gain · mean error / memory, with errors (real − 6) / 10.
    wanted = sum(10.0 * (sum(step) / 3 - 6.0) / 10 / 4 for step in costs)
    assert controller.state_dict()["integral"] == pytest.approx(wanted)


def test_parts_divide_the_batch():
    assert split_batch("anything", 1) == ["anything"]
    assert split_batch([1, 2, 3, 4], 2) == [[1, 2], [3, 4]]
    with pytest.raises(ConfigError, match="ACCUMULATE 3 does not divide a batch of 4 images"):
        split_batch([1, 2, 3, 4], 3)
    with pytest.raises(ConfigError, match="a batch of dict"):
        split_batch({}, 2)
    pairs = ["SOLVER.IMS_PER_BATCH", "8", "SOLVER.ACCUMULATE", "3"]
    with pytest.raises(ConfigError, match=r"^SOLVER.ACCUMULATE 3 does not divide .* 8 into equal"):
        load_config("", pairs)


def test_shares_of_processes_divide_too(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    load_config("", ["SOLVER.IMS_PER_BATCH", "8", "SOLVER.ACCUMULATE", "2"])
    with pytest.raises(ConfigError, match=r"IMS_PER_BATCH 8 \(2 a process\) into equal parts"):
        load_config("", ["SOLVER.IMS_PER_BATCH", "8", "SOLVER.ACCUMULATE", "4"])


@pytest.mark.parametrize(
    ("layer", "numbers", "told"),
    [
        (nn.BatchNorm2d(2), (8, 1, 1), ""),
        (nn.BatchNorm2d(2), (8, 4, 1), "will see 2 images at a time"),
        (nn.BatchNorm2d(2), (8, 1, 8), "will see 1 image at a time"),
        (SynchronisedBatchNorm(2), (8, 1, 8), ""),
        (SynchronisedBatchNorm(2), (8, 4, 1), "see 2 images"),
        (nn.BatchNorm2d(2).eval(), (1, 1, 1), ""),
        (nn.GroupNorm(1, 2), (1, 1, 1), ""),
    ],
)
def test_few_images_for_batch_norm_are_told(layer, numbers, told, caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_small_batches(nn.Sequential(layer), *numbers)
    assert (told in caplog.text) if told else not caplog.text


def test_the_recipe_for_one_card_steps_by_the_published_batch(repository):
    one, published = (
        load_config(str(repository / "configs" / f"{name}.yaml"))
        for name in ("divdr_a_cityscapes_1gpu", "divdr_cityscapes")
    )
    for name in ("IMS_PER_BATCH", "BASE_LR", "MAX_ITER", "WEIGHT_DECAY"):
        assert one.SOLVER[name] == published.SOLVER[name]
    one.MODEL.ROUTING.update(LAYERS=2, SCALES=2, CHANNELS=8)
    one.MODEL.SEM_SEG_HEAD.IN_FEATURES, one.MODEL.DEVICE = ["res2", "res3"], "cpu"
    model = Trainer.build_model(one)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert any(isinstance(m, nn.GroupNorm) for m in model.modules())
