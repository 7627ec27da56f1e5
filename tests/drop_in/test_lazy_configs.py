"""LazyConfigs train under Detectron2's own script, which knows nothing of routing."""

import importlib.util
from pathlib import Path

import detectron2
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import default_argument_parser

from divdr.modeling import attached_routing

SCRIPT = Path(detectron2.__file__).parents[1] / "tools" / "lazyconfig_train_net.py"

OVERRIDES = {
    "mask_rcnn": ["model.model.roi_heads.box_predictor.test_score_thresh=0.0"],
    "fcos": [
        "model.model.test_score_thresh=0.0",
        "model.model.backbone.bottom_up.layers=4",
        "model.model.backbone.bottom_up.scales_per_layer=[2,3,4,4]",
    ],
}


def small(folder) -> list[str]:
    return [
        "model.model.backbone.bottom_up.layers=5",
        "model.model.backbone.bottom_up.scales_per_layer=[2,3,4,4,5]",
        "model.model.backbone.bottom_up.channels=4",
        "model.num_experts=2",
        "model.periods.period=1",
        "model.budget.start=0",
        "model.budget.length=0",
        "dataloader.train.total_batch_size=2",
        "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0",
        "dataloader.train.mapper.augmentations.0.short_edge_length=64",
        "dataloader.test.mapper.augmentations.0.short_edge_length=64",
        "train.device=cpu",
        "train.max_iter=3",
        "train.eval_period=3",
        "train.log_period=1",
        f"train.output_dir={folder}",
    ]


@pytest.mark.skipif(not SCRIPT.exists(), reason="this Detectron2 comes without its tools")
@pytest.mark.parametrize("architecture", ["mask_rcnn", "fcos"])
def test_detectron2s_own_script_trains_it(architecture, repository, drawn, tmp_path, caplog):
    spec = importlib.util.spec_from_file_location("lazyconfig_train_net", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    config = str(repository / "configs" / "lazy" / f"divdr_coco_{architecture}.py")
    options = [*small(tmp_path), *OVERRIDES[architecture]]
    script.main(default_argument_parser().parse_args(["--config-file", config, *options]))

    metrics = (tmp_path / "metrics.json").read_text()
    for name in ("loss_budget", "loss_clustering", "clustering/inter_experts", "bbox/AP"):
        assert f'"{name}"' in metrics
    cfg = LazyConfig.apply_overrides(LazyConfig.load(config), options)
    model = instantiate(cfg.model).eval()
    saved = torch.load(tmp_path / "model_final.pth", weights_only=False)["model"]
    assert set(saved) == set(model.state_dict())
    model.load_state_dict(saved)
    assert attached_routing(model).experts.num_experts == 2
    with torch.no_grad():
        (output,) = model([{"image": torch.zeros(3, 64, 64), "height": 64, "width": 64}])
    assert output["routing"].activations.shape[0] == 1
    assert "instances" in output
