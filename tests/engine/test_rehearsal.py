"""The rehearsal of a long training, shortened: a small network, and a few iterations."""

import json
import shutil

import pytest
import torch

from divdr.engine.rehearsal import Rehearsal, failures_of, rehearse
from divdr.errors import DivdrError

pytestmark = pytest.mark.long

SMALL = {
    "MODEL.ROUTING.LAYERS": 3,
    "MODEL.ROUTING.SCALES": 3,
    "MODEL.ROUTING.CHANNELS": 4,
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4"],
    "TEST.PRECISE_BN.NUM_ITER": 1,
}


REHEARSAL = Rehearsal("cityscapes", "float16", 6, SMALL)


@pytest.fixture(scope="module")
def rehearsed(repository, scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rehearsal")
    return folder, rehearse(REHEARSAL, repository, scenes, folder)


def test_a_training_of_two_processes_in_half_precision_survives_a_kill(rehearsed):
    folder, outcome = rehearsed
    assert outcome.failures == []
    assert outcome.difference == 0.0
    one, other = (
        torch.load(folder / name / "model_final.pth", weights_only=True)
        for name in ("whole", "killed")
    )
    experts, twin = one["routing"]["experts"], other["routing"]["experts"]
    assert experts["centres"].equal(twin["centres"])
    # 6 iterations of 2 images on each of 2 processes: three times the 8 images.
    assert len(experts["bank"]["rows"]) == 8
    assert experts["bank"]["rows"].equal(twin["bank"]["rows"])
    scale, again = (run["trainer"]["_trainer"]["grad_scaler"] for run in (one, other))
    assert scale == again
    results = json.loads((folder / "whole" / "inference" / "results.json").read_text())
    assert results["cityscapes_fine_sem_seg_val"]["routing"]["images"] == 4


def changed(source, folder, change):
    """A copy of a run in which every logged record is changed."""
    shutil.copytree(source, folder)
    records = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    lines = [json.dumps(change(record)) for record in records]
    (folder / "metrics.json").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda r: {**r, "loss_budget": 0.0}, "the budget loss never switched on"),
        (
            lambda r: {k: v for k, v in r.items() if "inter" not in k},
            "clustering/inter_experts was logged",
        ),
        (lambda r: {**r, "loss_sem_seg": float("nan")}, "loss_sem_seg was not finite"),
        (
            lambda r: {**r, "routing/inter_refit": float("inf")},
            "routing/inter_refit was not finite",
        ),
    ],
)
def test_what_a_run_lacks_is_named(rehearsed, tmp_path, change, found):
    folder = changed(rehearsed[0] / "whole", tmp_path / "run", change)
    (said,) = failures_of(folder, REHEARSAL)
    assert said.startswith(found)


def test_a_checkpoint_that_would_not_do_is_named(rehearsed, tmp_path):
    folder = changed(rehearsed[0] / "whole", tmp_path / "run", lambda record: record)
    content = torch.load(folder / "model_final.pth", weights_only=True)
    name = next(n for n in content["model"] if n.endswith("running_var"))
    content["model"][name][0] = -1.0
    content["routing"]["experts"]["centres"] = None
    torch.save(content, folder / "model_final.pth")
    assert failures_of(folder, REHEARSAL) == [
        f"{name} is negative",
        "the checkpoint holds no centres",
    ]
    (folder / "model_final.pth").unlink()
    assert failures_of(folder, REHEARSAL) == ["model_final.pth was not written"]


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("import os, sys, time\nprint('no luck')\nsys.exit(3) if os.environ['RANK'] == '1' else "
         "time.sleep(600)", "console_1.txt failed:\nno luck"),
        ("import time\ntime.sleep(600)", "hangs: no end in 0.3 s"),
    ],
)  # fmt: skip
def test_a_run_that_fails_or_hangs_ends(tmp_path, monkeypatch, program, found):
    monkeypatch.setattr("divdr.engine.rehearsal._PATIENCE", 60 if "luck" in program else 0.3)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "train_net.py").write_text(program)
    with pytest.raises(DivdrError, match=found):
        rehearse(REHEARSAL, tmp_path, tmp_path, tmp_path / "output")
