"""Every COCO config, full-size and small, trains on the drawn sample and is evaluated."""

import json

import pytest

from divdr.engine import Trainer, load_config
from divdr.modeling import attached_routing

MODELS = {
    # name: λ1, μ, gate, weight of the clustering loss (DivDR, Tables 4 and 5)
    "divdr": (0.8, 0.1, "small", 0.1),
    "divdr_raw": (0.0, 0.1, "full", 0.1),
    "dr_a": (0.8, 0.1, "small", 0.0),
    "dr_b": (0.5, 0.1, "small", 0.0),
    "dr_c": (0.5, 0.2, "small", 0.0),
    "dr_raw": (0.0, 0.1, "full", 0.0),
}

BRIEFLY = {
    "MODEL.DEVICE": "cpu",
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MAX_SIZE_TRAIN": 96,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 96,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 1,
    "SOLVER.STEPS": (),
    "TEST.EVAL_PERIOD": 0,
    "TEST.PRECISE_BN.NUM_ITER": 1,
}

# All have these widths; one config trains at full width.
WIDE = "divdr_coco_mask_rcnn"
NARROW = {
    "MODEL.ROUTING.CHANNELS": 8,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
}


@pytest.mark.parametrize("folder", ["", "small/"])
@pytest.mark.parametrize("head", ["faster", "mask"])
@pytest.mark.parametrize("name", MODELS)
def test_config_trains_and_evaluates(folder, head, name, repository, drawn, tmp_path):
    path = repository / "configs" / f"{folder}{name}_coco_{head}_rcnn.yaml"
    pairs = {**BRIEFLY, "OUTPUT_DIR": str(tmp_path)}
    if not folder:
        full = load_config(str(path))
        widths = full.MODEL.ROUTING.CHANNELS, full.MODEL.FPN.OUT_CHANNELS
        assert (*widths, full.MODEL.ROI_BOX_HEAD.FC_DIM) == (64, 256, 1024)
        pairs |= {} if path.stem == WIDE else NARROW
    cfg = load_config(str(path), [str(part) for pair in pairs.items() for part in pair])
    routing = cfg.MODEL.ROUTING
    found = (routing.BUDGET.WEIGHT, routing.BUDGET.TARGET, routing.GATE, routing.CLUSTERING.WEIGHT)
    assert found == MODELS[name]
    assert cfg.SOLVER.BASE_LR == 0.02

    trainer = Trainer(cfg)
    space = attached_routing(trainer.model).backbone.space
    if not folder:  # Layer17: 66 cells, A(x) has 198 numbers
        assert (space.num_layers, space.activation_size) == (17, 198)
        assert space.scales_per_layer[-1] == 5
    names = set(trainer.model.backbone.output_shape())
    assert names == {"p2", "p3", "p4", "p5", "p6"}
    trainer.train()
    figures = json.loads((tmp_path / "inference" / "results.json").read_text())["coco_2017_val"]
    assert set(figures) == {"bbox", "routing", "box_head"} | ({"segm"} if head == "mask" else set())
    costs = figures["routing"]
    neck = costs["real_gflops_800x800_with_neck"] - costs["real_gflops_800x800"]
    if not folder:
        # 1×1 convolutions over maps of 200, 100, 50, 25 and 13 rows and columns.
        sizes = [(200, 1), (100, 2), (50, 4), (25, 8), (13, 16)]
        by_hand = sum(rows * rows * times for rows, times in sizes) / 1e9
        by_hand *= cfg.MODEL.ROUTING.CHANNELS * cfg.MODEL.FPN.OUT_CHANNELS
        assert neck == pytest.approx(by_hand, rel=1e-6)


def test_schedule_is_that_of_the_paper(repository):
    cfg = load_config(str(repository / "configs" / "divdr_coco_faster_rcnn.yaml"))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH) == (90000, 0.02, 16)
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST) == ((800,), 800)
    assert cfg.MODEL.ROUTING.CLUSTERING.PERIOD == 50
    assert cfg.DATASETS.TRAIN == ("coco_2017_train",)
