"""Static experts of a detector whose routed backbone sits under a neck."""

import pytest
import torch

from divdr.engine import Trainer, load_config
from divdr.engine.execution_modes import load_trained, read_modes
from divdr.engine.export_experts import export_experts
from divdr.engine.static_experts import ExpertSettings
from divdr.modeling import attached_routing

pytestmark = pytest.mark.long


def test_experts_of_a_detector_are_made_evaluated_and_exported(repository, drawn, small, tmp_path):
    pairs = {**small, "SOLVER.MAX_ITER": 3, "SOLVER.CHECKPOINT_PERIOD": 3}
    pairs["DATASETS.TRAIN"], pairs["DATASETS.TEST"] = ("coco_2017_val",), ("coco_2017_val",)
    cfg = load_config(
        str(repository / "configs" / "divdr_coco_mask_rcnn.yaml"),
        [str(part) for pair in pairs.items() for part in pair],
    )
    Trainer(cfg).train()
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    settings = ExpertSettings(dispatch_layers=2, bn_batches=1, fine_tune=1)
    folder = tmp_path / "experts"
    said = export_experts(cfg, load_trained(cfg), settings, folder, formats=["pt2"], size=(96, 96))
    rows = read_modes(folder / "experts.json")
    assert set(rows[0].accuracy) == {"box AP", "mask AP"}
    assert rows[1].name in said
    cfg.MODEL.ROUTING.STATIC_EXPERTS = str(folder / "static_experts.pth")
    model = load_trained(cfg)
    image = torch.rand(3, 96, 128) * 255
    with torch.no_grad():
        output = model([{"image": image, "height": 96, "width": 128}])[0]
    assert "instances" in output
    space = attached_routing(model).backbone.space
    maps = torch.export.load(folder / "expert_0.pt2").module()(image[None, :, :96, :96])
    assert [m.shape[1] for m in maps] == [4 * 2**s for s in range(space.out_scales)]
