"""Box heads of mixtures, trained by two processes."""

import pytest
import torch
from test_mixture_heads import SMALL, losses_of, options, results, run
from two_processes import train_in_two_processes

OWN = {
    "hydra": {"loss_gater", "loss_branch"},
    "coe": {"loss_selector", "loss_expert_cls", "loss_expert_box_reg"},
    "single_gate": {"loss_expert_cls", "loss_expert_box_reg"},
}


@pytest.mark.parametrize("system", ["hydra", "coe", "single_gate"])
def test_two_processes_train_and_are_evaluated_like_one(
    system, drawn, small, repository, tmp_path, monkeypatch
):
    monkeypatch.chdir(repository)
    config = f"{SMALL}{system}_coco_faster_rcnn.yaml"
    # From the first step on an expert may be without a proposal in one process, or in both.
    opts = options(
        small,
        MODEL__ROI_BOX_HEAD__COE__START=0.0,
        MODEL__ROI_BOX_HEAD__SINGLE_GATE__GATE_STAGE=1,  # and two of the experts
        MODEL__ROI_BOX_HEAD__SINGLE_GATE__CLUSTER_BATCHES=2,
        SOLVER__IMS_PER_BATCH=2,
    )
    train_in_two_processes(config, opts)
    assert OWN[system] <= losses_of(tmp_path)
    found = results(tmp_path)
    weights = str(tmp_path / "model_final.pth")
    again = {"MODEL__WEIGHTS": weights, "OUTPUT_DIR": str(tmp_path / "alone")}
    run(config, options(small, **again), eval_only=True)
    assert results(tmp_path / "alone")["box_head"] == pytest.approx(found["box_head"])
    state = torch.load(weights, weights_only=True)["model"]
    assert all(v.isfinite().all() for v in state.values() if v.is_floating_point())
    if system == "single_gate":
        assert state["roi_heads.box_head.gate.fitted"]
        assert state["roi_heads.box_head.gate.temperature"] > 0
