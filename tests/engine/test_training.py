"""Runs of tools/train_net.py as a user starts them."""

import json
import os
import time

import numpy as np
import torch
from forked import Program, run

TRAIN = ["tools/train_net.py"]
CONFIG = ["--config-file", "configs/demo/divdr.yaml"]


def losses(folder) -> dict[int, dict]:
    """The last record of every iteration, without times."""
    records = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        record = json.loads(line)
        records[record["iteration"]] = {
            k: v for k, v in record.items() if "time" not in k and "seconds" not in k
        }
    return records


def state(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    repository, tmp_path, environment, overrides
):
    target = ["MODEL.ROUTING.BUDGET.WEIGHT", "0.0", "MODEL.ROUTING.BUDGET.TARGET_SHARE", "0.5"]
    target += ["MODEL.ROUTING.BUDGET.TARGET_RAMP", "2.0"]
    target += ["MODEL.ROUTING.BUDGET.TARGET_CALIBRATION", "4"]
    explore = ["MODEL.ROUTING.EXPLORATION.NOISE", "0.5", "MODEL.ROUTING.EXPLORATION.RANDOM_UNTIL"]
    overrides = [*overrides, *target, *explore, "0.9"]

    def start(name, *options):
        words = [*TRAIN, *CONFIG, *options, "OUTPUT_DIR", str(tmp_path / name), *overrides]
        return Program(words, repository, tmp_path / f"{name}.log", environment)

    def said(name):
        return (tmp_path / f"{name}.log").read_text()

    whole, killed = start("whole"), start("killed")
    deadline = time.time() + 300
    while not (tmp_path / "killed" / "model_0000005.pth").exists():
        assert killed.poll() is None, said("killed")
        assert time.time() < deadline
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    assert whole.wait() == 0, said("whole")
    if (tmp_path / "killed" / "model_final.pth").exists():  # it was faster than the kill
        for name in ("model_final.pth", "model_0000008.pth"):
            (tmp_path / "killed" / name).unlink(missing_ok=True)
    # The newest file is cut short, as if the kill had come while it was written.
    newest = sorted((tmp_path / "killed").glob("model_*.pth"))[-1]
    (tmp_path / "killed" / "model_9999999.pth").write_bytes(newest.read_bytes()[:-100])
    (tmp_path / "killed" / "last_checkpoint").write_text("model_9999999.pth")

    resumed = start("killed", "--resume")
    assert resumed.wait() == 0, said("killed")
    assert "Continuing at iteration" in said("killed")

    one, other = state(tmp_path / "whole"), state(tmp_path / "killed")
    assert all(one["model"][k].equal(other["model"][k]) for k in one["model"])
    experts, twin = one["routing"]["experts"], other["routing"]["experts"]
    assert experts["centres"].equal(twin["centres"])
    assert experts["sigma2"].equal(twin["sigma2"])
    assert experts["bank"]["rows"].equal(twin["bank"]["rows"])
    assert len(experts["bank"]["rows"]) == 8
    cost = one["routing"]["cost"]
    assert cost == other["routing"]["cost"]
    assert cost["batches"] == 10
    assert cost["integral"] != 0.0
    last, again = losses(tmp_path / "whole")[9], losses(tmp_path / "killed")[9]
    for key in (
        "total_loss",
        "loss_sem_seg",
        "loss_budget",
        "loss_clustering",
        "clustering/inter_experts",
    ):
        assert np.isfinite(last[key])
    assert last["clustering/inter_experts"] == again["clustering/inter_experts"]

    results = json.loads((tmp_path / "whole" / "inference" / "results.json").read_text())
    figures = results["cityscapes_fine_sem_seg_val"]
    assert 0 <= figures["sem_seg"]["IoU"] <= 100
    assert figures["routing"]["images"] == 4
    assert figures["routing"]["images_expert_0"] + figures["routing"]["images_expert_1"] == 4
    assert figures["routing"]["real_gflops"] > 0
    assert any(name.startswith("events.out") for name in os.listdir(tmp_path / "whole"))
    _evaluation_alone_gives_the_same(repository, tmp_path, environment, overrides, figures)


def _evaluation_alone_gives_the_same(repository, tmp_path, environment, overrides, figures):
    weights = str(tmp_path / "whole" / "model_final.pth")
    alone = ["--eval-only", "OUTPUT_DIR", str(tmp_path / "alone"), "MODEL.WEIGHTS", weights]
    done = run([*TRAIN, *CONFIG, *alone, *overrides], repository, environment)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "alone" / "inference" / "results.json").read_text())
    again = results["cityscapes_fine_sem_seg_val"]
    assert again["sem_seg"]["IoU"] == figures["sem_seg"]["IoU"]
    assert again["routing"] == figures["routing"]
