"""The trainer as a library, on the drawn scenes."""

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic

from divdr.engine import Trainer, load_config
from divdr.modeling import attached_routing


@pytest.fixture
def cfg(scenes, overrides, repository, tmp_path, request):
    """Config of the tiny network on a data set of the scenes' 8 training images."""
    name = f"scenes_{request.node.name}"
    images, labels = (str(scenes / "cityscapes" / d / "train") for d in ("leftImg8bit", "gtFine"))
    DatasetCatalog.register(name, lambda: load_cityscapes_semantic(images, labels))
    MetadataCatalog.get(name).set(evaluator_type="sem_seg", ignore_label=255)
    own = ["DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", "()", "OUTPUT_DIR", str(tmp_path)]
    yield load_config(str(repository / "configs/demo/divdr.yaml"), [*overrides, *own])
    DatasetCatalog.remove(name)
    MetadataCatalog.pop(name)


def test_exact_bank_is_the_evaluation_of_the_training_set(cfg):
    cfg.MODEL.ROUTING.CLUSTERING.BANK = "exact"
    cfg.MODEL.ROUTING.NORM = "FrozenBN"  # nothing changes while it trains at rate 0
    cfg.SOLVER.BASE_LR = 0.0
    cfg.SOLVER.MAX_ITER = 4
    trainer = Trainer(cfg)
    trainer.train()
    routing = attached_routing(trainer.model)
    assert trainer.storage.history("clustering/inter_experts").values()
    wanted = {}
    trainer.model.eval()
    with torch.no_grad():
        for inputs in build_detection_test_loader(cfg, cfg.DATASETS.TRAIN[0]):
            record = trainer.model(inputs)[0]["routing"]
            wanted["/".join(inputs[0]["file_name"].split("/")[-2:])] = record.activations[0]
    name = cfg.DATASETS.TRAIN[0]
    assert routing.experts.bank.keys == [f"{name}/{place}" for place in sorted(wanted)]
    rows = torch.stack([wanted[place] for place in sorted(wanted)])
    # Half precision steps by 2^-11 below 1.
    assert routing.experts.bank.rows.allclose(rows, atol=2**-12)


def test_plain_dynamic_routing_measures_without_a_clustering_loss(cfg):
    cfg.MODEL.ROUTING.CLUSTERING.WEIGHT = 0.0
    cfg.SOLVER.MAX_ITER = 4
    trainer = Trainer(cfg)
    trainer.train()
    latest = trainer.storage.latest()
    assert "loss_clustering" not in latest
    assert latest["clustering/inter_experts"][1] == 3
    assert latest["clustering/size_0"][0] + latest["clustering/size_1"][0] == 8


def test_without_clustering_there_is_no_bank(cfg):
    cfg.MODEL.ROUTING.CLUSTERING.ENABLED = False
    cfg.MODEL.ROUTING.GATE = "none"
    cfg.SOLVER.MAX_ITER = 2
    trainer = Trainer(cfg)
    trainer.train()
    assert attached_routing(trainer.model).experts is None
    assert "clustering/inter_experts" not in trainer.storage.latest()
    assert "train/real_gflops" in trainer.storage.latest()


def test_the_end_of_training_corrects_what_evaluation_runs(cfg):
    budget = cfg.MODEL.ROUTING.BUDGET
    budget.WEIGHT, budget.TARGET_SHARE, budget.TARGET_CALIBRATION = 0.0, 0.5, 4
    budget.TARGET_START, budget.TARGET_RAMP = 0.0, 2.0
    trainer = Trainer(cfg)
    biases = [c.gate.predict.bias for c in trainer.model.backbone.network.cells()]
    last = []
    step = trainer.run_step

    def noting():
        step()
        last[:] = [bias.detach().clone() for bias in biases]

    trainer.run_step = noting
    trainer.train()
    routing = attached_routing(trainer.model)
    # The learning rate of the last iteration of ten, falling with the power of 0.9.
    assert routing.cost.rate == pytest.approx(0.1**0.9, rel=1e-3)
    # Weights stay as trained; ten iterations leave too much open, and a threshold closes it.
    assert all(b.detach().equal(s) for b, s in zip(biases, last, strict=True))
    network = trainer.model.backbone.network
    found = network.gate_threshold
    assert found > 0
    images = list(build_detection_test_loader(cfg, cfg.DATASETS.TRAIN[0]))[::2]  # four of eight
    trainer.model.eval()

    @torch.no_grad()
    def error(threshold):
        trainer.model.backbone.set_gate_threshold(threshold)
        return abs(sum(float(trainer.model(i)[0]["routing"].real_share) for i in images) / 4 - 0.5)

    others = [error(float(threshold)) for threshold in torch.linspace(0, 2, 21)]
    assert error(found) <= min(others) + 1e-4
    assert error(found) < others[0] - 0.1
