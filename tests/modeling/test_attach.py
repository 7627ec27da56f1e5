import copy
import threading

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling import FPN, SemanticSegmentor
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from divdr import get_divdr_config
from divdr.config import add_settings
from divdr.errors import ConfigError, DataError
from divdr.modeling import (
    ClusteringLossSettings,
    DynamicRouting,
    DynamicRoutingDecoder,
    attach_routing,
    attach_routing_from_config,
    attached_routing,
    with_routing,
)
from divdr.routing import Periods, Ramp
from divdr.settings import BudgetSettings, ClusteringSettings, RoutingSettings


def segmentor() -> SemanticSegmentor:
    backbone = DynamicRouting(layers=3, scales=3, channels=4)
    head = DynamicRoutingDecoder(input_shape=backbone.output_shape(), num_classes=3)
    return SemanticSegmentor(
        backbone=backbone,
        sem_seg_head=head,
        pixel_mean=[0.0, 0.0, 0.0],
        pixel_std=[1.0, 1.0, 1.0],
    )


def retinanet() -> RetinaNet:
    bottom_up = DynamicRouting(layers=3, scales=4, scales_per_layer=[2, 3, 4], channels=4)
    backbone = FPN(bottom_up, ["res3", "res4", "res5"], 8, top_block=LastLevelMaxPool())
    names = ["p3", "p4", "p5"]
    shapes = [backbone.output_shape()[n] for n in names]
    anchors = DefaultAnchorGenerator(
        sizes=[[16], [32], [64]], aspect_ratios=[[1.0]], strides=[8, 16, 32]
    )
    head = RetinaNetHead(
        input_shape=shapes, num_classes=2, num_anchors=1, conv_dims=[8], prior_prob=0.01
    )
    return RetinaNet(
        backbone=backbone,
        head=head,
        head_in_features=names,
        anchor_generator=anchors,
        box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        anchor_matcher=Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True),
        num_classes=2,
        pixel_mean=[0.0, 0.0, 0.0],
        pixel_std=[1.0, 1.0, 1.0],
    )


def inputs(count: int = 2) -> list[dict]:
    items = []
    for index in range(count):
        boxes = Instances((32, 32))
        boxes.gt_boxes = Boxes(torch.tensor([[4.0, 4.0, 20.0, 24.0]]))
        boxes.gt_classes = torch.tensor([1])
        items.append(
            {
                "image": torch.randn(3, 32, 32),
                "sem_seg": torch.randint(0, 3, (32, 32)),
                "instances": boxes,
                "file_name": f"{index}.png",
                "height": 32,
                "width": 32,
            }
        )
    return items


ALWAYS = Ramp(0.8, 0, 0)


@pytest.mark.parametrize("make", [segmentor, retinanet])
def test_losses_and_records_reach_any_model(make):
    model = make()
    names = set(model.state_dict())
    with EventStorage():
        plain = set(model.train()(inputs()))
    routing = attach_routing(model, num_experts=2, budget=ALWAYS, budget_target=0.1)
    assert set(model.state_dict()) == names
    assert attached_routing(model) is routing
    with EventStorage():
        losses = model(inputs())
    assert set(losses) == plain | {"loss_budget", "loss_clustering"}
    record = routing.backbone.routing
    share = record.expected_cost.detach() / record.full_cost
    assert float(losses["loss_budget"].detach()) == pytest.approx(
        float(0.8 * ((share - 0.1) ** 2).mean()), rel=1e-5
    )
    sum(losses.values()).backward()
    assert routing.backbone.network.layers[0][0].gate.predict.bias.grad.abs().sum() > 0

    with torch.no_grad():
        outputs = model.eval()(inputs(3))
    batch = routing.backbone.routing
    for index, output in enumerate(outputs):
        assert output["routing"].activations.equal(batch.activations[index : index + 1])


def test_clustering_loss_is_that_of_the_experts():
    model = segmentor().train()
    settings = ClusteringLossSettings(weight=0.3, margin=0.7, squared=True)
    routing = attach_routing(model, num_experts=2, clustering=settings)
    assert float(model(inputs())["loss_clustering"]) == 0.0
    for index in range(4):
        batch = inputs()
        for item in batch:
            item["file_name"] = f"{index}{item['file_name']}"
        model(batch)
    assert routing.experts.cluster(0) is not None
    loss = model(inputs())["loss_clustering"]
    a = routing.backbone.routing.activations.detach()
    squares = torch.cdist(a, routing.experts.centres) ** 2 / (2 * routing.experts.sigma2)
    near, far = squares.min(dim=1).values, squares.max(dim=1).values
    wanted = 0.3 * (0.7 + near - far).clamp(min=0).mean()
    assert float(loss.detach()) == pytest.approx(float(wanted), abs=1e-5)


