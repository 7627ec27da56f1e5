"""Classifiers trained by two processes: one model, one partition, one set of results."""

import json
import os
import subprocess
import sys

import pytest
import torch
from classifier_runs import CONFIGS, results, run
from two_processes import torchrun_environment, train_in_two_processes

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
    train_in_two_processes(CONFIGS + config, [*FEW, *rate, *more, "OUTPUT_DIR", folder])
    found = results(folder, "digits_test")
    assert found["classification"]["top1"] > 40  # 10 is chance
    alone = evaluated_alone(config, folder, tmp_path, *more)
    # Each image is counted once, whoever looked at it.
    assert alone["classification"] == pytest.approx(found["classification"])
    assert alone["cost"] == pytest.approx(found["cost"])
    state = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    assert all(v.isfinite().all() for v in state.values() if v.is_floating_point())


def test_torchrun_tells_its_processes_what_these_are_told(tmp_path):
    script = tmp_path / "told.py"
    script.write_text(
        "import json, os, pathlib\n"
        "place = pathlib.Path(__file__).with_name(os.environ['RANK'] + '.json')\n"
        "place.write_text(json.dumps(dict(os.environ)))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--rdzv-id", "test"]
    subprocess.run(
        [*command, "--local-addr", "127.0.0.1", str(script)],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    for rank in range(2):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        wanted = torchrun_environment(rank, int(told["MASTER_PORT"]))
        assert wanted.items() <= told.items()
