"""Classifiers trained by two processes: one model, one partition, one set of results."""

import pytest
import torch
from classifier_runs import CONFIGS, results, run
from torchrun import train_in_two_processes

COE = "MODEL.CLASSIFIER.COE."
FEW = ("SOLVER.IMS_PER_BATCH", "64", "DATALOADER.NUM_WORKERS", "0")


def evaluated_alone(config, folder, tmp_path, *more):
    weights = ("MODEL.WEIGHTS", str(folder / "model_final.pth"))
    run(config, [*FEW, *weights, "OUTPUT_DIR", str(tmp_path / "alone"), *more], eval_only=True)
    return results(tmp_path / "alone", "digits_test")


@pytest.mark.parametrize(
    ("config", "more"),
    [
        ("digits_dynk.yaml", ("SOLVER.MAX_ITER", "40")),
        # Both stages: the second starts with statistics over the data set, and PWLU with its own.
        (
            "digits_coe.yaml",
            ("SOLVER.MAX_ITER", "60", COE + "DELEGATOR_STAGE", "0.5", COE + "PWLU", "4"),
        ),
    ],
)
def test_two_processes_train_and_are_evaluated_like_one(
    config, more, repository, tmp_path, monkeypatch
):
    monkeypatch.chdir(repository)
    folder = tmp_path / "both"
    rate = ("SOLVER.BASE_LR", "0.01")
    train_in_two_processes(repository, CONFIGS + config, [*FEW, *rate, *more, "OUTPUT_DIR", folder])
    found = results(folder, "digits_test")
    assert found["classification"]["top1"] > 40  # 10 is chance
    alone = evaluated_alone(config, folder, tmp_path, *more)
    # Each image is counted once, whoever looked at it.
    assert alone["classification"] == pytest.approx(found["classification"])
    assert alone["cost"] == pytest.approx(found["cost"])
    state = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    assert all(v.isfinite().all() for v in state.values() if v.is_floating_point())