def test_bank_notes_every_image_once_and_only_while_training():
    model = segmentor().train()
    routing = attach_routing(model, num_experts=2)
    model(inputs())
    model(inputs(3))
    assert sorted(routing.experts.bank.keys) == ["0.png", "1.png", "2.png"]
    latest = routing.backbone.routing.activations.detach()
    order = [routing.experts.bank.keys.index(f"{i}.png") for i in range(3)]
    assert routing.experts.bank.rows[order].equal(latest.half().float())
    with torch.no_grad():
        model(inputs(4))
    model.eval()(inputs(5))
    assert len(routing.experts.bank) == 3


def test_gates_before_the_non_linearity():
    model = segmentor().train()
    routing = attach_routing(
        model, num_experts=2, clustering=ClusteringLossSettings(gates="before")
    )
    model(inputs())
    record = routing.backbone.routing
    assert not record.logits.equal(record.activations)
    kept = record.logits.detach().half().float()
    assert sorted(routing.experts.bank.rows.tolist()) == sorted(kept.tolist())
    shown = record.activations > 0
    assert torch.tanh(record.logits[shown]).allclose(record.activations[shown])


@pytest.mark.parametrize("per", ["image", "batch"])
def test_the_budget_is_squared_per_image_or_per_batch(per):
    cfg = get_divdr_config()
    budget = cfg.MODEL.ROUTING.BUDGET
    budget.WEIGHT, budget.TARGET, budget.START, budget.RAMP, budget.PER = 0.5, 0.2, 0.0, 0.0, per
    model = segmentor().train()
    for cell in model.backbone.network.cells():
        torch.nn.init.normal_(cell.gate.predict.weight, std=2.0)
    routing = attach_routing_from_config(model, cfg)
    loss = float(model(inputs(4))["loss_budget"].detach())
    shares = (routing.backbone.routing.expected_cost / routing.backbone.routing.full_cost).tolist()
    wanted = {
        "image": 0.5 * sum((s - 0.2) ** 2 for s in shares) / 4,
        "batch": 0.5 * (sum(shares) / 4 - 0.2) ** 2,
    }
    assert loss == pytest.approx(wanted[per], rel=1e-5)
    assert wanted["image"] > wanted["batch"] * 1.001
    budget.PER = "epoch"
    with pytest.raises(ConfigError, match=r"BUDGET\.PER"):
        attach_routing_from_config(segmentor(), cfg)


def test_settings_are_attached_whole():
    clustering = {"num_experts": 2, "margin": 0.7, "bank": "recent", "start": 0.5, "period": 3}
    budget = {"weight": 0.8, "target": 0.2}
    settings = RoutingSettings(
        budget=BudgetSettings(**budget), clustering=ClusteringSettings(**clustering)
    )
    described = L(RoutingSettings)(
        budget=L(BudgetSettings)(**budget),
        clustering=L(ClusteringSettings)(**clustering),
        ops=["skip_connect"],
    )
    lazy = L(with_routing)(model=L(segmentor)(), routing=described, max_iter=50, batch_size=4)
    routing = attached_routing(instantiate(lazy))
    cfg = get_divdr_config()
    add_settings(cfg, settings)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH = 50, 4
    other = attach_routing_from_config(segmentor(), cfg, cluster=True)
    for supervision in (routing, other):
        assert supervision.budget == Ramp(0.8, start=20, length=1)
        assert supervision.periods == Periods(25, 3)
        assert (supervision.clustering.margin, supervision.budget_target) == (0.7, 0.2)
        assert (supervision.experts.num_experts, supervision.experts.bank_iterations) == (2, 100)


def test_budget_switches_on_by_the_iteration_of_the_trainer():
    model = segmentor().train()
    attach_routing(model, budget=Ramp(0.8, start=10, length=0))
    with EventStorage(9):
        assert float(model(inputs())["loss_budget"]) == 0.0
    with EventStorage(10) as storage:
        assert float(model(inputs())["loss_budget"]) > 0.0
        assert storage.latest()["train/real_gflops"][0] > 0


def test_state_goes_into_a_checkpoint_and_comes_back(tmp_path):
    model = segmentor().train()
    routing = attach_routing(model, num_experts=2)
    model(inputs(4))
    routing.experts.cluster(0)
    torch.save(routing.state_dict(), tmp_path / "state.pth")
    other = attach_routing(segmentor(), num_experts=2)
    other.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    assert other.experts.centres.equal(routing.experts.centres)
    assert other.experts.bank.rows.equal(routing.experts.bank.rows)
    assert other.experts.sigma2.equal(routing.experts.sigma2)


def test_images_without_a_name_are_refused():
    model = segmentor().train()
    attach_routing(model, num_experts=2)
    batch = inputs()
    del batch[1]["file_name"]
    with pytest.raises(DataError, match="file_name"):
        model(batch)


def test_attaching_twice_or_to_another_backbone_is_refused():
    model = segmentor()
    attach_routing(model)
    with pytest.raises(ValueError, match="attached"):
        attach_routing(model)
    with pytest.raises(ValueError, match="0 DynamicRouting"):
        attach_routing(torch.nn.Linear(1, 1))


def test_a_copied_model_keeps_its_own_record():
    model = segmentor()
    attach_routing(model, num_experts=2)
    twin = copy.deepcopy(model).train()
    twin(inputs())
    assert attached_routing(twin).backbone.routing is not None
    assert attached_routing(model).backbone.routing is None


def test_autocast_keeps_decisions_in_full_precision():
    model = segmentor().train()
    routing = attach_routing(model, num_experts=2, budget=ALWAYS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(inputs())
    record = routing.backbone.routing
    assert record.activations.dtype == torch.float32
    assert record.expected_cost.dtype == torch.float32
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("make", [segmentor, retinanet])
def test_a_batch_may_be_given_by_name(make):
    model = make().train()
    attach_routing(model, num_experts=2, budget=ALWAYS)
    with EventStorage():
        losses = model(batched_inputs=inputs())
    assert {"loss_budget", "loss_clustering"} <= set(losses)
    assert attached_routing(model).experts.bank.keys == ["0.png", "1.png"]
    with torch.no_grad():
        outputs = model.eval()(batched_inputs=inputs(3))
    assert all(len(output["routing"]) == 1 for output in outputs)


class _Loss(torch.nn.Module):
    """A model whose argument is no list of dicts."""

    def __init__(self):
        super().__init__()
        self.backbone = DynamicRouting(layers=2, scales=2, channels=4)

    def forward(self, image):
        return {"loss": self.backbone(image)["res2"].mean()}


def test_what_is_no_batch_is_reported():
    model = _Loss().train()
    attach_routing(model, num_experts=2)
    with pytest.raises(DataError, match="a list of dicts"):
        model(image=torch.randn(1, 3, 32, 32))


def test_evaluation_in_inference_mode_does_not_stop_training():
    model = segmentor()
    experts = attach_routing(model, num_experts=2).experts
    # On a machine without other devices, stand-ins for a bank that moves: a copy each time.
    for step in range(3):
        model.train()(inputs(4))
        experts.cluster(step)
    with torch.inference_mode():
        model.eval()(inputs(2))
        experts.cluster(3)
        experts.load_state_dict(experts.state_dict())
        experts.to("meta")  # another device than the loss's
    kept = (experts.centres, experts.sigma2, experts.bank._storage)
    assert not any(tensor.is_inference() for tensor in kept)


def test_experts_of_inference_mode_train():
    model = segmentor().train()
    experts = attach_routing(model, num_experts=2).experts
    with EventStorage():
        model(inputs(4))
        with torch.inference_mode():
            experts.cluster(0)
        losses = model(inputs(2))
        sum(losses.values()).backward()
        model(inputs(4))
    assert len(experts.bank) == 4


def test_activations_that_are_not_finite_never_enter_the_bank():
    model = segmentor().train()
    routing = attach_routing(model, num_experts=2)
    model(inputs())
    rows = routing.experts.bank.rows
    with torch.no_grad():
        for cell in routing.backbone.network.cells():
            if cell.gate is not None:
                cell.gate.predict.bias.fill_(float("nan"))
    batch = inputs(3)
    model(batch)
    assert not routing.backbone.routing.activations.isfinite().all()
    assert routing.experts.bank.keys == ["0.png", "1.png"]
    assert routing.experts.bank.rows.equal(rows)


def test_a_bank_that_only_measures_may_stay_out_of_checkpoints():
    model = segmentor().train()
    routing = attach_routing(model, num_experts=2, save_bank=False)
    model(inputs(4))
    routing.experts.cluster(0)
    state = routing.state_dict()
    assert state["experts"]["bank"] is None
    assert state["experts"]["members"] is None
    other = attach_routing(segmentor().train(), num_experts=2)
    other.load_state_dict(state)
    assert other.experts.centres.equal(routing.experts.centres)
    assert len(other.experts.bank) == 0
    other.keep_images(["0.png"])
    other.experts.bank.update(["x", "y"], routing.experts.bank.rows[:2], 1)
    report = other.experts.cluster(1)
    assert sum(report.sizes) == 2
    assert report.agreement == 0.0


def test_images_that_are_gone_are_forgotten_with_a_line(caplog):
    routing = attach_routing(segmentor(), num_experts=2)
    experts = routing.experts
    rows = torch.rand(4, experts.dim)
    experts.bank.update(["s/a.png", "s/b.png", "s/c.png", "s/d.png"], rows, 0)
    experts.cluster(0)
    caplog.set_level("INFO")
    routing.keep_images(["s/a.png", "s/b.png", "s/c.png", "s/d.png", "s/e.png"])
    assert not caplog.records
    routing.keep_images(["t/d.png", "s/a.png", "s/c.png"])
    assert experts.bank.keys == ["s/a.png", "s/c.png"]
    assert experts.members.keys == ["s/a.png", "s/c.png"]
    assert "Of the checkpoint's 4 activations 2 are of no image" in caplog.text
    attach_routing(segmentor()).keep_images(["a"])  # nothing is remembered without experts


def test_paths_of_checkpoints_of_before_become_keys(caplog):
    model = segmentor().train()
    routing = attach_routing(model, num_experts=2)
    experts = routing.experts
    rows = torch.rand(3, experts.dim).half()
    files = ["/old/s/a.png", "/old/s/b.png", "/old/s/gone.png"]
    experts.bank.update(files, rows, 0)
    experts.cluster(0)
    own = experts.members.of(files)
    state = routing.state_dict()
    del state["experts"]["bank"]["former_keys"]  # as it was
    other = attach_routing(segmentor().train(), num_experts=2)
    other.load_state_dict(state)
    other.keep_images(["s/b.png", "s/a.png", "s/c.png"])
    assert other.experts.bank.keys == ["s/a.png", "s/b.png"]
    assert other.experts.bank.rows.equal(rows[:2].float())
    assert other.experts.members.of(["s/a.png", "s/b.png"]).tolist() == own[:2].tolist()
    # A script that knows no training set swaps them as images come by.
    third = segmentor().train()
    attach_routing(third, num_experts=2).load_state_dict(state)
    batch = inputs(1)
    batch[0].update(file_name="/old/s/a.png", image_id=4)
    third(batch)
    kept = attached_routing(third).experts.bank.keys
    assert [key for key in kept if "a.png" in key] == ["#4/old/s/a.png"]
    assert len(kept) == 3


class _Sometimes(torch.nn.Module):
    """A model that looks at its backbone only if told so."""

    def __init__(self):
        super().__init__()
        self.backbone = DynamicRouting(layers=2, scales=2, channels=4)

    def forward(self, items):
        if items[0]["look"]:
            self.backbone(torch.randn(len(items), 3, 32, 32))
        return [{} for _ in items]


def test_a_record_is_never_that_of_an_earlier_forward():
    model = _Sometimes().eval()
    attach_routing(model)
    with torch.no_grad():
        assert "routing" in model([{"look": True}])[0]
        assert "routing" not in model([{"look": False}])[0]


def test_training_forwards_cluster_by_themselves_where_periods_say_so():
    model = with_routing(segmentor(), num_experts=2, periods=Periods(start=1, period=2)).train()
    experts = attached_routing(model).experts
    with EventStorage() as storage:
        seen = []
        for iteration in range(5):
            storage.iter = iteration
            batch = inputs()
            for item in batch:
                item["file_name"] = f"{iteration}{item['file_name']}"
            before = experts.centres
            model(batch)
            if iteration == 2:  # gradients of a second batch are added up: no second clustering
                once = experts.centres
                model(batch)
                assert experts.centres is once
            seen.append(experts.centres is not before)
    # Periods end with iterations 2 and 4 (from 0): one is left out, then every second.
    assert seen == [False, False, True, False, True]
    assert storage.latest()["clustering/inter_experts"][1] == 4


def test_without_periods_forwards_never_cluster():
    model = with_routing(segmentor(), num_experts=2).train()
    for _ in range(3):
        model(inputs(4))
    assert attached_routing(model).experts.centres is None


def test_threads_on_one_model_each_get_the_record_of_their_own_images():
    model = segmentor().eval()
    attach_routing(model)
    inside, go_on = threading.Event(), threading.Event()
    head = model.sem_seg_head.forward

    def waiting(*args):
        if threading.current_thread().name == "slow":
            inside.set()
            assert go_on.wait(60)
        return head(*args)

    model.sem_seg_head.forward = waiting
    pictures = [torch.rand(3, 64, 64) * 200, torch.rand(3, 64, 64) * 3 - 50]
    found = {}

    def run(name, image):
        with torch.no_grad():
            found[name] = model([{"image": image, "height": 64, "width": 64}])[0]["routing"]

    slow = threading.Thread(target=run, args=("slow", pictures[0]), name="slow")
    slow.start()
    # While the first is between backbone and head, a whole other call comes and goes.
    assert inside.wait(60)
    run("quick", pictures[1])
    go_on.set()
    slow.join()
    for name, image in zip(("slow", "quick"), pictures, strict=True):
        run("alone", image)
        assert found[name].activations.equal(found["alone"].activations), name
    assert not found["slow"].activations.equal(found["quick"].activations)
